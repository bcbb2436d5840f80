"""The answer to *why does it not run?*: the cause, what it is not, and what to type."""

from __future__ import annotations

import msgspec
import pytest

from catalog.records import (
    Hold,
    HoldKind,
    Mark,
    Outcome,
    PipelineState,
    Request,
    StreamState,
)
from reconciler.config.desired import Cron, Every, Pipeline
from reconciler.plan.plan import decide, orphaned
from reconciler.plan.why import Facts, Room, Why, commands, lines, why
from reconciler.plan.words import schedule_words, since, span, these
from tests.replacing import replace

SECOND = 10**6
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
NINE = 1_795_510_800 * SECOND  # 2026-11-24 09:00 UTC

SHOP = Pipeline(
    "shop",
    "shop_db",
    "warehouse",
    schedule=Cron("0 * * * *"),
    fresh_within=2 * 3600.0,
    select=("*",),
)
GOOD = PipelineState(
    "shop",
    version=9,
    epoch=40,
    tick=NINE,
    last_outcome=Outcome.SUCCEEDED,
    last_reason="12 rows in 1 stream",
    last_epoch=40,
    last_started_at=NINE,
    last_finished_at=NINE + MINUTE,
    last_success_at=NINE + MINUTE,
)
NOW = NINE + 30 * MINUTE
ROOMS = (Room("shop_db", 1, 2), Room("warehouse", 1))
FACTS = Facts(NOW, rooms=ROOMS, daemon="up", open_runs=3, max_runs=8)
HOLD = Hold(
    HoldKind.SCHEMA, "Column 'a' retyped from int64 to text.", NOW, ("approve", "reject"), 1, "ff"
)


def ask(
    state: PipelineState, facts: Facts = FACTS, desired: Pipeline = SHOP, *, running: bool = False
) -> Why:
    action = decide(desired, state, facts.upstream, facts.now, running=running)
    return why(desired, state, action, facts)


def ruled_out(answer: Why) -> list[str]:
    return [c.text for c in answer.checked if c.ok]


def seen(answer: Why) -> list[str]:
    return [c.text for c in answer.checked if not c.ok]


def test_a_paused_pipeline_is_answered_in_full() -> None:
    state = replace(
        GOOD, tick=NINE - HOUR, last_started_at=NINE - HOUR, paused=Mark("ada", NINE, "moving")
    )
    assert lines(ask(state)) == [
        "shop does not run now: it is paused by ada since 2026-11-24 09:00:00Z: moving.",
        "",
        "Not the cause:",
        "  not parked",
        "  lease free",
        "  no failed run to wait for",
        "  due since 2026-11-24 09:00:00Z (cron '0 * * * *' in UTC)",
        "  connection shop_db has room: 1 of 2 runs",
        "  connection warehouse has no limit (1 open)",
        "  a daemon serves this project",
        "  3 of 8 runs are under way (`daemon.max_runs`)",
        "  no stream is held",
        "",
        "Seen:",
        "  paused by ada since 2026-11-24 09:00:00Z",
        "",
        "Next: once resumed, at once: due since 2026-11-24 09:00:00Z (cron '0 * * * *' in UTC)",
        "Last: run 40 succeeded at 2026-11-24 09:01:00Z (29m ago): 12 rows in 1 stream",
        "Data: 29m old, of 2026-11-24 09:01:00Z; fresh (wanted within 2h)",
        "",
        "Type: reconciler resume shop",
    ]


def test_a_parked_pipeline_names_why_and_how_to_go_on() -> None:
    state = replace(GOOD, parked=Mark("reconciler", NINE, "the sign-in was refused"))
    answer = ask(state)
    assert "it is parked by reconciler" in answer.answer
    assert "the sign-in was refused" in answer.answer
    assert answer.command == "reconciler resume shop"
    assert answer.next == "once resumed, 2026-11-24 10:00:00Z (in 30m)"


def test_a_pipeline_that_is_not_due_says_when_it_is() -> None:
    answer = ask(GOOD)
    assert answer.code == "next_tick"
    assert answer.answer == (
        "shop does not run now: it is not due; next at 2026-11-24 10:00:00Z "
        "(cron '0 * * * *' in UTC)."
    )
    assert (answer.next, answer.next_at) == ("2026-11-24 10:00:00Z (in 30m)", NINE + HOUR)
    assert answer.command == "reconciler run shop"
    assert not answer.runs


