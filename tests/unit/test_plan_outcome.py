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
