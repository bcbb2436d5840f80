"""What reads assume and cannot see, said before anything is read (rule 8, C1, C2, C5). Pure.

A run says the same and more, of what it met, in its log (`run_note`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from catalog.records import StreamState
from reconciler.config.desired import Connection, Mode, Pipeline, StreamSettings

Note = tuple[str, str]
"""A stream (or ``*``: those that ``select`` finds), and a sentence."""

_TIMES = ("timestamp", "naive_timestamp", "date")
"""What PostgreSQL calls so. SQLite's are texts, and numbers like any other."""


def notes(pipeline: Pipeline, source: Connection, streams: Iterable[StreamState]) -> list[Note]:
    """The assumptions behind each stream of a pipeline, known streams by name."""
    tags = {s.stream: s.cursor.position.tag for s in streams if s.cursor is not None}
    names = dict.fromkeys((*pipeline.streams, *tags))
    if pipeline.select:
        names["*"] = None
    return [
        (name, text)
        for name in names
        for text in _of_stream(pipeline.settings(name), source, tags.get(name, ""))
    ]


def _of_stream(settings: StreamSettings, source: Connection, tag: str) -> Iterator[str]:
    if settings.mode is Mode.REPLACE:
        return  # all is read again whenever anything came, changed or went
    if source.connector == "files":
        what = "is held" if settings.changed == "hold" else "is read again"
        yield f"a file that changes after it was read {what}; one that is deleted is not noticed"
        return
    if source.connector != "sql":
        return
    if not settings.cursor or tag == "snapshot":  # it is named for others, and this table lacks it
        yield 'rows that are deleted at the source stay: mode = "replace" takes them away'
        return
    yield "deletes, and rows whose key changed, are not seen by a cursor"
    if set(settings.cursor) & set(settings.key):
        yield "rows that change are not seen either: the cursor is a column of the key, and stays"
    if settings.null_cursor == "skip":
        yield "rows without a cursor value are left out, and counted"
    postgres = str(source.options.get("url", "")).startswith("postgresql")
    by_time = not tag or tag in _TIMES or not postgres
    if settings.stamped_by == "application" and by_time:
        settle = 10.0 if settings.settle is None else settings.settle
        yield f"rows that become visible more than {settle:g} s after their stamp are missed"
    elif not postgres:
        yield "the writer is taken to stamp rows inside the transaction that inserts them"
    elif not (by_time or (settings.mode is Mode.MERGE and settings.lookback)):
        covers = '; mode = "merge" with `lookback` covers those that come late'
        yield (
            f"the cursor is of type {tag}: exact only if rows become visible in its order"
            + (covers if tag != "text" else "")
        )