def test_a_running_pipeline_names_its_run_and_what_comes_after() -> None:
    state = replace(GOOD, epoch=41, holder="host-1", lease_expires_at=NOW + 20 * SECOND)
    for running in (True, False):
        answer = ask(state, running=running)
        assert answer.runs
        assert answer.answer == "shop runs now: run 41, conducted by host-1."
        assert answer.next == "after this run, 2026-11-24 10:00:00Z (in 30m)"
        assert answer.command == "reconciler show 41"
        assert seen(answer) == ["lease held by host-1 for run 41"]


def test_a_run_being_cancelled_says_so() -> None:
    state = replace(GOOD, epoch=41, holder="host-1", cancel=41)
    answer = ask(state, running=True)
    assert answer.answer == (
        "shop runs now: run 41, conducted by host-1; a person asked to cancel it, and it is ending."
    )
    answer = ask(replace(state, cancel=40), running=True)
    assert answer.answer == "shop runs now: run 41, conducted by host-1.", "it was another run"


DUE = replace(GOOD, tick=NINE - HOUR, last_started_at=NINE - HOUR)


def test_a_due_pipeline_runs_at_once() -> None:
    answer = ask(DUE)
    assert answer.answer.startswith("shop runs at once: due since 2026-11-24 09:00:00Z")
    assert answer.command == ""


def test_a_full_connection_is_the_cause_and_is_named() -> None:
    answer = ask(DUE, replace(FACTS, rooms=(Room("shop_db", 2, 2), Room("warehouse", 1))))
    assert answer.code == "connection_full"
    assert "waits for room: connection shop_db has 2 of 2 runs" in answer.answer
    assert seen(answer) == ["connection shop_db is full: 2 of 2 runs"]
    assert "connection warehouse has no limit (1 open)" in ruled_out(answer)
    assert answer.command == "reconciler leases"


def test_without_a_daemon_the_command_runs_it_here() -> None:
    answer = ask(DUE, replace(FACTS, daemon="down"))
    assert answer.code == "daemon_down"
    assert answer.command == "reconciler run shop"
    assert ask(DUE, replace(FACTS, daemon="unknown")).code == "tick"


def test_the_daemons_own_limit_is_a_cause() -> None:
    answer = ask(DUE, replace(FACTS, open_runs=8))
    assert answer.code == "max_runs"
    assert "8 of 8 runs are under way (`daemon.max_runs`)" in answer.answer


def test_a_lapsed_lease_is_no_cause() -> None:
    answer = ask(replace(DUE, epoch=41, holder="host-1", lapsed=True))
    assert answer.code == "takeover"
    assert "lease of run 41 lapsed: its holder host-1 stopped" in ruled_out(answer)


def test_a_wait_after_a_failure_can_be_cut_short() -> None:
    state = replace(
        GOOD,
        last_outcome=Outcome.FAILED,
        last_reason="connection refused",
        failures=2,
        retry_at=NOW + 5 * MINUTE,
    )
    answer = ask(state)
    assert "2 runs in a row failed: connection refused" in answer.answer
    assert answer.next == "2026-11-24 09:35:00Z (in 5m)"
    assert answer.command == "reconciler retry shop"
    assert "waits until 2026-11-24 09:35:00Z to try again" in seen(answer)
    stopped = ask(replace(state, last_outcome=Outcome.INTERRUPTED))
    assert stopped.command == "reconciler retry shop"
    over = ask(replace(state, retry_at=NOW - MINUTE))
    assert over.code == "retry"
    assert seen(over) == []


def test_what_was_renamed_has_nothing_to_type() -> None:
    """To resume it would begin another pipeline by a name that it had."""
    mark = Mark(by="the config", at=NOW, why="shop is store in the config")
    answer = ask(PipelineState("shop", version=9, origin="shop~1", paused=mark))
    assert (answer.code, answer.command) == ("paused", "")


def test_a_failed_pipeline_without_retries_left_says_so() -> None:
    state = replace(GOOD, last_outcome=Outcome.FAILED, failures=6)
    answer = ask(state)
    assert "6 runs in a row failed, but it waits for no retry, no retry is left" in ruled_out(
        answer
    )
    assert answer.command == "reconciler retry shop"
    left = ask(replace(state, failures=5))
    assert "5 runs in a row failed, but it waits for no retry" in ruled_out(left)


def test_held_streams_come_with_their_choices() -> None:
    state = replace(GOOD, held=("orders",))
    facts = replace(FACTS, streams=(StreamState("shop", "orders", hold=HOLD),))
    answer = ask(state, facts)
    assert seen(answer)[-1] == "1 stream is held (orders); the others run"
    assert answer.held[0].commands == (
        "reconciler approve shop.orders",
        "reconciler reject shop.orders",
    )
    assert answer.command == "reconciler approve shop.orders"
    shown = lines(answer)
    assert "orders is held: Column 'a' retyped from int64 to text." in shown
    assert "  reconciler reject shop.orders" in shown


