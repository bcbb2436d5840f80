"""The same data moved by the bare libraries, each in a process of its own; prints seconds.

``python -m reconciler.cli.benchmarks.floors parquet|duckdb URL TARGET``
"""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from typing import Any

_SQL = "select * from mixed"


def _stream(url: str) -> tuple[Any, Any, Any]:
    import adbc_driver_postgresql.dbapi as adbc

    connection = adbc.connect(url)
    cursor = connection.cursor()
    cursor.execute(_SQL)
    return connection, cursor, cursor.fetch_record_batch()


def to_parquet(url: str, target: str) -> None:
    """ADBC stream to ParquetWriter, then fsync."""
    import pyarrow.parquet as pq

    connection, cursor, reader = _stream(url)
    with pq.ParquetWriter(target, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
    fd = os.open(target, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    cursor.close()
    connection.close()


def to_duckdb(url: str, target: str) -> None:
    """ADBC stream appended to a DuckDB table that has no key."""
    import duckdb

    connection, cursor, reader = _stream(url)
    with duckdb.connect(target) as db:
        db.register("incoming", reader)
        db.execute("create table mixed as select * from incoming")
    cursor.close()
    connection.close()


def main() -> None:
    """Move the table once and print how long it took, imports not counted."""
    for library in ("adbc_driver_postgresql.dbapi", "duckdb", "pyarrow.parquet"):
        import_module(library)

    move = {"parquet": to_parquet, "duckdb": to_duckdb}[sys.argv[1]]
    started = time.perf_counter()
    move(sys.argv[2], sys.argv[3])
    print(time.perf_counter() - started)  # noqa: T201 - its one result


if __name__ == "__main__":
    main()
