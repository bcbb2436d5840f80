"""Hive partitions: rows of a batch by the folder they belong in (E1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from catalog.records import ErrorClass
from reconciler.connectors.destinations.names import encode_name
from reconciler.connectors.ports import ArrowSchema, ConnectorError, RecordBatch

NULL = "__HIVE_DEFAULT_PARTITION__"
MOST = 1_000
"""Partitions that one batch may touch; more is a mistake in ``partition_by``."""
_PARTS = {"day": "%Y-%m-%d", "month": "%Y-%m", "year": "%Y"}
_CALL = re.compile(r"(day|month|year)\((.+)\)")


class Partitioning:
    """``partition_by`` read against a schema. Raises ``ConnectorError`` (permanent) if wrong."""

    def __init__(self, partition_by: Sequence[str], schema: ArrowSchema) -> None:
        self._entries = [_entry(text, schema) for text in partition_by]
        self._seen: set[str] = set()

    def split(self, batch: RecordBatch) -> Iterator[tuple[str, RecordBatch]]:
        """Folders (``country=DE/booked_on_day=2026-01-31``) and their rows, in their order."""
        names = [_folders(batch, column, part) for column, part in self._entries]
        joined = pc.binary_join_element_wise(*names, "/").dictionary_encode()
        folders = joined.dictionary.to_pylist()
        self._count(folders)
        if len(folders) == 1:
            yield folders[0], batch
            return
        order = pc.sort_indices(joined.indices)  # stable: rows keep their order within a folder
        start = 0
        counts = {
            row["values"]: row["counts"] for row in pc.value_counts(joined.indices).to_pylist()
        }
        for code, folder in enumerate(folders):
            yield folder, batch.take(order.slice(start, counts[code]))
            start += counts[code]

    def _count(self, folders: Sequence[str]) -> None:
        self._seen.update(folders)
        if len(self._seen) > MOST:
            entries = self._entries
            by = ", ".join(f"{part}({column})" if part else column for column, part in entries)
            raise ConnectorError(
                ErrorClass.PERMANENT,
                f"partition_by {by} makes more than {MOST} partitions out of one batch (among them "
                f"{sorted(self._seen)[0]!r}); choose a coarser one, such as day() or month()",
            )


def _entry(text: str, schema: ArrowSchema) -> tuple[str, str]:
    call = _CALL.fullmatch(text.strip())
    column, part = (call[2].strip(), call[1]) if call else (text.strip(), "")
    if column not in schema.names:
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"partition_by names {column!r}, which is no column; there are: "
            f"{', '.join(schema.names)}",
        )
    kind = schema.field(column).type
    dated = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    if part and not dated:
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"partition_by {text!r}: {part}() wants a date or timestamp, and {column!r} is {kind}",
        )
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_floating(kind):
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"partition_by {text!r}: a {kind} column cannot name folders; text, numbers, dates, "
            "timestamps and booleans can",
        )
    return column, part


def _folders(batch: RecordBatch, column: str, part: str) -> pa.Array:
    """``column=value`` for each row, safe as one component of a path."""
    values = batch.column(column)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        texts = _days(values, part)
    elif pa.types.is_fixed_size_binary(values.type):
        texts = pa.array([None if v is None else v.hex() for v in values.to_pylist()], pa.string())
    else:
        texts = values.cast(pa.string())
    coded = texts.dictionary_encode(null_encoding="encode")
    label = encode_name(f"{column}_{part}" if part else column, 80)
    named = [f"{label}={_value(text)}" for text in coded.dictionary.to_pylist()]
    return pa.array(named, pa.string()).take(coded.indices)


def _days(values: pa.Array, part: str) -> pa.Array:
    """As texts; Arrow would make some far day of infinity."""
    texts = pc.strftime(values, _PARTS[part]) if part else values.cast(pa.string())
    bits = values.type.bit_width
    raw, most = values.view(pa.int32() if bits == 32 else pa.int64()), 2 ** (bits - 1) - 1
    texts = pc.if_else(pc.equal(raw, most), "infinity", texts)
    return pc.if_else(pc.equal(raw, -most), "-infinity", texts)


def _value(text: str | None) -> str:
    """Percent-encoded; empty stays empty; what reads like the NULL partition does not stay so."""
    if text is None:
        return NULL
    if text == NULL:
        return "%5F" + NULL[1:]
    plain = quote(text, safe="")
    return plain if len(plain) <= 160 else encode_name(text, 160)
