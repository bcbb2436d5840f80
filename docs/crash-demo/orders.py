"""The crash demo's source and its judge: ``orders.py make`` and ``orders.py compare``."""

import os
import sqlite3
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROWS = 1_500_000


def make() -> None:
    """A SQLite table of orders with an indexed time, 1.5 million rows."""
    (HERE / "orders.sqlite").unlink(missing_ok=True)
    with sqlite3.connect(HERE / "orders.sqlite") as db:
        db.execute("create table orders (id integer primary key, placed_at timestamp, token text)")
        db.executemany(
            "insert into orders values (?, datetime(1700000000 + ?, 'unixepoch'), ?)",
            ((n, n // 3, os.urandom(48).hex()) for n in range(ROWS)),
        )
        db.execute("create index orders_by_time on orders (placed_at)")
    db.close()
    print(f"orders.sqlite: {ROWS:,} rows")


def compare() -> None:
    """Count and compare, row for row, with nothing of the reconciler in between."""
    import duckdb

    with duckdb.connect(HERE / "copy.duckdb", read_only=True) as there:
        rows, different = there.execute(
            "select count(*), count(distinct id) from orders"
        ).fetchone()
        theirs = there.execute("select id, token from orders order by id")
        with sqlite3.connect(HERE / "orders.sqlite") as db:
            ours = db.execute("select id, token from orders order by id")
            equal = 0
            while chunk := theirs.fetchmany(50_000):
                equal += sum(a == b for a, b in zip(chunk, ours.fetchmany(len(chunk)), strict=True))
        db.close()
    print(f"source {ROWS:,}  destination {rows:,}  distinct {different:,}  equal {equal:,}")
    sys.exit(0 if rows == different == equal == ROWS else 1)


if __name__ == "__main__":
    {"make": make, "compare": compare}[sys.argv[1]]()
