"""The plan: what to do with a pipeline, and why. Each test is a rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalog.records import (
    Mark,
    Outcome,
    PipelineState,
    Request,
    Trigger,
    TriggerKind,
)
from reconciler.config.desired import Cron, Every, Pipeline, Project
from reconciler.plan.plan import (
    Action,
    CancelRun,
    Code,
    Dispatch,
    Wait,
    decide,
    plan_project,
)
from reconciler.plan.schedule import SECOND, latest_due, next_after
from tests.replacing import replace

MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NIGHTLY = Cron("0 3 * * *")
MIDNIGHT = 1_795_478_400 * SECOND  # 2026-11-24 00:00 UTC
THREE = MIDNIGHT + 3 * HOUR

SHOP = Pipeline("shop", "shop_db", "warehouse", schedule=NIGHTLY)
NEVER_RUN = PipelineState("shop")
RAN = PipelineState(
    "shop",
    version=7,
    epoch=40,
    tick=THREE - DAY,
    last_outcome=Outcome.SUCCEEDED,
    last_epoch=40,
    last_started_at=THREE - DAY + SECOND,
    last_finished_at=THREE - DAY + MINUTE,
)


def planned(
    state: PipelineState,
    now: int,
    desired: Pipeline = SHOP,
    *,
    running: bool = False,
    since: int | None = None,
    **upstream: int,
) -> Action:
    return decide(desired, state, upstream, now, running=running, since=since)


def trigger(action: Action) -> Trigger:
    assert isinstance(action, Dispatch), action
    return action.candidate.trigger


def waits(action: Action, code: Code) -> int | None:
    assert isinstance(action, Wait), action
    assert action.reason.code is code
    return action.until


# -- schedules -------------------------------------------------------------------------------------


def test_a_tick_is_due_when_it_comes_and_not_before() -> None:
    assert waits(planned(RAN, THREE - 1), Code.NEXT_TICK) == THREE
    assert trigger(planned(RAN, THREE)) == Trigger(TriggerKind.TICK, tick=THREE)


def test_a_candidate_names_what_claim_checks_again() -> None:
    action = planned(RAN, THREE)
    assert isinstance(action, Dispatch)
    candidate = action.candidate
    assert (candidate.pipeline, candidate.version) == ("shop", 7)
    assert candidate.connections == ("shop_db", "warehouse")
    assert candidate.reason == "due since 2026-11-24 03:00:00Z (cron '0 3 * * *' in UTC)"


def test_a_connection_that_is_source_and_destination_counts_once() -> None:
    action = planned(RAN, THREE, replace(SHOP, destination="shop_db"))
    assert isinstance(action, Dispatch)
    assert action.candidate.connections == ("shop_db",)


def test_every_runs_at_once_when_first_seen() -> None:
    fresh = replace(SHOP, schedule=Every(900))
    assert trigger(planned(NEVER_RUN, THREE, fresh)).kind is TriggerKind.TICK


def test_cron_waits_for_its_next_instant_when_first_seen() -> None:
    seen = THREE - 5 * HOUR
    assert waits(planned(NEVER_RUN, seen, since=seen), Code.NEXT_TICK) == THREE
    assert trigger(planned(NEVER_RUN, THREE, since=seen)).tick == THREE


def test_a_first_cron_run_that_had_to_wait_for_room_is_not_lost() -> None:
    seen = THREE - 5 * HOUR
    assert trigger(planned(NEVER_RUN, THREE + 2 * HOUR, since=seen)).tick == THREE


def test_after_downtime_one_run_makes_up_for_all_missed_ticks() -> None:
    back = THREE + 9 * DAY + HOUR
    assert trigger(planned(RAN, back, since=back)).tick == THREE + 9 * DAY


def test_without_catch_up_missed_ticks_are_skipped() -> None:
    desired = replace(SHOP, catch_up=False)
    back = THREE + 9 * DAY + HOUR
    assert waits(planned(RAN, back, desired, since=back), Code.NEXT_TICK) == THREE + 10 * DAY


def test_without_catch_up_a_short_restart_misses_nothing() -> None:
    desired = replace(SHOP, catch_up=False)
    back = THREE + 50 * SECOND
    assert trigger(planned(RAN, back, desired, since=back)).tick == THREE


def test_without_catch_up_waiting_for_room_is_not_downtime() -> None:
    desired = replace(SHOP, catch_up=False)
    late = THREE + 2 * HOUR
    assert trigger(planned(RAN, late, desired, since=THREE - DAY)).tick == THREE


def test_without_catch_up_an_interrupted_run_is_still_started_again() -> None:
    desired = replace(SHOP, catch_up=False)
    cut = replace(RAN, last_outcome=Outcome.INTERRUPTED, last_started_at=THREE + SECOND)
    back = THREE + 5 * HOUR
    assert trigger(planned(cut, back, desired, since=back)).tick == THREE


def test_a_tick_that_passed_while_running_is_due_once_afterwards() -> None:
    desired = replace(SHOP, schedule=Cron("*/5 * * * *"))
    ran = replace(RAN, tick=THREE, last_started_at=THREE + SECOND)
    later = THREE + 22 * MINUTE
    assert trigger(planned(ran, later, desired)).tick == THREE + 20 * MINUTE


def test_an_edited_schedule_replays_no_older_tick() -> None:
    asked_for = replace(RAN, last_started_at=THREE + 2 * HOUR)
    now = THREE + 2 * HOUR + 4 * MINUTE
    assert waits(planned(asked_for, now), Code.NEXT_TICK) == THREE + DAY
    faster = replace(SHOP, schedule=Cron("*/5 * * * *"))
    assert waits(planned(asked_for, now, faster), Code.NEXT_TICK) == now + MINUTE
    assert trigger(planned(asked_for, now + MINUTE, faster)).tick == now + MINUTE


def test_a_new_schedule_ticks_for_a_pipeline_that_ran_on_request_only() -> None:
    state = replace(RAN, tick=None)
    assert waits(planned(state, THREE - HOUR), Code.NEXT_TICK) == THREE
    assert trigger(planned(state, THREE)).tick == THREE


def test_no_trigger_of_any_kind_waits_for_a_person() -> None:
    action = planned(RAN, THREE, replace(SHOP, schedule=None))
    assert waits(action, Code.NO_TRIGGER) is None
    assert "when a person asks" in action.reason.text


# -- persons ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "code"), [("paused", Code.PAUSED), ("parked", Code.PARKED)])
def test_what_is_put_aside_does_not_run(field: str, code: Code) -> None:
    state = replace(RAN, **{field: Mark("ada", THREE, "moving")})
    action = planned(state, THREE + HOUR)
    assert waits(action, code) is None
    assert action.reason.text == f"{field} by ada since 2026-11-24 03:00:00Z: moving"


def test_a_request_waits_for_the_end_of_a_pause() -> None:
    state = replace(RAN, request=Request("r1", "ada", THREE), paused=Mark("bob", THREE, ""))
    assert waits(planned(state, THREE), Code.PAUSED) is None


def test_a_request_comes_before_all_that_is_due() -> None:
    state = replace(
        RAN, request=Request("r1", "ada", THREE, ("orders",)), retry_at=THREE + HOUR, failures=2
    )
    assert trigger(planned(state, THREE)) == Trigger(
        TriggerKind.REQUEST, request="r1", streams=("orders",)
    )


def test_a_cancelled_run_is_ended_by_who_conducts_it() -> None:
    state = replace(RAN, epoch=41, holder="me", cancel=41)
    action = planned(state, THREE, running=True)
    assert isinstance(action, CancelRun)
    assert action.epoch == 41
    assert waits(planned(state, THREE), Code.LEASED) is None


def test_a_cancel_of_an_older_run_means_nothing() -> None:
    state = replace(RAN, epoch=42, holder="me", cancel=41)
    assert waits(planned(state, THREE, running=True), Code.RUNNING) is None


# -- leases ----------------------------------------------------------------------------------------


def test_a_pipeline_leased_by_another_is_looked_at_when_the_lease_ends() -> None:
    state = replace(RAN, epoch=41, holder="other", lease_expires_at=THREE + 20 * SECOND)
    assert waits(planned(state, THREE), Code.LEASED) == THREE + 20 * SECOND


def test_a_lease_that_should_be_over_is_not_looked_at_without_pause() -> None:
    state = replace(RAN, epoch=41, holder="other", lease_expires_at=THREE - SECOND)
    assert waits(planned(state, THREE), Code.LEASED) == THREE + SECOND


def test_a_lapsed_lease_is_taken_over_at_once_with_its_unconsumed_tick() -> None:
    state = replace(RAN, epoch=41, holder="other", lapsed=True, last_started_at=THREE + SECOND)
    action = planned(state, THREE + MINUTE)
    assert trigger(action).tick == THREE
    assert action.reason.code is Code.TAKEOVER
    assert "takes over from run 41, whose holder other stopped" in action.reason.text


def test_the_very_first_run_interrupted_is_started_again() -> None:
    state = replace(
        NEVER_RUN, epoch=1, last_outcome=Outcome.INTERRUPTED, last_started_at=THREE + SECOND
    )
    back = THREE + 3 * HOUR
    assert trigger(planned(state, back, since=back)).tick == THREE


def test_an_interrupted_run_whose_cause_is_gone_is_finished_all_the_same() -> None:
    state = replace(RAN, last_outcome=Outcome.INTERRUPTED)
    action = planned(state, THREE, replace(SHOP, schedule=None))
    assert trigger(action).kind is TriggerKind.RETRY
    assert "did not get to its end" in action.reason.text


# -- failures --------------------------------------------------------------------------------------

FAILED = replace(
    RAN,
    tick=THREE,
    last_started_at=THREE + SECOND,
    last_outcome=Outcome.FAILED,
    last_reason="connection refused",
    failures=2,
    retry_at=THREE + HOUR,
    retry_streams=("orders",),
)


def test_a_failed_run_waits_and_then_tries_only_what_failed() -> None:
    assert waits(planned(FAILED, THREE + MINUTE), Code.BACKING_OFF) == THREE + HOUR
    assert trigger(planned(FAILED, THREE + HOUR)) == Trigger(TriggerKind.RETRY, streams=("orders",))


def test_a_tick_does_not_cut_a_wait_short() -> None:
    often = replace(SHOP, schedule=Every(60))
    assert waits(planned(FAILED, THREE + 30 * MINUTE, often), Code.BACKING_OFF) == THREE + HOUR


def test_a_tick_due_with_the_retry_runs_all_streams() -> None:
    often = replace(SHOP, schedule=Every(60))
    assert trigger(planned(FAILED, THREE + HOUR, often)).kind is TriggerKind.TICK


def test_without_a_retry_left_the_next_tick_counts() -> None:
    spent = replace(FAILED, retry_at=None, failures=6)
    assert waits(planned(spent, THREE + HOUR), Code.NEXT_TICK) == THREE + DAY


# -- upstream --------------------------------------------------------------------------------------

REPORT = Pipeline("report", "warehouse", "lake", after=("orders", "people"))


def test_after_waits_until_each_upstream_has_brought_something() -> None:
    fresh = PipelineState("report")
    assert waits(planned(fresh, THREE, REPORT), Code.UPSTREAM) is None
    action = planned(fresh, THREE, REPORT, orders=1)
    assert waits(action, Code.UPSTREAM) is None
    assert action.reason.text == "waits for something new from people"
    assert trigger(planned(fresh, THREE, REPORT, orders=1, people=4)) == Trigger(
        TriggerKind.AFTER, news=(("orders", 1), ("people", 4))
    )


def test_after_counts_only_news_since_its_last_run() -> None:
    seen = PipelineState("report", after_seen=(("orders", 5), ("people", 4)))
    assert waits(planned(seen, THREE, REPORT, orders=6, people=4), Code.UPSTREAM) is None
    assert trigger(planned(seen, THREE, REPORT, orders=6, people=5)).kind is TriggerKind.AFTER


def test_after_and_a_schedule_each_start_it() -> None:
    both = replace(REPORT, name="shop", schedule=NIGHTLY)
    assert trigger(planned(RAN, THREE, both)).kind is TriggerKind.TICK
    assert trigger(planned(RAN, THREE - HOUR, both, orders=1, people=1)).kind is TriggerKind.AFTER
    assert waits(planned(RAN, THREE - HOUR, both, orders=1), Code.NEXT_TICK) == THREE


# -- clocks that were ahead ------------------------------------------------------------------------


def _ran_ahead_by(days: int) -> PipelineState:
    """It ran for a tick of days to come, by a clock that was then set right."""
    tick = THREE + days * DAY
    return replace(RAN, tick=tick, last_started_at=tick + SECOND, last_finished_at=tick + MINUTE)


def test_a_clock_that_was_ahead_and_is_set_right_keeps_no_pipeline_waiting() -> None:
    assert trigger(planned(_ran_ahead_by(9), THREE, since=THREE - HOUR)).tick == THREE
    every = replace(SHOP, schedule=Every(3600))
    assert trigger(planned(_ran_ahead_by(9), THREE, every)).kind is TriggerKind.TICK


def test_a_tick_that_a_clock_ahead_has_answered_is_due_when_it_comes() -> None:
    since_then = replace(
        _ran_ahead_by(2), last_started_at=THREE + SECOND, last_finished_at=THREE + MINUTE
    )
    assert waits(planned(since_then, THREE + HOUR), Code.NEXT_TICK) == THREE + DAY
    for day in (1, 2, 3):
        now = THREE + day * DAY
        assert trigger(planned(since_then, now)).tick == now
        since_then = replace(since_then, last_started_at=now, last_finished_at=now + MINUTE)


def test_a_retry_agreed_by_a_clock_that_was_ahead_is_tried_now() -> None:
    ahead = replace(_ran_ahead_by(1), retry_at=THREE + DAY + 2 * MINUTE, failures=1)
    assert trigger(planned(ahead, THREE - HOUR)).kind is TriggerKind.RETRY


def test_a_clock_set_back_by_seconds_runs_no_tick_twice() -> None:
    just = replace(RAN, tick=THREE, last_started_at=THREE + 1, last_finished_at=THREE + SECOND)
    assert waits(planned(just, THREE - 20 * SECOND), Code.NEXT_TICK) == THREE
    assert waits(planned(just, THREE), Code.NEXT_TICK) == THREE + DAY


# -- the whole project -----------------------------------------------------------------------------


def test_the_plan_lists_requests_then_the_longest_due_then_waits_then_orphans() -> None:
    names = ("asked", "old", "new", "later", "idle")
    pipelines = {
        name: replace(SHOP, name=name, schedule=None if name in ("asked", "idle") else NIGHTLY)
        for name in names
    }
    project = Project("p", Path("state"), "sqlite:///x", pipelines=pipelines)
    states = {
        "asked": replace(RAN, name="asked", request=Request("r", "ada", THREE + HOUR)),
        "old": replace(
            RAN, name="old", retry_at=THREE - DAY, failures=1, tick=THREE, last_started_at=THREE
        ),
        "new": replace(RAN, name="new"),
        "later": replace(RAN, name="later", tick=THREE, last_started_at=THREE),
        "gone": replace(RAN, name="gone", request=Request("r", "ada", THREE)),
    }
    plan = plan_project(project, states, THREE + HOUR)
    assert [name for name, _ in plan] == ["asked", "old", "new", "later", "idle", "gone"]
    assert plan[-1][1].reason.code is Code.ORPHANED


def test_the_plan_of_a_project_knows_what_each_pipeline_has_brought() -> None:
    pipelines = {
        "up": replace(SHOP, name="up", schedule=None),
        "down": replace(SHOP, name="down", schedule=None, after=("up",)),
    }
    project = Project("p", Path("state"), "sqlite:///x", pipelines=pipelines)
    states = {"up": replace(RAN, name="up", news=1), "down": replace(RAN, name="down")}
    assert dict(plan_project(project, states, THREE))["down"].reason.code is Code.AFTER


def test_due_and_next_agree_with_the_schedule() -> None:
    every = replace(SHOP, schedule=Every(600))
    state = replace(RAN, tick=THREE, last_started_at=THREE)
    until = waits(planned(state, THREE + SECOND, every), Code.NEXT_TICK)
    assert until is not None
    assert until == next_after(Every(600), "shop", THREE + SECOND)
    assert trigger(planned(state, until, every)).tick == latest_due(
        Every(600), "shop", THREE, until
    )
