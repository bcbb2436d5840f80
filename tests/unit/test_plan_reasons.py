"""Each action's reason is a sentence: what, since when, and what it waits for (rule 8)."""

from __future__ import annotations

import pytest

from catalog.records import Mark, Outcome, PipelineState, Request, TriggerKind
from reconciler.config.desired import Pipeline
from reconciler.plan.plan import Code, Dispatch
from tests.replacing import replace
from tests.unit.test_plan import (
    FAILED,
    HOUR,
    MINUTE,
    RAN,
    SECOND,
    SHOP,
    THREE,
    planned,
    trigger,
    waits,
)

LEASED = replace(RAN, epoch=41, holder="other", lease_expires_at=THREE)
MINE = replace(RAN, epoch=42, holder="me")
LAPSED = replace(LEASED, lapsed=True, last_started_at=THREE + SECOND)
ONCE = replace(FAILED, failures=1)
BY_HAND = replace(SHOP, schedule=None)
AFTER = replace(BY_HAND, after=("up",))
BOTH = replace(SHOP, after=("up", "over"))
AT_THREE = "due since 2026-11-24 03:00:00Z (cron '0 3 * * *' in UTC)"
NOT_DUE = "not due; next at 2026-11-24 03:00:00Z (cron '0 3 * * *' in UTC)"


@pytest.mark.parametrize(
    ("state", "now", "text"),
    [
        (RAN, THREE, AT_THREE),
        (RAN, THREE - HOUR, NOT_DUE),
        (
            LEASED,
            THREE,
            "run 41 is under way, conducted by other; its lease lasts until 2026-11-24 03:00:00Z "
            "unless renewed",
        ),
        (
            replace(LEASED, cancel=41),
            THREE,
            "run 41 is under way, conducted by other, and a person asked to cancel it; its lease "
            "lasts until 2026-11-24 03:00:00Z unless renewed",
        ),
        (
            replace(LEASED, cancel=40, lease_expires_at=None),
            THREE,
            "run 41 is under way, conducted by other",
        ),
        (LAPSED, THREE + MINUTE, f"{AT_THREE}; takes over from run 41, whose holder other stopped"),
        (
            replace(RAN, paused=Mark("ada", THREE, "moving")),
            THREE,
            "paused by ada since 2026-11-24 03:00:00Z: moving",
        ),
        (
            replace(RAN, parked=Mark("daemon", THREE, "")),
            THREE,
            "parked by daemon since 2026-11-24 03:00:00Z",
        ),
        (
            FAILED,
            THREE + MINUTE,
            "2 runs in a row failed: connection refused; tried again at 2026-11-24 04:00:00Z "
            "(retry 2 of 5)",
        ),
        (
            replace(ONCE, last_reason=""),
            THREE + MINUTE,
            "the last run failed; tried again at 2026-11-24 04:00:00Z (retry 1 of 5)",
        ),
        (
            replace(FAILED, failures=6),
            THREE + MINUTE,
            "6 runs in a row failed: connection refused; tried again at 2026-11-24 04:00:00Z",
        ),
        (
            FAILED,
            THREE + HOUR,
            "tried again, 2 runs in a row failed: connection refused (only orders)",
        ),
        (
            replace(ONCE, retry_streams=()),
            THREE + HOUR,
            "tried again, the last run failed: connection refused",
        ),
        (replace(RAN, request=Request("r", "bob", THREE)), THREE, "asked for by bob"),
        (
            replace(RAN, request=Request("r", "bob", THREE, ("a", "b"))),
            THREE,
            "asked for by bob (only a and b)",
        ),
    ],
)
def test_the_reason_says_what_is_going_on(state: PipelineState, now: int, text: str) -> None:
    assert planned(state, now).reason.text == text


@pytest.mark.parametrize(
    ("desired", "now", "upstream", "text"),
    [
        (AFTER, THREE, {"up": 1}, "up brought something new"),
        (AFTER, THREE, {}, "waits for something new from up"),
        (BOTH, THREE - HOUR, {"up": 1, "over": 2}, "up and over each brought something new"),
        (
            BOTH,
            THREE - HOUR,
            {"up": 1},
            f"{NOT_DUE}, or earlier: it waits for something new from over",
        ),
        (
            BY_HAND,
            THREE,
            {},
            "has neither `schedule` nor `after`: it runs when a person asks for it",
        ),
    ],
)
def test_the_reason_names_what_is_waited_for(
    desired: Pipeline, now: int, upstream: dict[str, int], text: str
) -> None:
    assert planned(RAN, now, desired, **upstream).reason.text == text


def test_a_run_of_ones_own_is_named() -> None:
    assert planned(MINE, THREE, running=True).reason.text == "run 42 is under way"
    cancelled = planned(replace(MINE, cancel=42), THREE, running=True)
    assert cancelled.reason.text == "a person asked to cancel run 42"


def test_what_was_interrupted_is_finished_though_nothing_is_due() -> None:
    state = replace(RAN, last_outcome=Outcome.INTERRUPTED)
    action = planned(state, THREE - HOUR)
    assert trigger(action).kind is TriggerKind.RETRY
    assert action.reason.text == "run 40 did not get to its end; finishes what it left"


def test_a_first_run_that_was_lost_waits_since_now() -> None:
    state = PipelineState("shop", epoch=1, holder="other", lapsed=True)
    action = planned(state, THREE, BY_HAND)
    assert isinstance(action, Dispatch)
    assert action.due == THREE


def test_without_catch_up_a_tick_is_on_time_for_a_minute() -> None:
    desired = replace(SHOP, catch_up=False)
    late = THREE + MINUTE
    assert trigger(planned(RAN, late, desired, since=late)).tick == THREE
    waits(planned(RAN, late + 1, desired, since=late + 1), Code.NEXT_TICK)
