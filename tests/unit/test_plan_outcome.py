"""From streams to their run (A9)."""

from __future__ import annotations

from itertools import combinations

from catalog.records import ErrorClass, Outcome, StreamResult
from reconciler.plan.outcome import run_outcome, worst

WORST_FIRST = [
    Outcome.FENCED,
    Outcome.INTERRUPTED,
    Outcome.CANCELLED,
    Outcome.FAILED,
    Outcome.HELD,
    Outcome.SUCCEEDED,
    Outcome.NOTHING_NEW,
]


def failed(stream: str, error: ErrorClass, reason: str) -> StreamResult:
    return StreamResult(stream, Outcome.FAILED, reason, error)


def test_a_run_takes_the_worst_of_its_streams() -> None:
    for worse, better in combinations(WORST_FIRST, 2):
        assert worst([better, worse, better]) is worse
    assert worst([]) is Outcome.NOTHING_NEW


def test_a_run_without_streams_says_so() -> None:
    assert run_outcome([]) == (Outcome.NOTHING_NEW, "no stream was selected", None)


def test_success_counts_rows_and_streams() -> None:
    results = [
        StreamResult("a", Outcome.SUCCEEDED, rows=1_200),
        StreamResult("b", Outcome.NOTHING_NEW),
    ]
    assert run_outcome(results) == (Outcome.SUCCEEDED, "1,200 rows in 1 stream", None)


def test_a_run_that_found_nothing_says_so() -> None:
    results = [StreamResult(name, Outcome.NOTHING_NEW, "up to the bound") for name in "ab"]
    assert run_outcome(results) == (Outcome.NOTHING_NEW, "nothing new", None)


def test_a_run_that_found_nothing_says_where_that_may_surprise() -> None:
    results = [StreamResult("a", Outcome.NOTHING_NEW, "nothing new up to the bound")]
    for name in ("b", "c"):
        results.append(StreamResult(name, Outcome.NOTHING_NEW, "nothing new: a file waits"))
        more = ", and 1 more such" if name == "c" else ""
        assert run_outcome(results)[1] == f"b: nothing new: a file waits{more}"


def test_one_row_and_several_streams_are_counted_as_such() -> None:
    results = [StreamResult(name, Outcome.SUCCEEDED, rows=len(name) - 1) for name in ("a", "bb")]
    results.append(StreamResult("c", Outcome.NOTHING_NEW))
    assert run_outcome(results)[1] == "1 row in 2 streams"


def test_of_a_single_stream_only_the_reason_is_said() -> None:
    assert run_outcome([failed("a", ErrorClass.PERMANENT, "no such table")])[1] == (
        "a: no such table"
    )
    assert run_outcome([StreamResult("a", Outcome.CANCELLED)])[1] == "a: cancelled"


def test_a_failure_without_a_class_may_be_transient() -> None:
    results = [
        failed("a", ErrorClass.RATE_LIMITED, "slower"),
        StreamResult("b", Outcome.FAILED, "its worker died"),
    ]
    assert run_outcome(results[1:])[2] is ErrorClass.TRANSIENT
    assert run_outcome(results)[2] is ErrorClass.RATE_LIMITED
    results = [StreamResult("b", Outcome.FAILED, "died"), failed("c", ErrorClass.TRANSIENT, "x")]
    assert run_outcome(results)[1] == "2 of 2 streams failed; b: died"


def test_only_failed_streams_have_a_say_in_the_class() -> None:
    results = [
        failed("a", ErrorClass.TRANSIENT, "timeout"),
        StreamResult("b", Outcome.HELD, "key changed", ErrorClass.PERMANENT),
    ]
    assert run_outcome(results)[2] is ErrorClass.TRANSIENT


def test_one_failed_stream_is_named_with_its_reason() -> None:
    results = [
        StreamResult("a", Outcome.SUCCEEDED, rows=3),
        failed("b", ErrorClass.TRANSIENT, "timeout"),
    ]
    outcome, reason, error = run_outcome(results)
    assert (outcome, error) == (Outcome.FAILED, ErrorClass.TRANSIENT)
    assert reason == "1 of 2 streams failed; b: timeout"


def test_the_gravest_class_decides_and_is_the_one_to_read() -> None:
    results = [
        failed("a", ErrorClass.TRANSIENT, "timeout"),
        failed("b", ErrorClass.AUTH_EXPIRED, "password refused"),
    ]
    outcome, reason, error = run_outcome(results)
    assert (outcome, error) == (Outcome.FAILED, ErrorClass.AUTH_EXPIRED)
    assert reason == "2 of 2 streams failed; b: password refused"


def test_a_held_stream_makes_the_run_held() -> None:
    results = [StreamResult("a", Outcome.HELD, "key changed"), StreamResult("b", Outcome.SUCCEEDED)]
    outcome, reason, error = run_outcome(results)
    assert (outcome, reason, error) == (Outcome.HELD, "1 of 2 streams held; a: key changed", None)
