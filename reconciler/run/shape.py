"""Bring a batch into the shape that the schema decision asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from reconciler.connectors import arrow
from reconciler.connectors.ports import RejectedRow
from reconciler.schema.decide import ColumnRule

_RAW_LIMIT = 4096
_SHOWN_REASONS = 200


class Shape:
    """Maps batches of the read's schema to the target's, our own three columns included.

    A value that does not fit its target type does not become NULL: its row is set aside with the
    reason (F: read = written + set aside).
    """

    def __init__(
        self,
        rules: Sequence[ColumnRule],
        target: pa.Schema,
        key: Sequence[str],
        *,
        own: dict[str, Any],
        counted: str = "",
    ) -> None:
        """``counted``: one of our own columns that grows by one with each row, in order of arrival;
        none: all are the same in each row.
        """
        self._target = target
        self._key = list(key)
        self._own = {name: pa.scalar(v, target.field(name).type) for name, v in own.items()}
        self._counted = counted
        self._count = 0
        self._rules = {rule.target: rule for rule in rules if rule.action != "ignore"}

    def apply(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[RejectedRow]]:
        """The shaped batch without the rows that do not fit, and those rows."""
        columns: list[pa.Array] = []
        bad: dict[int, str] = {}
        for field in self._target:
            column, misfits = self._column(batch, field)
            columns.append(column)
            for row, reason in misfits.items():
                bad.setdefault(row, reason)
        self._count += batch.num_rows
        shaped = pa.RecordBatch.from_arrays(columns, schema=self._target)
        rejected = [self._rejected(batch, row, why) for row, why in bad.items()]
        return arrow.drop_rows(shaped, bad), rejected

    def _column(self, batch: pa.RecordBatch, field: pa.Field) -> tuple[pa.Array, dict[int, str]]:
        own = self._own.get(field.name)
        if own is not None and field.name == self._counted:
            first = own.value + self._count
            return pa.arange(first, first + batch.num_rows).view(field.type), {}
        if own is not None:
            return pa.repeat(own, batch.num_rows), {}
        rule = self._rules.get(field.name)
        if rule is None or rule.source not in batch.schema.names:
            return pa.nulls(batch.num_rows, field.type), {}
        column = batch.column(rule.source)
        if column.type == field.type:
            return column, {}
        cast, misfits = arrow.cast(column, field.type)
        return cast, {row: f"column {field.name!r}: {why}" for row, why in misfits.items()}

    def _rejected(self, batch: pa.RecordBatch, row: int, reason: str) -> RejectedRow:
        values = {name: arrow.python_value(batch.column(name)[row]) for name in batch.schema.names}
        place = ", ".join(f"{name}={values.get(name)!r}" for name in self._key) or f"row {row}"
        return RejectedRow(place, reason[:_SHOWN_REASONS], repr(values)[:_RAW_LIMIT])
