"""``renew``: one heartbeat for all of a holder's leases, and who holds what (A4, A6)."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from catalog.conformance.kit import ALPHA, BETA, TTL, World, batch, op, tick
from catalog.errors import Fenced
from catalog.records import NotClaimed, Outcome, Renewal


@pytest.mark.anyio
class TestRenew:
    async def test_one_heartbeat_renews_all_leases(self, world: World) -> None:
        leases = [await world.lease("a"), await world.lease("b")]
        world.clock.advance(TTL - 1)
        assert await world.renew(*leases) == Renewal((), ())
        world.clock.advance(TTL - 1)
        answers = await world.claim("a", "b", holder=BETA)
        assert [type(answer) for answer in answers] == [NotClaimed, NotClaimed]

    async def test_a_heartbeat_does_not_count_as_a_change(self, world: World) -> None:
        lease = await world.lease("a")
        before = await world.catalog.pipeline("a")
        world.clock.advance(1)
        await world.renew(lease)
        after = await world.catalog.pipeline("a")
        assert (after.version, after.change) == (before.version, before.change)
        assert after.lease_expires_at == world.clock.wall_us() + round(TTL * 1e6)

    async def test_a_lapsed_lease_that_nobody_took_keeps_its_epoch(self, world: World) -> None:
        lease = await world.lease("shop")
        world.clock.advance(100 * TTL)
        assert await world.renew(lease) == Renewal((), ())
        state = await world.catalog.pipeline("shop")
        assert (state.epoch, state.holder, state.lapsed) == (lease.epoch, "alpha", False)
        await world.commit(lease, batch())

    async def test_a_lease_of_another_boot_that_nobody_took_is_renewed(self, world: World) -> None:
        lease = await world.lease("shop")
        world.clock.reboot("boot-2")
        assert await world.renew(lease) == Renewal((), ())
        assert not (await world.catalog.pipeline("shop")).lapsed

    async def test_a_lease_that_another_took_is_lost(self, world: World) -> None:
        lost, kept = await world.lease("a"), await world.lease("b")
        world.lapse()
        theirs = await world.lease("a", holder=BETA)
        assert await world.renew(lost, kept) == Renewal((lost,), ())
        assert (await world.catalog.pipeline("a")).epoch == theirs.epoch
        await world.commit(theirs, batch())

    async def test_a_finished_lease_and_one_that_never_was_are_lost(self, world: World) -> None:
        finished = await world.lease("a")
        await world.finish(finished)
        never = replace(finished, pipeline="z", epoch=99)
        assert await world.renew(never, finished) == Renewal((finished, never), ())

    async def test_another_holders_lease_is_lost_to_who_names_it(self, world: World) -> None:
        lease = await world.lease("a", holder=BETA)
        assert await world.renew(lease) == Renewal((lease,), ())
        assert (await world.catalog.pipeline("a")).holder == "beta"

    async def test_a_lease_that_its_holder_does_not_know_is_released(self, world: World) -> None:
        """The answer to its claim was lost; it would be renewed for ever."""
        known, unknown = await world.lease("a"), await world.lease("b", trigger=tick(5))
        assert await world.renew(known) == Renewal((), (unknown,))
        state = await world.catalog.pipeline("b")
        assert (state.holder, state.epoch, state.tick) == ("", unknown.epoch, None)
        run = await world.catalog.run(unknown.epoch)
        assert run is not None
        assert (run.outcome, run.finished_at) == (Outcome.INTERRUPTED, world.clock.wall_us())
        assert await world.lease("b", holder=BETA)

    async def test_what_is_lost_and_released_is_listed_by_pipeline(self, world: World) -> None:
        """So that the same reconciliation reads the same on every backend."""
        unknown = {name: await world.lease(name) for name in ("c", "a", "d", "b")}
        lost = {name: replace(unknown[name], pipeline=f"{name}!") for name in unknown}
        found = await world.renew(*lost.values())
        assert found.lost == tuple(lost[name] for name in "abcd")
        assert found.released == tuple(unknown[name] for name in "abcd")

    async def test_a_released_lease_is_fenced(self, world: World) -> None:
        lease = await world.lease("a")
        await world.renew()
        with pytest.raises(Fenced):
            await world.commit(lease, batch())

    async def test_an_older_epoch_of_a_pipeline_does_not_stand_for_the_newer(
        self, world: World
    ) -> None:
        old = await world.lease("a")
        await world.finish(old)
        new = await world.lease("a")
        assert await world.renew(old) == Renewal((old,), (new,))

    async def test_other_holders_leases_are_left_alone(self, world: World) -> None:
        theirs = await world.lease("a", holder=BETA)
        assert await world.renew() == Renewal((), ())
        assert (await world.catalog.pipeline("a")).epoch == theirs.epoch

    async def test_a_holder_without_leases_may_renew(self, world: World) -> None:
        await world.catalog.renew(op(), ALPHA, [], ttl=TTL)
        (beat,) = await world.catalog.holders()
        assert (beat.holder, beat.leases, beat.lapsed) == (ALPHA, 0, False)
