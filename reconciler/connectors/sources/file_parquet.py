"""Parquet files: typed already; only what has no canonical type changes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.records import ErrorClass
from reconciler.config.desired import StreamSettings
from reconciler.connectors import arrow
from reconciler.connectors.ports import ConnectorError, RejectedRow
from reconciler.connectors.sources.file_format import (
    RAW_LIMIT,
    Block,
    Cut,
    Described,
    content_hash,
)
from reconciler.connectors.sources.file_set import Found
from reconciler.schema import types

_ROWS = 32_768
_AT_ONCE = 16 * 1024 * 1024
"""Bytes of rows in one batch, more or less."""
_FIRST = 100
"""Rows looked at to see how large they are once decoded: a dictionary keeps a text once."""
_BUFFER = 64 * 1024
"""Bytes kept of each column."""
_DAMAGED = (pa.ArrowException, OSError)


class Parquet:
    """Reads Parquet, row group by row group."""

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings

    def describe(self, file: Found) -> Generator[int, None, Described]:
        """The footer's schema. Raises ``Cut`` where there is no whole footer."""
        try:
            schema = pq.read_schema(file.full)
        except _DAMAGED as error:
            raise Cut(f"its Parquet footer cannot be read: {_short(error)}") from None
        digest = yield from content_hash(file)
        try:
            shape = arrow.canonical_schema(schema)
            _refuse_doubles(file, shape)
        except RecursionError:
            raise ConnectorError(
                ErrorClass.PERMANENT, f"file {file.path!r}: its columns are nested too deep"
            ) from None
        return Described(shape, digest)

    def blocks(self, file: Found, source: IO[bytes], schema: pa.Schema) -> Iterator[Block]:
        """The rows; a value that does not fit its column sets its row aside."""
        row = 0
        try:
            # INT96, as Spark writes times: in nanoseconds, 9999-12-31 would wrap around to 1816.
            # And page by page: else all that was read of the file stays in memory to its end.
            with pq.ParquetFile(
                source, coerce_int96_timestamp_unit="us", pre_buffer=False, buffer_size=_BUFFER
            ) as parquet:
                for batch in parquet.iter_batches(batch_size=_rows_at_once(parquet)):
                    yield self._block(file, batch, schema, row)
                    row += batch.num_rows
        except _DAMAGED as error:
            raise ConnectorError(
                ErrorClass.PERMANENT,
                f"file {file.path!r} is damaged after row {row}: {_short(error)}",
            ) from None

    def _block(self, file: Found, batch: pa.RecordBatch, schema: pa.Schema, start: int) -> Block:
        misfits = arrow.invalid(batch)
        columns = []
        for field in schema:
            index = batch.schema.get_field_index(field.name)
            if index < 0:
                columns.append(pa.nulls(batch.num_rows, field.type))
                continue
            found = batch.column(index)
            if found.type == arrow.JSON:  # says who wrote the file; a destination takes no other
                found = found.storage
            column, bad = arrow.cast(found, field.type)
            columns.append(column)
            for row, reason in bad.items():
                misfits.setdefault(row, f"column {field.name!r}: {reason}")
        shaped = pa.RecordBatch.from_arrays(columns, schema=schema)
        rejected = [
            RejectedRow(
                f"{file.path}: row {start + row + 1}",
                reason,
                repr([arrow.python_value(column[row]) for column in batch.columns])[:RAW_LIMIT],
            )
            for row, reason in sorted(misfits.items())
        ]
        return arrow.drop_rows(shaped, misfits), rejected


def _rows_at_once(parquet: pq.ParquetFile) -> int:
    """Fewer where they are large: thousands of columns, or texts of many kilobytes."""
    groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
    size = max(
        (group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=0
    )
    for batch in parquet.iter_batches(batch_size=_FIRST):
        size = max(size, batch.nbytes / max(batch.num_rows, 1))
        break
    return max(1, min(_ROWS, int(_AT_ONCE / max(size, 1))))


def _refuse_doubles(file: Found, shape: pa.Schema) -> None:
    """Raises ``ConnectorError``: of two columns of one name, nobody could say which is meant."""
    twice = sorted({name for name in shape.names if shape.names.count(name) > 1})
    why = f"its columns {', '.join(map(repr, twice))} are there twice" if twice else ""
    for field in shape:
        try:
            types.parse(arrow.type_word(field.type))
        except types.BadType as error:
            why = f"column {field.name!r}: {error}"
    if why:
        raise ConnectorError(ErrorClass.PERMANENT, f"file {file.path!r}: {why}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
