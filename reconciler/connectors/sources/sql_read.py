"""One table being read: batches, rows set aside, and marks where a commit may stand (C3)."""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from catalog import position
from catalog.records import Cursor, CursorKind, HoldKind, Micros
from reconciler.connectors import arrow
from reconciler.connectors.arrow import Misfits
from reconciler.connectors.ports import (
    Mark,
    NeedsAnswer,
    ReadItem,
    Rejected,
    RejectedRow,
    Rows,
    Stopped,
)
from reconciler.connectors.sources import moments
from reconciler.connectors.sources.relation import CURSOR, Column, Dialect, misfits_of
from reconciler.connectors.sources.sql_plan import Plan

RAW_LIMIT = 4096
_FIRST_DAY = dt.date(1970, 1, 1)
_DAY = 86_400 * moments.SECOND
_Batches: TypeAlias = Generator[tuple[pa.RecordBatch, Misfits], None, None]


class SqlRead:
    """The ``Read`` of a plan. Its snapshot is open until ``close``."""

    def __init__(self, dialect: Dialect, plan: Plan) -> None:
        self._dialect, self._plan = dialect, plan
        self.schema = plan.schema
        self.key = plan.key
        self.ordered = plan.ordered
        self.has_news = plan.has_news
        self.idle = plan.idle
        self.notes = plan.notes
        self._caster: arrow.Caster | None = None
        self._newest: Any = None
        self._open: _Batches | None = None

    def items(self) -> Iterator[ReadItem]:
        """Rows, and the mark that says that all up to the bound was read."""
        for query in self._plan.queries:
            with closing(self._dialect.batches(query)) as batches:
                self._open = batches
                for batch, bad in batches:
                    if self._plan.stopped():
                        raise Stopped
                    if batch.num_rows:
                        yield from self._batch(batch, bad)
        yield Mark(self._plan.cursor, self._data_at(self._newest))

    def counts(self) -> Mapping[str, int]:
        """Rows left out, by reason; none where there is nothing to say."""
        return {why: count for why, count in self._plan.counts.items() if count}

    def close(self) -> None:
        """End the statement and its snapshot."""
        if self._open is not None:
            with contextlib.suppress(Exception):
                self._open.close()
            self._open = None
        self._dialect.end()

    # -- one batch -----------------------------------------------------------------------------

    def _batch(self, batch: pa.RecordBatch, bad: Misfits) -> Iterator[ReadItem]:
        places = self._places(batch)
        misfits = {**misfits_of(batch), **bad}
        data = batch.select(range(len(self.schema)))
        if self._caster is None:
            self._caster = arrow.Caster(data.schema, self.schema)
        rows, more = self._caster.apply(data)
        for row, reason in more.items():
            misfits.setdefault(row, reason)
        self._refuse_null_key(rows, misfits)
        cut = 0
        if places is not None:
            if self.ordered and places.null_count == 0:
                cut = _where_the_last_begins(self._column.tag, places)
            if cut:
                yield from self._emit(rows, misfits, data, 0, cut)
                yield from self._mark(places, cut)
            self._note_newest(places)
        yield from self._emit(rows, misfits, data, cut, batch.num_rows)

    def _mark(self, places: pa.Array, cut: int) -> Iterator[Mark]:
        """The rows before ``cut``, where the batch's last value begins, may be committed."""
        before = _value(self._column.tag, places[cut - 1])
        at = before if self._plan.closed else _value(self._column.tag, places[cut])
        if at is None:
            return
        cursor = Cursor(
            CursorKind.MONOTONIC, self._plan.definition, position.encode(self._column.tag, at)
        )
        since = self._plan.since
        if since is not None and cursor.position.data < since.position.data:
            cursor = since  # rows of ``lookback`` do not move it
        yield Mark(cursor, self._data_at(before))

    @property
    def _column(self) -> Column:
        assert self._plan.column is not None
        return self._plan.column

    def _places(self, batch: pa.RecordBatch) -> pa.Array | None:
        if self._plan.column is None:
            return None
        names = batch.schema.names
        return batch.column(names.index(CURSOR if CURSOR in names else self._plan.column.name))

    def _note_newest(self, places: pa.Array) -> None:
        if self._data_at_possible and places.null_count < len(places):
            newest = _value(self._column.tag, pc.max(places))
            if newest is not None and (self._newest is None or newest > self._newest):
                self._newest = newest

    @property
    def _data_at_possible(self) -> bool:
        return self._column.tag in ("timestamp", "naive_timestamp", "date", "text")

    def _data_at(self, value: Any) -> Micros | None:
        return None if value is None else self._dialect.data_at(self._column, value)

    def _refuse_null_key(self, rows: pa.RecordBatch, misfits: Misfits) -> None:
        if not self._plan.refuse_null_key:
            return
        for name in self.key:
            column = rows.column(name)
            if column.null_count == 0:
                continue
            nulls = [i for i, missing in enumerate(column.is_null().to_pylist()) if missing]
            if any(i not in misfits for i in nulls):
                raise NeedsAnswer(
                    HoldKind.NULL_KEY,
                    f"{self._plan.relation.identity}: rows have no value in the key column "
                    f"{name!r}, so they cannot be merged: fill them, or choose another key",
                    ("retry", "refresh"),
                )

    def _emit(
        self, rows: pa.RecordBatch, misfits: Misfits, data: pa.RecordBatch, start: int, end: int
    ) -> Iterator[ReadItem]:
        part = rows.slice(start, end - start)
        if not misfits:
            if part.num_rows:
                yield Rows(part)
            return
        here = {row - start: why for row, why in misfits.items() if start <= row < end}
        kept = arrow.drop_rows(part, here)
        if kept.num_rows:
            yield Rows(kept)
        if here:
            yield Rejected(
                tuple(self._rejected(data, row + start, why) for row, why in sorted(here.items()))
            )

    def _rejected(self, data: pa.RecordBatch, row: int, reason: str) -> RejectedRow:
        values = {
            name: repr(arrow.python_value(data.column(name)[row]))[:RAW_LIMIT]
            for name in data.schema.names
        }
        place = ", ".join(f"{name}={values[name]}" for name in self.key)
        raw = ", ".join(f"{name}: {text}" for name, text in values.items())
        return RejectedRow(place or self._plan.relation.identity, reason, raw[:RAW_LIMIT])


