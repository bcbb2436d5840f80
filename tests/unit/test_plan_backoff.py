"""What follows a failed run."""

from __future__ import annotations

import pytest

from catalog.records import ErrorClass, PipelineState
from reconciler.config.desired import Pipeline
from reconciler.plan.backoff import NextStep, after_failure, retry_delay

NOW = 1_790_000_000 * 10**6
SHOP = Pipeline("shop", "a", "b", retries=3)


def step(
    error: ErrorClass, failures: int = 0, retry_after: float | None = None, rand: float = 0.0
) -> NextStep:
    state = PipelineState("shop", failures=failures)
    return after_failure(SHOP, state, error, retry_after, NOW, rand)


def waited(found: NextStep) -> float | None:
    return None if found.retry_at is None else (found.retry_at - NOW) / 1e6


def test_delays_double_from_five_seconds_up_to_ten_minutes() -> None:
    delays = [retry_delay(n, 0.0) for n in (1, 2, 3, 7, 8, 9, 10_000)]
    assert delays == [5, 10, 20, 320, 600, 600, 600]


@pytest.mark.parametrize("rand", [0.0, 0.3, 0.999])
def test_chance_takes_away_at_most_half(rand: float) -> None:
    for attempt in (1, 5, 50):
        assert retry_delay(attempt, 0) / 2 < retry_delay(attempt, rand) <= retry_delay(attempt, 0)


def test_chance_takes_away_up_to_half() -> None:
    assert [retry_delay(1, rand) for rand in (0.0, 0.5, 1.0)] == [5, 3.75, 2.5]


@pytest.mark.parametrize("error", [ErrorClass.TRANSIENT, ErrorClass.RATE_LIMITED])
def test_transient_failures_are_tried_again_as_often_as_retries_says(error: ErrorClass) -> None:
    assert [waited(step(error, failures=n)) for n in range(5)] == [5, 10, 20, None, None]
    assert all(step(error, failures=n).park == "" for n in range(50))


def test_a_rate_limited_source_is_left_alone_as_long_as_it_says() -> None:
    assert waited(step(ErrorClass.RATE_LIMITED, retry_after=900)) == 900
    assert waited(step(ErrorClass.RATE_LIMITED, retry_after=1)) == 5
    for seconds in (900, 0.5, 0.0):
        assert waited(step(ErrorClass.RATE_LIMITED, failures=99, retry_after=seconds)) == seconds


def test_a_permanent_error_is_never_tried_again_and_parks_at_the_third() -> None:
    found = [step(ErrorClass.PERMANENT, failures=n) for n in range(3)]
    assert [f.retry_at for f in found] == [None, None, None]
    assert [bool(f.park) for f in found] == [False, False, True]
    assert "`reconciler resume shop`" in found[2].park


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ErrorClass.AUTH_EXPIRED, "the sign-in was refused; renew it"),
        (
            ErrorClass.CURSOR_EXPIRED,
            "the source no longer knows the position that the cursor stands at; `reconciler refresh"
            " shop.STREAM` reads that stream again from its beginning",
        ),
        (
            ErrorClass.SCHEMA_INCOMPATIBLE,
            "the destination cannot take what the source has; do what its last run says, or change "
            "the stream's `query` or `columns`",
        ),
    ],
)
def test_what_trying_again_does_not_mend_parks_at_once(error: ErrorClass, words: str) -> None:
    assert step(error) == NextStep(park=f"{words}, then `reconciler resume shop`")
