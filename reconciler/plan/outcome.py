"""From the outcomes of streams to that of their run (A9). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from catalog.records import ErrorClass, Outcome, StreamResult

_RANK = {outcome: rank for rank, outcome in enumerate(Outcome)}
_GRAVEST = (
    ErrorClass.AUTH_EXPIRED,
    ErrorClass.CURSOR_EXPIRED,
    ErrorClass.SCHEMA_INCOMPATIBLE,
    ErrorClass.PERMANENT,
    ErrorClass.RATE_LIMITED,
    ErrorClass.TRANSIENT,
)
"""Those that a person must see come before those that waiting mends."""


NOTHING_NEW = "nothing new"
"""Where that may surprise, a stream's reason goes on, after a colon, and so does its run's."""


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Fenced, interrupted, cancelled, failed, held, succeeded, nothing_new; of none the last."""
    return min(outcomes, key=_RANK.__getitem__, default=Outcome.NOTHING_NEW)


def run_outcome(results: Sequence[StreamResult]) -> tuple[Outcome, str, ErrorClass | None]:
    """A run's outcome, a sentence about it, and the gravest error class among failed streams."""
    outcome = worst(result.outcome for result in results)
    errors = {r.error or ErrorClass.TRANSIENT for r in results if r.outcome is Outcome.FAILED}
    error = None
    if outcome is Outcome.FAILED:
        error = next(kind for kind in _GRAVEST if kind in errors)
    return outcome, _sentence(outcome, error, results), error


def _sentence(outcome: Outcome, error: ErrorClass | None, results: Sequence[StreamResult]) -> str:
    if not results:
        return "no stream was selected"
    if outcome is Outcome.NOTHING_NEW:
        odd = [result for result in results if result.reason.startswith(f"{NOTHING_NEW}: ")]
        more = f", and {len(odd) - 1} more such" if len(odd) > 1 else ""
        return f"{odd[0].stream}: {odd[0].reason}{more}" if odd else NOTHING_NEW
    if outcome is Outcome.SUCCEEDED:
        rows = sum(result.rows for result in results)
        brought = sum(result.outcome is Outcome.SUCCEEDED for result in results)
        return f"{_count(rows, 'row')} in {_count(brought, 'stream')}"
    those = [result for result in results if result.outcome is outcome]
    # The one whose class decides what happens next is the one to read first.
    those.sort(key=lambda result: (result.error or ErrorClass.TRANSIENT) is not error)
    first = those[0]
    text = f"{first.stream}: {first.reason or outcome.value}"
    if len(results) == 1:
        return text
    return f"{len(those)} of {_count(len(results), 'stream')} {outcome.value}; {text}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