def _where_the_last_begins(tag: str, places: pa.Array) -> int:
    """The row at which the last row's value comes first."""
    if tag == "decimal":  # 2.0 and 2.00 are one value in two texts
        last = cut = len(places) - 1
        while cut and _value(tag, places[cut - 1]) == _value(tag, places[last]):
            cut -= 1
        return cut
    plain = places.storage if isinstance(places, pa.ExtensionArray) else places  # of a uuid
    return int(pc.index(plain, plain[len(plain) - 1]).as_py())


def _value(tag: str, scalar: pa.Scalar) -> Any:
    """A position's value out of Arrow, as ``catalog.position`` takes it. None: a time before the
    year 1 (or ``-infinity``), or after 9999, where no cursor stands."""
    match tag:
        case "timestamp" | "naive_timestamp":
            return int(scalar.value) if _is_within_years(scalar.value // _DAY) else None
        case "date":
            days = scalar.value
            return _FIRST_DAY + dt.timedelta(days) if _is_within_years(days) else None
        case "decimal":
            return Decimal(scalar.as_py())
        case "int":
            return int(scalar.as_py())
        case "uuid":
            value = scalar.as_py()
            return value if isinstance(value, uuid.UUID) else uuid.UUID(value)
    return scalar.as_py()


def _is_within_years(days: int) -> bool:
    return dt.date.min.toordinal() <= days + _FIRST_DAY.toordinal() <= dt.date.max.toordinal()
