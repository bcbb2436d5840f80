"""``claim``: who gets a lease, and how one passes to the next holder (A1-A3, A6, A7)."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from catalog.conformance.kit import ALPHA, BETA, TTL, World, batch, dump, op, tick
from catalog.errors import BadRequest
from catalog.records import (
    Claimed,
    NotClaimed,
    Outcome,
    Pause,
    Run,
    RunQuery,
    StreamState,
)


@pytest.mark.anyio
class TestClaim:
    async def test_a_claim_takes_the_lease_and_opens_the_run(self, world: World) -> None:
        candidate = await world.candidate("shop", trigger=tick(5), connections=("db", "lake"))
        (answer,) = await world.catalog.claim(op(), ALPHA, [candidate], ttl=TTL, limits={})
        assert isinstance(answer, Claimed)
        assert answer.run == Run(
            epoch=answer.lease.epoch,
            pipeline="shop",
            holder="alpha",
            trigger=tick(5),
            reason="due",
            started_at=world.clock.wall_us(),
            connections=("db", "lake"),
        )
        assert (answer.lease.pipeline, answer.lease.holder) == ("shop", "alpha")
        assert answer.pipeline == await world.catalog.pipeline("shop")
        assert (answer.pipeline.epoch, answer.pipeline.holder) == (answer.lease.epoch, "alpha")
        assert answer.streams == ()
        assert await world.catalog.run(answer.lease.epoch) == answer.run

    async def test_a_claim_answers_with_the_streams_by_name(self, world: World) -> None:
        await world.run("shop", Outcome.SUCCEEDED, batch(stream="b"), batch(stream="a"))
        (answer,) = await world.claim("shop")
        assert isinstance(answer, Claimed)
        assert [stream.stream for stream in answer.streams] == ["a", "b"]
        assert isinstance(answer.streams[0], StreamState)

    async def test_a_pipeline_the_catalog_did_not_know_is_created(self, world: World) -> None:
        assert (await world.catalog.pipeline("shop")).version == 0
        await world.lease("shop")
        assert (await world.catalog.pipeline("shop")).version > 0

    async def test_a_candidate_of_another_version_is_refused(self, world: World) -> None:
        candidate = await world.candidate("shop")
        await world.edit(Pause("shop"))
        (answer,) = await world.catalog.claim(op(), ALPHA, [candidate], ttl=TTL, limits={})
        assert answer == NotClaimed("shop", "changed")
        assert await world.catalog.runs(RunQuery()) == ()

    async def test_a_version_the_catalog_never_gave_is_refused(self, world: World) -> None:
        candidate = replace(await world.candidate("shop"), version=1)
        (answer,) = await world.catalog.claim(op(), ALPHA, [candidate], ttl=TTL, limits={})
        assert answer == NotClaimed("shop", "changed")
        assert (await world.catalog.pipeline("shop")).version == 0

    async def test_a_live_lease_is_refused_and_its_holder_named(self, world: World) -> None:
        await world.lease("shop")
        assert await world.claim("shop", holder=BETA) == (
            NotClaimed("shop", "leased", holder="alpha"),
        )

    async def test_a_holder_does_not_take_its_own_live_lease_again(self, world: World) -> None:
        await world.lease("shop")
        assert await world.claim("shop") == (NotClaimed("shop", "leased", holder="alpha"),)

    async def test_two_processes_do_not_both_get_a_lease(self, world: World) -> None:
        other = await world.open()
        candidate = await world.candidate("shop")
        (mine,) = await world.catalog.claim(op(), ALPHA, [candidate], ttl=TTL, limits={})
        (theirs,) = await other.claim(op(), BETA, [candidate], ttl=TTL, limits={})
        assert isinstance(mine, Claimed)
        assert theirs == NotClaimed("shop", "changed")
        assert (await other.pipeline("shop")).holder == "alpha"

    async def test_each_candidate_has_its_own_answer_in_order(self, world: World) -> None:
        await world.lease("b", holder=BETA)
        answers = await world.claim("a", "b", "c")
        assert [type(answer) for answer in answers] == [Claimed, NotClaimed, Claimed]
        names = [a.pipeline if isinstance(a, NotClaimed) else a.lease.pipeline for a in answers]
        assert names == ["a", "b", "c"]

    async def test_one_pipeline_twice_in_a_call_is_refused_and_changes_nothing(
        self, world: World
    ) -> None:
        candidate = await world.candidate("shop")
        before = await dump(world.catalog)
        with pytest.raises(BadRequest, match="shop"):
            await world.catalog.claim(op(), ALPHA, [candidate, candidate], ttl=TTL, limits={})
        assert await dump(world.catalog) == before

    async def test_all_that_a_claim_names_twice_is_said(self, world: World) -> None:
        candidates = [await world.candidate(name) for name in "dbacdbac"]
        words = "claim names 'a', 'b', 'c', 'd' more than once; name each pipeline once, since it"
        with pytest.raises(BadRequest, match=words):
            await world.catalog.claim(op(), ALPHA, candidates, ttl=TTL, limits={})

    async def test_limits_hold_across_one_call(self, world: World) -> None:
        answers = await world.claim("a", "b", "c", connections=("db",), limits={"db": 2})
        assert isinstance(answers[0], Claimed)
        assert isinstance(answers[1], Claimed)
        assert answers[2] == NotClaimed("c", "connection_full", connection="db")

    async def test_limits_count_the_open_runs_of_all_holders(self, world: World) -> None:
        await world.claim("a", holder=BETA, connections=("db",))
        answers = await world.claim("b", connections=("db",), limits={"db": 1})
        assert answers == (NotClaimed("b", "connection_full", connection="db"),)

    async def test_a_limit_below_what_is_in_use_lets_nobody_in(self, world: World) -> None:
        await world.claim("a", "b", connections=("db",), limits={"db": 2})
        answers = await world.claim("c", connections=("db",), limits={"db": 1})
        assert answers == (NotClaimed("c", "connection_full", connection="db"),)

    async def test_each_connection_of_a_candidate_has_its_limit(self, world: World) -> None:
        await world.claim("a", connections=("lake",))
        answers = await world.claim("b", connections=("db", "lake"), limits={"db": 9, "lake": 1})
        assert answers == (NotClaimed("b", "connection_full", connection="lake"),)

    async def test_a_refused_candidate_takes_no_place(self, world: World) -> None:
        await world.claim("a", connections=("lake",))
        one = await world.candidate("b", connections=("db", "lake"))
        two = await world.candidate("c", connections=("db",))
        answers = await world.catalog.claim(
            op(), ALPHA, [one, two], ttl=TTL, limits={"db": 1, "lake": 1}
        )
        assert answers[0] == NotClaimed("b", "connection_full", connection="lake")
        assert isinstance(answers[1], Claimed)

    async def test_a_connection_without_a_limit_is_unlimited(self, world: World) -> None:
        answers = await world.claim("a", "b", "c", connections=("db",), limits={"lake": 0})
        assert all(isinstance(answer, Claimed) for answer in answers)

    async def test_a_finished_run_frees_its_connections(self, world: World) -> None:
        (claimed,) = await world.claim("a", connections=("db",))
        assert isinstance(claimed, Claimed)
        await world.finish(claimed.lease)
        (answer,) = await world.claim("b", connections=("db",), limits={"db": 1})
        assert isinstance(answer, Claimed)

    async def test_a_run_whose_holder_is_gone_takes_no_place(self, world: World) -> None:
        await world.claim("a", holder=BETA, connections=("db",))
        world.lapse()
        (answer,) = await world.claim("b", connections=("db",), limits={"db": 1})
        assert isinstance(answer, Claimed)

    async def test_a_run_whose_holder_is_dead_takes_no_place(self, world: World) -> None:
        await world.claim("a", holder=BETA, connections=("db",))
        (answer,) = await world.claim("b", connections=("db",), limits={"db": 1}, dead=["beta"])
        assert isinstance(answer, Claimed)

    async def test_one_counter_issues_all_epochs(self, world: World) -> None:
        epochs = [(await world.lease(name)).epoch for name in ("a", "b", "c")]
        assert epochs == sorted(set(epochs))
        assert epochs[0] > 0

    async def test_an_epoch_never_comes_again(self, world: World) -> None:
        epochs = []
        for _ in range(3):
            epochs.append((await world.run("shop")).epoch)
            await world.restart()
            world.clock.advance(1)
            await world.retain_all()
        epochs.append((await world.lease("other")).epoch)
        assert epochs == sorted(set(epochs))

    async def test_the_first_heartbeat_comes_with_the_lease(self, world: World) -> None:
        await world.lease("shop")
        (beat,) = await world.catalog.holders()
        assert (beat.holder, beat.boot_id) == (ALPHA, world.clock.boot_id)
        assert (beat.lapsed, beat.leases) == (False, 1)
        assert beat.expires_at == world.clock.wall_us() + round(TTL * 1e6)
        assert (await world.catalog.pipeline("shop")).lease_expires_at == beat.expires_at

    async def test_a_lease_without_any_time_is_answered_as_lapsed(self, world: World) -> None:
        candidate, same = await world.candidate("shop"), op()
        for _ in ("asked", "asked again"):
            (answer,) = await world.catalog.claim(same, ALPHA, [candidate], ttl=0, limits={})
            assert isinstance(answer, Claimed)
            assert answer.pipeline == await world.catalog.pipeline("shop")
            assert answer.pipeline.lapsed

    async def test_a_claim_that_claims_nothing_is_a_heartbeat(self, world: World) -> None:
        lease = await world.lease("shop")
        world.clock.advance(TTL - 1)
        await world.claim()
        world.clock.advance(TTL - 1)
        assert not (await world.catalog.pipeline("shop")).lapsed
        assert await world.claim("shop", holder=BETA) == (
            NotClaimed("shop", "leased", holder=lease.holder),
        )


@pytest.mark.anyio
class TestTakingOver:
    async def test_a_lease_lives_until_its_time_has_passed(self, world: World) -> None:
        await world.lease("shop")
        world.clock.advance(TTL - 0.001)
        assert not (await world.catalog.pipeline("shop")).lapsed
        assert await world.claim("shop", holder=BETA) == (
            NotClaimed("shop", "leased", holder="alpha"),
        )
        world.clock.advance(0.001)
        assert (await world.catalog.pipeline("shop")).lapsed
        assert (await world.catalog.changed(0))[0].lapsed
        assert await world.lease("shop", holder=BETA)

    async def test_a_jump_of_the_wall_clock_neither_takes_nor_keeps_a_lease(
        self, world: World
    ) -> None:
        await world.lease("shop")
        world.clock.jump_wall(10 * 365 * 86_400)
        assert not (await world.catalog.pipeline("shop")).lapsed
        (answer,) = await world.claim("shop", holder=BETA)
        assert isinstance(answer, NotClaimed)
        world.clock.jump_wall(-20 * 365 * 86_400)
        world.lapse()
        assert (await world.catalog.pipeline("shop")).lapsed
        assert await world.lease("shop", holder=BETA)

    async def test_a_lease_of_another_boot_is_free_at_once(self, world: World) -> None:
        await world.lease("shop")
        world.clock.reboot("boot-2")
        assert (await world.catalog.pipeline("shop")).lapsed
        assert [holder.lapsed for holder in await world.catalog.holders()] == [True]
        assert await world.lease("shop", holder=BETA)

    async def test_a_dead_holders_lease_is_free_at_once(self, world: World) -> None:
        await world.lease("shop")
        (refused,) = await world.claim("shop", holder=BETA, dead=["gamma"])
        assert isinstance(refused, NotClaimed)
        assert await world.lease("shop", holder=BETA, dead=["gamma", "alpha"])

    async def test_the_older_run_is_closed_as_interrupted_in_the_same_transaction(
        self, world: World
    ) -> None:
        old = await world.lease("shop", trigger=tick(5))
        await world.commit(old, batch())
        world.lapse()
        new = await world.lease("shop", holder=BETA, trigger=tick(5))
        assert new.epoch > old.epoch
        closed = await world.catalog.run(old.epoch)
        assert closed is not None
        assert (closed.outcome, closed.rows) == (Outcome.INTERRUPTED, 10)
        assert closed.finished_at == world.clock.wall_us()
        assert "alpha" in closed.reason
        assert "beta" in closed.reason
        state = await world.catalog.pipeline("shop")
        assert (state.last_epoch, state.last_outcome) == (old.epoch, Outcome.INTERRUPTED)
        assert [r.epoch for r in await world.catalog.runs(RunQuery(open_only=True))] == [new.epoch]

    async def test_taking_over_does_not_consume_the_trigger(self, world: World) -> None:
        await world.lease("shop", trigger=tick(5))
        world.lapse()
        await world.lease("shop", holder=BETA, trigger=tick(5))
        assert (await world.catalog.pipeline("shop")).tick is None

    async def test_taking_over_keeps_what_was_committed(self, world: World) -> None:
        old = await world.lease("shop")
        commits = await world.commit(old, batch())
        world.lapse()
        (answer,) = await world.claim("shop", holder=BETA)
        assert isinstance(answer, Claimed)
        assert [(one.stream, one.seq) for one in answer.streams] == [("orders", 1)]
        assert await world.catalog.commits("shop", unpublished=True) == commits

    async def test_the_successor_sees_which_batches_were_committed(self, world: World) -> None:
        """Whoever may discard a sealed batch (B2) asks for a commit row of its epoch and seq."""
        old = await world.lease("shop")
        await world.commit(old, batch(0), batch(1))
        world.lapse()
        await world.lease("shop", holder=BETA)
        rows = await world.catalog.commits("shop", "orders")
        assert [(row.epoch, row.seq) for row in rows] == [(old.epoch, 2), (old.epoch, 1)]

    async def test_a_lease_survives_a_restart_of_the_catalog(self, world: World) -> None:
        lease = await world.lease("shop")
        await world.restart()
        assert await world.claim("shop", holder=BETA) == (
            NotClaimed("shop", "leased", holder="alpha"),
        )
        await world.commit(lease, batch())
