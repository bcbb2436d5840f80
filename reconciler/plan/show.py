"""The lines that ``reconciler plan`` prints. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from catalog.records import Micros
from reconciler.plan.plan import Action, CancelRun, Dispatch, Wait
from reconciler.plan.words import since, when

Note = tuple[str, str]
"""A stream, and a sentence on what reading it assumes or cannot see (rule 8)."""


def plan_lines(
    entries: Iterable[tuple[str, Action]], notes: Mapping[str, Iterable[Note]], now: Micros
) -> Iterator[str]:
    """One line for each pipeline, in the order given; its streams' notes indented below it."""
    for pipeline, action in entries:
        yield action_line(pipeline, action, now)
        for stream, text in notes.get(pipeline, ()):
            yield f"    {stream}: {text}"


def action_line(pipeline: str, action: Action, now: Micros) -> str:
    """``run shop: due since …``, ``wait shop until …: …``, ``cancel shop: …``."""
    match action:
        case Dispatch():
            return f"run {pipeline}: {action.reason.text}"
        case CancelRun():
            return f"cancel {pipeline}: {action.reason.text}"
        case Wait():
            until = action.until
            if until is None or when(until) in action.reason.text:
                return f"wait {pipeline}: {action.reason.text}"
            return f"wait {pipeline} until {since(until, now)}: {action.reason.text}"
