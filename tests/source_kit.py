"""What the tests of the sources share: one read carried out, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from catalog.records import Cursor, FileEntry
from reconciler.config.desired import StreamSettings
from reconciler.connectors.arrow import python_value
from reconciler.connectors.ports import (
    Mark,
    ReadRequest,
    Rejected,
    RejectedRow,
    Rows,
    Source,
)


@dataclass
class Taken:
    """All that a read gave."""

    schema: pa.Schema
    cursor: Cursor | None
    has_news: bool
    ordered: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    batches: list[pa.RecordBatch] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    rows_before_mark: list[int] = field(default_factory=list)
    idle: str = ""
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]

    def note(self, part: str) -> str:
        """The one note with ``part`` in it."""
        (found,) = [note for note in self.notes if part in note]
        return found


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = batch.to_pylist()
    except OverflowError:  # infinite times, which Python has not
        columns = [[python_value(value) for value in column] for column in batch.columns]
        return [
            dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)
        ]
    return found


def take(
    source: Source,
    stream: str,
    settings: StreamSettings,
    cursor: Cursor | None = None,
    *,
    refresh: bool = False,
    ledger: Sequence[FileEntry] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> Taken:
    """Read a stream as a run does, to its end."""
    read = source.read(
        ReadRequest(
            stream, settings, cursor, refresh=refresh, ledger=lambda: ledger, stopped=stopped
        )
    )
    try:
        taken = Taken(read.schema, cursor, read.has_news, read.ordered)
        count = 0
        for item in read.items() if read.has_news else ():
            match item:
                case Rows(batch):
                    assert batch.schema == read.schema
                    taken.batches.append(batch)
                    count += batch.num_rows
                    taken.rows += _rows(batch)
                case Rejected(rows):
                    taken.rejected += rows
                case Mark() as mark:
                    taken.marks.append(mark)
                    taken.rows_before_mark.append(count)
                    taken.cursor = mark.cursor
        taken.schema = read.schema
        taken.notes, taken.idle = read.notes, read.idle
        taken.counts = dict(read.counts())
    finally:
        read.close()
    return taken
