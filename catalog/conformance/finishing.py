"""``finish``: what a run leaves behind (A3, A9)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from catalog.conformance.kit import (
    BETA,
    World,
    batch,
    request,
    result,
    schema_hold,
    tick,
)
from catalog.records import (
    Adopt,
    CancelRun,
    ErrorClass,
    Mark,
    Outcome,
    Pause,
    Refresh,
    Rename,
    RequestRun,
    RunQuery,
    Trigger,
    TriggerKind,
)

CONSUMING = [o for o in Outcome if o not in (Outcome.INTERRUPTED, Outcome.FENCED)]
UNCONSUMING = [Outcome.INTERRUPTED, Outcome.FENCED]


@pytest.mark.anyio
class TestFinish:
    @pytest.mark.parametrize("outcome", list(Outcome))
    async def test_finish_closes_the_run_and_frees_the_lease(
        self, world: World, outcome: Outcome
    ) -> None:
        lease = await world.lease()
        started = world.clock.wall_us()
        await world.commit(lease, batch(rejected=3))
        world.clock.advance(5)
        results = (result(outcome, rows=10), result(Outcome.SUCCEEDED, "items"))
        run = await world.finish(lease, outcome, *results, error=ErrorClass.TRANSIENT)
        now = world.clock.wall_us()
        assert (run.epoch, run.outcome, run.reason) == (lease.epoch, outcome, f"it {outcome}")
        assert (run.error, run.streams) == (ErrorClass.TRANSIENT, results)
        assert (run.rows, run.bytes, run.rejected, run.count) == (10, 100, 3, 1)
        assert (run.started_at, run.finished_at, run.first_started_at) == (started, now, None)
        assert await world.catalog.run(lease.epoch) == run
        state = await world.catalog.pipeline("shop")
        assert (state.holder, state.epoch, state.lease_expires_at) == ("", lease.epoch, None)
        assert (state.last_outcome, state.last_reason) == (outcome, f"it {outcome}")
        assert state.last_epoch == lease.epoch
        assert (state.last_started_at, state.last_finished_at) == (started, now)
        assert await world.lease(holder=BETA)

    async def test_a_finished_run_is_there_after_a_restart(self, world: World) -> None:
        run = await world.run("shop", Outcome.FAILED, batch(), retry_at=9)
        await world.restart()
        assert await world.catalog.run(run.epoch) == run

    @pytest.mark.parametrize("outcome", CONSUMING)
    async def test_a_tick_is_consumed(self, world: World, outcome: Outcome) -> None:
        await world.run("shop", outcome, trigger=tick(50))
        assert (await world.catalog.pipeline("shop")).tick == 50

    async def test_ticks_never_go_back(self, world: World) -> None:
        await world.run("shop", trigger=tick(50))
        await world.run("shop", trigger=tick(40))
        assert (await world.catalog.pipeline("shop")).tick == 50

    @pytest.mark.parametrize("outcome", CONSUMING)
    async def test_a_request_is_consumed(self, world: World, outcome: Outcome) -> None:
        await world.edit(RequestRun("shop", "r1"))
        await world.run("shop", outcome, trigger=request("r1"))
        assert (await world.catalog.pipeline("shop")).request is None

    async def test_a_newer_request_is_not_consumed_by_the_older_ones_run(
        self, world: World
    ) -> None:
        await world.edit(RequestRun("shop", "r1"))
        lease = await world.lease(trigger=request("r1"))
        await world.edit(RequestRun("shop", "r2"))
        await world.finish(lease)
        kept = (await world.catalog.pipeline("shop")).request
        assert kept is not None
        assert kept.id == "r2"

    async def test_a_tick_does_not_consume_a_request(self, world: World) -> None:
        await world.edit(RequestRun("shop", "r1"))
        await world.run("shop", trigger=tick(50))
        assert (await world.catalog.pipeline("shop")).request is not None

    @pytest.mark.parametrize("outcome", CONSUMING)
    async def test_news_of_upstreams_is_consumed(self, world: World, outcome: Outcome) -> None:
        news = Trigger(TriggerKind.AFTER, news=(("b", 3), ("a", 2)))
        await world.run("shop", outcome, trigger=news)
        assert (await world.catalog.pipeline("shop")).after_seen == (("a", 2), ("b", 3))
        await world.run("shop", outcome, trigger=replace(news, news=(("a", 5), ("b", 1))))
        assert (await world.catalog.pipeline("shop")).after_seen == (("a", 5), ("b", 3))

    @pytest.mark.parametrize("outcome", UNCONSUMING)
    async def test_a_run_that_did_not_end_by_itself_consumes_nothing(
        self, world: World, outcome: Outcome
    ) -> None:
        await world.run("shop", Outcome.FAILED, retry_at=9, retry_streams=("orders",))
        await world.edit(RequestRun("shop", "r1"))
        await world.run("shop", Outcome.FAILED, retry_at=9, retry_streams=("orders",))
        before = await world.catalog.pipeline("shop")
        for trigger in (
            tick(50),
            request("r1"),
            Trigger(TriggerKind.AFTER, news=(("a", 2),)),
            Trigger(TriggerKind.RETRY),
        ):
            await world.run("shop", outcome, trigger=trigger, retry_at=7)
        after = await world.catalog.pipeline("shop")
        assert (after.tick, after.request) == (before.tick, before.request)
        assert after.after_seen == ()
        assert (after.retry_at, after.retry_streams) == (9, ("orders",))
        assert after.failures == before.failures

    async def test_a_run_says_when_it_is_tried_again(self, world: World) -> None:
        await world.run("shop", Outcome.FAILED, retry_at=9, retry_streams=("orders",))
        state = await world.catalog.pipeline("shop")
        assert (state.retry_at, state.retry_streams) == (9, ("orders",))
        await world.run("shop", Outcome.SUCCEEDED, trigger=Trigger(TriggerKind.RETRY))
        state = await world.catalog.pipeline("shop")
        assert (state.retry_at, state.retry_streams) == (None, ())

    async def test_a_request_for_some_streams_leaves_the_others_to_their_retry(
        self, world: World
    ) -> None:
        async def waits() -> tuple[int | None, tuple[str, ...]]:
            state = await world.catalog.pipeline("shop")
            return state.retry_at, state.retry_streams

        async def runs(stream: str, outcome: Outcome, **more: Any) -> None:
            await world.edit(RequestRun("shop", stream, (stream,)))
            asked = Trigger(TriggerKind.REQUEST, request=stream, streams=(stream,))
            await world.run("shop", outcome, trigger=asked, **more)

        await world.run("shop", Outcome.FAILED, park="broken", retry_at=9, retry_streams=("a", "b"))
        await runs("c", Outcome.SUCCEEDED)
        assert await waits() == (9, ("a", "b"))
        assert (await world.catalog.pipeline("shop")).parked is None
        await runs("b", Outcome.SUCCEEDED)
        assert await waits() == (9, ("a",))
        await runs("c", Outcome.FAILED, retry_at=12, retry_streams=("c",))
        assert await waits() == (12, ("a", "c"))
        await runs("a", Outcome.FAILED, retry_at=13)
        assert await waits() == (13, ())
        await runs("a", Outcome.SUCCEEDED)
        assert await waits() == (13, ())
        await world.run("shop", Outcome.SUCCEEDED)
        assert await waits() == (None, ())

    @pytest.mark.parametrize(
        ("outcome", "failures"),
        [
            (Outcome.FAILED, 3),
            (Outcome.SUCCEEDED, 0),
            (Outcome.NOTHING_NEW, 0),
            (Outcome.HELD, 0),
            (Outcome.CANCELLED, 2),
            (Outcome.INTERRUPTED, 2),
            (Outcome.FENCED, 2),
        ],
    )
    async def test_consecutive_failures_are_counted(
        self, world: World, outcome: Outcome, failures: int
    ) -> None:
        await world.run("shop", Outcome.FAILED)
        await world.run("shop", Outcome.FAILED)
        await world.run("shop", outcome)
        assert (await world.catalog.pipeline("shop")).failures == failures

    @pytest.mark.parametrize("outcome", list(Outcome))
    async def test_the_last_success_is_remembered(self, world: World, outcome: Outcome) -> None:
        first = await world.run("shop")
        world.clock.advance(5)
        second = await world.run("shop", outcome)
        good = outcome in (Outcome.SUCCEEDED, Outcome.NOTHING_NEW)
        state = await world.catalog.pipeline("shop")
        assert state.last_success_at == (second if good else first).finished_at

    @pytest.mark.parametrize("outcome", list(Outcome))
    async def test_rows_are_news_unless_the_run_broke_off(
        self, world: World, outcome: Outcome
    ) -> None:
        await world.run("shop", outcome, batch())
        broke_off = outcome in (Outcome.FAILED, Outcome.INTERRUPTED, Outcome.FENCED)
        assert (await world.catalog.pipeline("shop")).news == (0 if broke_off else 10)

    async def test_rows_of_a_run_that_broke_off_are_news_with_the_next(self, world: World) -> None:
        """What waits for this pipeline would never see them otherwise."""
        await world.run("shop", Outcome.FAILED, batch())
        await world.run("shop", Outcome.NOTHING_NEW)
        assert (await world.catalog.pipeline("shop")).news == 10

    async def test_a_run_without_rows_is_no_news(self, world: World) -> None:
        await world.run("shop", Outcome.SUCCEEDED, batch())
        before = await world.catalog.pipeline("shop")
        await world.run("shop", Outcome.SUCCEEDED, batch(1, rows=0))
        assert (await world.catalog.pipeline("shop")).news == before.news

    async def test_each_stream_has_its_own_outcome(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch())
        failed = result(Outcome.FAILED, "items", error=ErrorClass.PERMANENT)
        await world.finish(lease, Outcome.FAILED, result(), failed)
        items, orders = await world.catalog.streams("shop")
        assert (items.stream, items.last_outcome) == ("items", Outcome.FAILED)
        assert items.last_reason == failed.reason
        assert (orders.last_outcome, orders.seq) == (Outcome.SUCCEEDED, 1)

    async def test_a_stream_that_the_run_did_not_reach_keeps_its_outcome(
        self, world: World
    ) -> None:
        lease = await world.lease()
        await world.finish(lease, Outcome.FAILED, result(Outcome.FAILED))
        lease = await world.lease()
        await world.finish(lease, Outcome.SUCCEEDED, result(stream="items"))
        outcomes = [stream.last_outcome for stream in await world.catalog.streams("shop")]
        assert outcomes == [Outcome.SUCCEEDED, Outcome.FAILED]

    async def test_a_hold_is_recorded_on_stream_and_pipeline(self, world: World) -> None:
        await world.hold(schema_hold(), "orders")
        await world.hold(schema_hold(), "items")
        assert (await world.catalog.pipeline("shop")).held == ("items", "orders")
        holds = [stream.hold for stream in await world.catalog.streams("shop")]
        assert holds == [schema_hold(), schema_hold()]

    async def test_a_newer_hold_takes_the_place_of_the_older(self, world: World) -> None:
        await world.hold(schema_hold("f2"))
        await world.hold(schema_hold("f3"))
        (stream,) = await world.catalog.streams("shop")
        assert stream.hold == schema_hold("f3")

    async def test_a_hold_stays_until_a_person_answers(self, world: World) -> None:
        await world.hold(schema_hold())
        lease = await world.lease()
        await world.finish(lease, Outcome.SUCCEEDED, result())
        (stream,) = await world.catalog.streams("shop")
        assert stream.hold == schema_hold()

    async def test_a_directive_adopt_ends_when_it_was_carried_out(self, world: World) -> None:
        await world.run("shop", Outcome.SUCCEEDED, batch(), published=(("orders", 1),))
        await world.edit(Adopt("shop", "orders"))
        lease = await world.lease()
        await world.finish(lease, Outcome.FAILED, result(Outcome.FAILED))
        assert (await world.catalog.streams("shop"))[0].directive == "adopt"
        lease = await world.lease()
        await world.finish(lease, Outcome.SUCCEEDED, result(adopted=True, marked_by=lease.epoch))
        (stream,) = await world.catalog.streams("shop")
        assert (stream.directive, stream.published_by) == ("", lease.epoch)
        await world.edit(Adopt("shop", "orders"))
        await world.finish(await world.lease(), Outcome.SUCCEEDED, result(adopted=True))
        assert (await world.catalog.streams("shop"))[0].published_by == lease.epoch

    async def test_an_adoption_leaves_a_directive_refresh(self, world: World) -> None:
        await world.edit(Refresh("shop", "orders"))
        lease = await world.lease()
        await world.finish(lease, Outcome.SUCCEEDED, result(adopted=True, marked_by=lease.epoch))
        (stream,) = await world.catalog.streams("shop")
        assert (stream.directive, stream.published_by) == ("refresh", 0)

    async def test_a_cancel_ends_with_its_run(self, world: World) -> None:
        lease = await world.lease()
        await world.edit(CancelRun("shop"))
        await world.finish(lease, Outcome.CANCELLED)
        assert (await world.catalog.pipeline("shop")).cancel == 0

    async def test_a_cancel_of_an_older_run_is_not_ended_by_another(self, world: World) -> None:
        old = await world.lease()
        await world.edit(CancelRun("shop"))
        world.lapse()
        await world.finish(await world.lease(holder=BETA))
        assert (await world.catalog.pipeline("shop")).cancel == old.epoch

    async def test_a_run_may_park_its_pipeline(self, world: World) -> None:
        await world.run("shop", Outcome.FAILED, park="the password is wrong")
        state = await world.catalog.pipeline("shop")
        now = world.clock.wall_us()
        assert state.parked == Mark("daemon", now, "the password is wrong")
        await world.run("shop", Outcome.SUCCEEDED)
        assert (await world.catalog.pipeline("shop")).parked == state.parked

    async def test_a_pause_during_a_run_outlives_the_run_and_its_lease_does_not(
        self, world: World
    ) -> None:
        lease = await world.lease()
        world.lapse()
        await world.edit(Pause("shop"))
        await world.finish(lease)
        state = await world.catalog.pipeline("shop")
        assert state.paused is not None
        assert (state.lease_expires_at, state.lapsed) == (None, False)


@pytest.mark.anyio
class TestFolding:
    async def test_consecutive_runs_with_nothing_new_fold_into_the_newest(
        self, world: World
    ) -> None:
        start = world.clock.wall_us()
        epochs = []
        for _ in range(3):
            epochs.append((await world.run("shop", Outcome.NOTHING_NEW)).epoch)
            world.clock.advance(60)
        (row,) = await world.catalog.runs(RunQuery("shop"))
        assert (row.epoch, row.count, row.first_started_at) == (epochs[-1], 3, start)
        assert row.started_at == start + 120 * 10**6
        assert await world.catalog.run(epochs[0]) is None

    async def test_finish_answers_with_the_folded_row(self, world: World) -> None:
        await world.run("shop", Outcome.NOTHING_NEW)
        row = await world.run("shop", Outcome.NOTHING_NEW)
        assert row.count == 2
        assert await world.catalog.run(row.epoch) == row

    @pytest.mark.parametrize("other", [o for o in Outcome if o is not Outcome.NOTHING_NEW])
    async def test_another_outcome_between_ends_the_fold(
        self, world: World, other: Outcome
    ) -> None:
        for outcome in (Outcome.NOTHING_NEW, other, Outcome.NOTHING_NEW):
            await world.run("shop", outcome)
        rows = await world.catalog.runs(RunQuery("shop"))
        assert [(row.outcome, row.count) for row in rows] == [
            (Outcome.NOTHING_NEW, 1),
            (other, 1),
            (Outcome.NOTHING_NEW, 1),
        ]

    async def test_a_run_is_folded_into_the_next_one_only(self, world: World) -> None:
        for outcome in (Outcome.SUCCEEDED, Outcome.FAILED, *[Outcome.NOTHING_NEW] * 3):
            await world.run("shop", outcome)
        rows = await world.catalog.runs(RunQuery("shop"))
        assert [(row.outcome, row.count) for row in rows] == [
            (Outcome.NOTHING_NEW, 3),
            (Outcome.FAILED, 1),
            (Outcome.SUCCEEDED, 1),
        ]

    @pytest.mark.parametrize(
        ("was", "newest", "count"),
        [
            (Outcome.FAILED, Outcome.NOTHING_NEW, 2),
            (Outcome.NOTHING_NEW, Outcome.FAILED, 1),
        ],
    )
    async def test_a_renamed_pipelines_run_follows_the_newest_by_either_name(
        self, world: World, was: Outcome, newest: Outcome, count: int
    ) -> None:
        await world.run("shop", was)
        await world.run("store", newest)
        await world.edit(Rename("store", "shop"))
        assert (await world.run("store", Outcome.NOTHING_NEW)).count == count

    async def test_runs_of_pipelines_fold_apart(self, world: World) -> None:
        for name in ("a", "b", "a"):
            await world.run(name, Outcome.NOTHING_NEW)
        rows = await world.catalog.runs(RunQuery())
        assert [(row.pipeline, row.count) for row in rows] == [("a", 2), ("b", 1)]

    async def test_commits_of_folded_runs_stay(self, world: World) -> None:
        """A run that only moved its cursor found nothing new, and yet has a batch."""
        await world.run("shop", Outcome.NOTHING_NEW, batch(0, rows=0))
        await world.run("shop", Outcome.NOTHING_NEW, batch(1, rows=0))
        assert [row.seq for row in await world.catalog.commits("shop")] == [2, 1]
