"""A database of the simulated world: tables whose rows change, transactions that commit late.

Each version of a row has a number of its own, ``v``, by which the checkers find it again at the
destination. Stamps are of whole seconds, so that many are equal; a transaction stamps its rows when
it begins and shows them when it commits, which is what the bound of a read has to know (C1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import pyarrow as pa

from catalog import position
from catalog.records import Cursor, CursorKind, ErrorClass, HoldKind
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.ports import (
    ConnectorError,
    Finding,
    FoundStream,
    Mark,
    NeedsAnswer,
    ReadItem,
    ReadRequest,
    Rows,
    Stopped,
)

_DEFINITION = "stamp of {}"
_WHOLE = "all of {}"


@dataclass(frozen=True, slots=True)
class Row:
    """One version of one row."""

    id: int
    at: int
    """The cursor column: microseconds."""
    v: int


class Process(Protocol):
    """The worker in which a connector works: each step may take time, or end the process."""

    def step(self, name: str, seconds: float = 0.0) -> None: ...


@dataclass(slots=True, eq=False)
class Table:
    """Rows by id, and what the writers still have open."""

    name: str
    rows: dict[int, Row] = field(default_factory=dict)
    opened: dict[int, int] = field(default_factory=dict)
    """Open transactions: number to the stamp of their beginning."""
    text: bool = False
    """The column ``val`` is text now, and not a number."""
    extra: bool = False
    """A column more."""
    log: list[Row] = field(default_factory=list)
    """Every version that ever became visible, in that order."""

    def commit(self, transaction: int, rows: Sequence[Row]) -> None:
        """Show what a transaction wrote."""
        del self.opened[transaction]
        for row in rows:
            self.rows[row.id] = row
            self.log.append(row)

    def bound(self, now_us: int) -> int:
        """No row below it can appear any more (C1): stamps are of whole seconds."""
        return min([now_us // 10**6 * 10**6, *self.opened.values()])

    def schema(self) -> pa.Schema:
        return _schema(self.text, self.extra)


def value(row: Row, text: bool) -> int | str:
    """What ``val`` shows: every other text is no number."""
    if not text:
        return row.v
    return f"x{row.v}" if row.v % 2 else str(row.v)


@lru_cache
def _schema(text: bool, extra: bool) -> pa.Schema:
    fields = [
        pa.field("id", pa.int64()),
        pa.field("at", pa.timestamp("us", "UTC")),
        pa.field("v", pa.int64()),
        pa.field("val", pa.string() if text else pa.int64()),
    ]
    return pa.schema([*fields, pa.field("extra", pa.int64())] if extra else fields)


class Database:
    """All tables; ``down_until`` is the world's time until which it refuses connections."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.down_until = 0.0


class SimSource:
    """Implements ``Source`` for one worker."""

    def __init__(self, database: Database, process: Process, now: Any, batch_rows: int) -> None:
        self._database, self._process, self._now = database, process, now
        self._batch_rows = batch_rows

    def check(self, streams: Mapping[str, StreamSettings]) -> list[Finding]:
        return []

    def discover(
        self, select: Sequence[str], named: Mapping[str, StreamSettings]
    ) -> list[FoundStream]:
        return []

    def streams(self, select: Sequence[str]) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing is open."""

    def read(self, request: ReadRequest) -> SimRead:
        self._process.step("source.read")
        seconds, now_us = self._now()
        if seconds < self._database.down_until:
            raise ConnectorError(ErrorClass.TRANSIENT, "the database is down")
        table = self._database.tables[request.stream]
        if request.settings.mode is Mode.REPLACE:
            return SimRead(self._process, table, list(table.rows.values()), None, request)
        definition = _DEFINITION.format(request.stream)
        last = None
        if request.cursor is not None:
            if request.cursor.definition != definition:
                raise NeedsAnswer(HoldKind.DEFINITION, "another definition", ("refresh",))
            last = position.decode(request.cursor.position)
        bound = table.bound(now_us)
        rows = [r for r in table.rows.values() if (last is None or r.at >= last) and r.at < bound]
        rows.sort(key=lambda r: (r.at, r.v))
        if isinstance(last, int):
            bound = max(bound, last)
        return SimRead(self._process, table, rows, bound, request, self._batch_rows)


class SimRead:
    """Implements ``Read``: the rows were fixed when it was made."""

    notes: tuple[str, ...] = ()
    idle = ""

    def __init__(
        self,
        process: Process,
        table: Table,
        rows: list[Row],
        bound: int | None,
        request: ReadRequest,
        batch_rows: int = 1000,
    ) -> None:
        self._process, self._rows, self._bound, self._request = process, rows, bound, request
        self._table, self._batch_rows = table, batch_rows
        self.schema = table.schema()
        self._text = table.text
        self.key = ("id",)
        self.whole = bound is None or request.refresh
        self.ordered = not self.whole
        self.has_news = bound is None or bool(rows)

    def counts(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        """Nothing is open."""

    def items(self) -> Iterator[ReadItem]:
        for start in range(0, len(self._rows), self._batch_rows):
            self._process.step("source.rows")
            if self._request.stopped():
                raise Stopped
            rows = self._rows[start : start + self._batch_rows]
            yield Rows(self._batch(rows))
            end = start + self._batch_rows
            following = self._rows[end].at if end < len(self._rows) else rows[-1].at
            if self.ordered and following > rows[-1].at:
                yield Mark(self._cursor(following), data_at=rows[-1].at)
        if self._bound is None:
            place = position.encode("snapshot", 1)
            definition = _WHOLE.format(self._table.name)
            yield Mark(Cursor(CursorKind.SNAPSHOT_ID, definition, place))
        else:
            yield Mark(self._cursor(self._bound), data_at=None)

    def _cursor(self, at: int) -> Cursor:
        place = position.encode("timestamp", at)
        return Cursor(CursorKind.MONOTONIC, _DEFINITION.format(self._table.name), place)

    def _batch(self, rows: Sequence[Row]) -> pa.RecordBatch:
        values = [value(row, self._text) for row in rows]
        columns: list[list[Any]] = [[r.id for r in rows], [r.at for r in rows], [r.v for r in rows]]
        columns.append(values)
        if len(self.schema) > len(columns):
            columns.append([r.v for r in rows])
        arrays = [pa.array(column, f.type) for column, f in zip(columns, self.schema, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)
