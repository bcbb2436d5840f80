"""What the tests of the destinations share: requests, batches, and reading back what is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from catalog.records import Cursor, CursorKind, Position
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.arrow import to_schema
from reconciler.connectors.ports import (
    BatchName,
    Destination,
    Owner,
    Receipt,
    RejectedRow,
    StageRequest,
)

OWNER = Owner("cat-1", "shop", "public.orders")
TABLE = "orders"
OWN = [
    pa.field("_run_id", pa.int64()),
    pa.field("_batch_id", pa.int64()),
    pa.field("_loaded_at", pa.timestamp("us", "UTC")),
]
ORDERS = pa.schema([pa.field("id", pa.int64()), pa.field("name", pa.string())])


def cursor(value: int) -> Cursor:
    return Cursor(CursorKind.MONOTONIC, "id:int", Position("int", bytes([value]), str(value)))


def request(
    seq: int,
    *,
    epoch: int = 1,
    mode: Mode = Mode.APPEND,
    schema: pa.Schema = ORDERS,
    key: Sequence[str] = (),
    owner: Owner = OWNER,
    table: str = TABLE,
    version: int = 1,
    partition_by: Sequence[str] = (),
    may_empty: bool = True,
    refreshed: Mode | None = None,
    after: int = 0,
) -> StageRequest:
    """``refreshed``: the stream's own mode, where the batch is a refresh of it."""
    arrow = pa.schema([*schema, *OWN])
    return StageRequest(
        name=BatchName(owner, epoch, seq),
        table=table,
        mode=mode,
        schema=to_schema(arrow, tuple(key)),
        schema_version=version,
        arrow=arrow,
        settings=StreamSettings(mode=refreshed or mode, partition_by=tuple(partition_by)),
        may_empty=may_empty,
        after=after,
    )


def batch(wanted: StageRequest, rows: Iterable[Mapping[str, Any]]) -> pa.RecordBatch:
    own = {"_run_id": wanted.name.epoch, "_batch_id": wanted.name.seq, "_loaded_at": 0}
    return pa.RecordBatch.from_pylist([{**row, **own} for row in rows], wanted.arrow)


def seal(
    destination: Destination,
    wanted: StageRequest,
    rows: Iterable[Mapping[str, Any]],
    rejected: Sequence[RejectedRow] = (),
) -> Receipt:
    """Stage rows in one write and seal; the receipt as it comes back from the catalog's JSON."""
    stage = destination.stage(wanted)
    stage.write(batch(wanted, rows))
    stage.reject(rejected)
    receipt = stage.seal(cursor(wanted.name.seq))
    return msgspec.json.decode(msgspec.json.encode(receipt), type=Receipt)


def load(
    destination: Destination,
    wanted: StageRequest,
    rows: Iterable[Mapping[str, Any]],
    rejected: Sequence[RejectedRow] = (),
) -> Receipt:
    receipt = seal(destination, wanted, rows, rejected)
    destination.publish([receipt])
    return receipt


def orders(*ids: int, name: str = "n") -> list[dict[str, Any]]:
    return [{"id": i, "name": f"{name}{i}"} for i in ids]


def glob_ids(lake: Path, pattern: str = "**/*.parquet") -> list[int]:
    """What a reader with a glob over the whole lake sees."""
    if not list(lake.glob(pattern)):
        return []
    import duckdb

    sql = f"SELECT id FROM read_parquet('{lake}/{pattern}', union_by_name=true) ORDER BY 1"
    with duckdb.connect() as connection:
        return [row[0] for row in connection.execute(sql).fetchall()]


def view_rows(folder: Path, columns: str = "id") -> list[Any]:
    """What the generated view shows."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute((folder / "_view.sql").read_text())
        name = folder.name
        rows = connection.execute(f'SELECT {columns} FROM "{name}" ORDER BY ALL').fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


def leftovers(path: Path) -> list[str]:
    """Staged files, and folders under a staging root, that remain."""
    return [
        str(p.relative_to(path))
        for p in path.rglob("*")
        if p.name.endswith((".staged", ".new")) or p.name == "sealed.json"
    ]
