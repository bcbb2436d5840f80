"""What follows a failed run. Pure: time and chance are given in."""

from __future__ import annotations

from dataclasses import dataclass

from catalog.records import ErrorClass, Micros, PipelineState
from reconciler.config.desired import Pipeline

BASE_SECONDS = 5.0
CAP_SECONDS = 600.0
PARK_AFTER = 3
"""Consecutive failed runs with a permanent error, until a person has to look."""


@dataclass(frozen=True, slots=True)
class NextStep:
    """``retry_at`` None: not before its next trigger. ``park``: why a person is needed; or ``""``.

    A pipeline is not started before ``retry_at`` by its schedule either; a person can.
    """

    retry_at: Micros | None = None
    park: str = ""


def retry_delay(attempt: int, rand: float) -> float:
    """Seconds to wait after the ``attempt``-th failure in a row (from 1): 5, 10, 20 … 600.

    ``rand`` in [0, 1) takes up to half of it away, so that what failed together does not come
    back together.
    """
    whole = min(BASE_SECONDS * 2.0 ** min(attempt - 1, 30), CAP_SECONDS)
    return whole * (1 - rand / 2)


def after_failure(
    pipeline: Pipeline,
    state: PipelineState,
    error: ErrorClass,
    retry_after: float | None,
    now: Micros,
    rand: float,
) -> NextStep:
    """What is to happen after a run failed with ``error``; ``state`` is as before that run.

    - ``transient``, ``rate_limited``: again after a delay, ``retries`` times in a row; then with
      the next trigger. What a source tells to wait (``retry_after``, seconds) is waited always.
    - ``permanent``: with the next trigger; parked after the third failed run in a row.
    - ``auth_expired``, ``cursor_expired``, ``schema_incompatible``: parked at once, since trying
      again changes nothing and may lock an account.
    """
    attempt = state.failures + 1
    name = pipeline.name
    match error:
        case ErrorClass.TRANSIENT | ErrorClass.RATE_LIMITED:
            return _again(pipeline.retries, attempt, retry_after, now, rand)
        case ErrorClass.AUTH_EXPIRED:
            return NextStep(
                park=f"the sign-in was refused; renew it, then `reconciler resume {name}`"
            )
        case ErrorClass.CURSOR_EXPIRED:
            return NextStep(
                park="the source no longer knows the position that the cursor stands at; "
                f"`reconciler refresh {name}.STREAM` reads that stream again from its beginning, "
                f"then `reconciler resume {name}`"
            )
        case ErrorClass.SCHEMA_INCOMPATIBLE:
            return NextStep(
                park="the destination cannot take what the source has; do what its last run says, "
                f"or change the stream's `query` or `columns`, then `reconciler resume {name}`"
            )
        case ErrorClass.PERMANENT:
            if attempt < PARK_AFTER:
                return NextStep()
            return NextStep(
                park=f"{attempt} runs in a row failed with an error that trying again does not "
                f"mend; mend it, then `reconciler resume {name}`"
            )


def _again(
    retries: int, attempt: int, retry_after: float | None, now: Micros, rand: float
) -> NextStep:
    if attempt > retries and retry_after is None:
        return NextStep()
    delay = max(retry_delay(attempt, rand) if attempt <= retries else 0.0, retry_after or 0.0)
    return NextStep(retry_at=now + round(delay * 1e6))