def test_a_hold_of_a_stream_that_the_config_reads_no_more_waits_for_nobody() -> None:
    facts = replace(FACTS, streams=(StreamState("shop", "orders", hold=HOLD),))
    answer = ask(replace(GOOD, held=("orders",)), facts, replace(SHOP, select=("*", "!orders")))
    assert (answer.code, answer.held) == ("next_tick", ())
    assert "no stream is held" in [c.text for c in answer.checked]


def test_asked_about_a_held_stream_the_hold_is_the_cause() -> None:
    streams = (
        StreamState(
            "shop", "orders", hold=HOLD, last_outcome=Outcome.HELD, last_reason=HOLD.reason
        ),
        StreamState("shop", "people", last_outcome=Outcome.SUCCEEDED, last_reason="3 rows"),
    )
    facts = replace(FACTS, streams=streams, stream="orders")
    answer = ask(replace(GOOD, held=("orders",)), facts)
    assert (answer.target, answer.code) == ("shop.orders", "held")
    assert answer.answer.startswith("shop.orders is not loaded: it is held. Column 'a'")
    assert [line for line in lines(answer) if "Column 'a'" in line] == [answer.answer]
    other = ask(replace(GOOD, held=("orders",)), replace(facts, stream="people"))
    assert (other.code, other.held, other.last) == ("next_tick", (), "succeeded: 3 rows")


def test_missing_news_from_upstream_is_named() -> None:
    report = Pipeline("shop", "a", "b", after=("orders", "people"))
    answer = ask(GOOD, replace(FACTS, upstream={"orders": 1}), report)
    assert answer.answer == "shop does not run now: it waits for something new from people."


def test_a_pipeline_without_any_trigger_waits_for_a_person() -> None:
    answer = ask(GOOD, desired=replace(SHOP, schedule=None))
    assert "has neither `schedule` nor `after`" in answer.answer
    assert answer.command == "reconciler run shop"


def test_an_orphan_is_explained() -> None:
    answer = why(None, GOOD, orphaned(), FACTS)
    assert answer.code == "orphaned"
    assert "not in the config" in answer.answer
    assert answer.command == ""


def test_a_request_behind_a_pause_is_not_forgotten() -> None:
    state = replace(GOOD, request=Request("r", "bob", NOW), paused=Mark("ada", NINE, ""))
    assert ask(state).next == "once resumed, at once: asked for by bob"


@pytest.mark.parametrize(
    ("age", "fresh", "words"),
    [
        (-HOUR, True, "0s old, of 2026-11-24 10:30:00Z; fresh (wanted within 2h)"),
        (2 * HOUR, True, "2h old, of 2026-11-24 07:30:00Z; fresh (wanted within 2h)"),
        (HOUR, True, "1h old, of 2026-11-24 08:30:00Z; fresh (wanted within 2h)"),
        (3 * HOUR, False, "3h old, of 2026-11-24 06:30:00Z; late by 1h (wanted within 2h)"),
        (None, False, "none yet; wanted within 2h"),
    ],
)
def test_freshness_is_the_age_of_the_newest_data(age: int | None, fresh: bool, words: str) -> None:
    newest = None if age is None else NOW - age
    for state in (
        replace(GOOD, last_success_at=newest, data_at=None),
        replace(GOOD, last_success_at=None, data_at=newest),
        replace(GOOD, last_success_at=newest, data_at=newest and NOW - 9 * HOUR),
    ):
        answer = ask(state)
        assert (answer.fresh, answer.freshness) == (fresh, words)


def test_the_record_is_json_as_it_is() -> None:
    found = msgspec.json.decode(msgspec.json.encode(ask(DUE)))
    assert found["command"] == ""
    assert {"what", "ok", "text"} == set(found["checked"][0])


def test_a_choice_is_typed_with_its_options_last() -> None:
    assert commands("shop.orders", ("cursor rewind --to-destination", "mend the file")) == (
        "reconciler cursor rewind shop.orders --to-destination",
        "mend the file",
    )


def test_a_choice_for_a_name_with_blanks_is_typed_as_a_shell_takes_it() -> None:
    assert commands("shop.public.Order Items", ("approve",)) == (
        "reconciler approve 'shop.public.Order Items'",
    )


def test_words_for_spans_lists_and_schedules() -> None:
    assert [span(s) for s in (0.5, 1, 90, 3600, 5400, 90_061)] == [
        "0.5s",
        "1s",
        "1m 30s",
        "1h",
        "1h 30m",
        "1d 1h",
    ]
    assert [span(s) for s in (1.2, 1.5, 86_700)] == ["1s", "2s", "1d"]
    assert these(()) == ""
    assert these(("a",)) == "a"
    assert these(("a", "b", "c")) == "a, b and c"
    assert these(tuple("abcde")) == "a, b, c, d and e"
    assert these(tuple("abcdef")) == "a, b, c, d, e and 1 more"
    assert schedule_words(Every(900)) == "every 15m"
    assert these(tuple("abcdefgh")) == "a, b, c, d, e and 3 more"
    assert schedule_words(Cron("0 3 * * *", "Europe/Berlin")) == "cron '0 3 * * *' in Europe/Berlin"


def test_a_moment_is_shown_with_its_distance_in_whole_seconds() -> None:
    distances = [since(NINE, NINE + int(s * SECOND)) for s in (0, 0.5, 1, 1.5, -1, -7200)]
    assert distances == [
        f"2026-11-24 09:00:00Z ({words})"
        for words in ("now", "now", "1s ago", "1s ago", "in 1s", "in 2h")
    ]


def test_each_thing_that_was_looked_at_has_its_name() -> None:
    answer = ask(GOOD, replace(FACTS, open_runs=8))
    assert [(one.what, one.ok) for one in answer.checked] == [
        ("paused", True),
        ("parked", True),
        ("lease", True),
        ("failures", True),
        ("trigger", False),
        ("connection shop_db", True),
        ("connection warehouse", True),
        ("daemon", True),
        ("max_runs", False),
        ("held", True),
    ]
    waiting = ask(replace(GOOD, failures=1, retry_at=NOW + HOUR, held=("a", "b")))
    assert ("failures", False) in [(one.what, one.ok) for one in waiting.checked]
    (held,) = [one for one in waiting.checked if one.what == "held"]
    assert (held.ok, held.text) == (False, "2 streams are held (a and b); the others run")
    by_hand = ask(GOOD, desired=replace(SHOP, schedule=None))
    assert "neither `schedule` nor `after`" in seen(by_hand)


def test_a_pipeline_that_never_ran_to_an_end_says_so() -> None:
    assert ask(PipelineState("shop")).last == "it has never run to an end"


def test_a_run_of_this_process_is_conducted_here() -> None:
    answer = ask(replace(GOOD, epoch=41), running=True)
    assert answer.answer == "shop runs now: run 41, conducted here."


def test_what_a_run_under_way_answers_is_not_what_comes_after_it() -> None:
    state = replace(GOOD, epoch=41, request=Request("r", "bob", NOW), last_started_at=NOW - MINUTE)
    assert ask(state, running=True).next == "after this run, 2026-11-24 10:00:00Z (in 30m)"


def test_the_end_of_a_pause_is_not_the_end_of_a_wait_for_a_retry() -> None:
    state = replace(DUE, paused=Mark("ada", NINE, ""), retry_at=NOW + 5 * MINUTE)
    answer = ask(state)
    assert answer.next == "once resumed, 2026-11-24 09:35:00Z (in 5m)"
    assert any(text.startswith("due since 2026-11-24 09:00") for text in ruled_out(answer))


def test_a_hold_without_choices_has_no_command() -> None:
    streams = (StreamState("shop", "orders", hold=replace(HOLD, choices=())),)
    answer = ask(replace(GOOD, held=("orders",)), replace(FACTS, streams=streams, stream="orders"))
    assert (answer.code, answer.command) == ("held", "")
    answer = ask(replace(GOOD, held=("orders",)), replace(FACTS, streams=streams))
    assert (answer.code, answer.command) == ("next_tick", "reconciler run shop")


def test_what_a_person_has_to_say_stands_in_the_command() -> None:
    choices = ("refresh", "cursor set", "cursor rewind --to-destination", "wait")
    assert commands("shop.Order Items", choices) == (
        "reconciler refresh 'shop.Order Items'",
        "reconciler cursor set 'shop.Order Items' VALUE",
        "reconciler cursor rewind 'shop.Order Items' --to-destination",
        "wait",
    )


def test_the_lines_of_an_answer_are_set_apart() -> None:
    streams = (StreamState("shop", "orders", hold=HOLD),)
    shown = lines(ask(replace(GOOD, held=("orders",)), replace(FACTS, streams=streams)))
    start = shown.index("orders is held: Column 'a' retyped from int64 to text.")
    assert shown[start - 1 :] == [
        "",
        "orders is held: Column 'a' retyped from int64 to text.",
        "Answer with one of:",
        "  reconciler approve shop.orders",
        "  reconciler reject shop.orders",
        "",
        "Type: reconciler approve shop.orders",
    ]
