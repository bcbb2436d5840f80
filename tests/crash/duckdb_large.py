"""What comes into the DuckDB file in loads that DuckDB writes by other ways (see ``duckdb_books``).

A batch of a row group (122,880 rows) and more is written to the file before it is committed; values
of more than 4 KB lie in blocks of their own; a table of many columns has metadata of many blocks;
and what a large table that is replaced by a small one leaves is written over by what comes next.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import ClassVar

import duckdb
import pyarrow as pa

from catalog import position
from catalog.records import Cursor, CursorKind
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.ports import Mark, ReadItem, ReadRequest, Rows
from tests.crash.duckdb_books import Store
from tests.crash.whole_books import ShelfRead

GROUP = 122_880
"""Rows of one of DuckDB's row groups."""
BATCH = GROUP + 7_000
ITEMS = 140_000
COLUMNS = 1_000

_WIDE = ", ".join(f"n * {k + 1} AS c{k}" for k in range(COLUMNS))
_SQL = {
    "orders": "n AS id, 'k' || n % 2 AS kind, n / 4 AS price",
    "noted": "n AS id, 'k' || n % 2 AS kind, n / 4 AS price, 'n' || n AS note",
    "stock": f"n AS id, n % {ITEMS} AS item, md5(n::VARCHAR) AS tag",
    "texts": "n AS id, 'kind ' || n % 10 AS kind, "
    "repeat(md5(n::VARCHAR), (n * 7919 % 3200)::INTEGER) AS text, "
    "list_transform(range(n * 31 % 900), lambda x: md5((x * n)::VARCHAR)) AS words, "
    "list_aggregate(list_transform(range(n * 17 % 700), lambda x: sha256((x + n)::VARCHAR)), "
    "'string_agg', '') AS noise, {{'a': n, 'b': [n, n + 1]}} AS pair",
    "country": "n AS id, '{load}/' || n AS name",
    "wide": f"n AS id, {_WIDE}",
}


def rows_of(table: str, load: int, last: int, first: int = 1) -> str:
    """SQL of the rows ``first`` to ``last``. ``load``: of a replaced table, which time it is."""
    return f"SELECT {_SQL[table].format(load=load)} FROM range({first}, {last + 1}) r(n)"


def _arrow(sql: str) -> pa.Table:
    with closing(duckdb.connect(config={"threads": 1})) as db:
        return db.sql(sql).to_arrow_table()


@cache
def _schema(table: str) -> pa.Schema:
    return _arrow(rows_of(table, 0, 0)).schema


class LargeStore(Store):
    """Orders, texts and a wide table, appended; stock, merged; countries, replaced."""

    streams: ClassVar[Mapping[str, StreamSettings]] = {
        "orders": StreamSettings(mode=Mode.APPEND, cursor=("id",)),
        "texts": StreamSettings(mode=Mode.APPEND, cursor=("id",)),
        "stock": StreamSettings(mode=Mode.MERGE, cursor=("id",), key=("item",)),
        "country": StreamSettings(mode=Mode.REPLACE),
        "wide": StreamSettings(mode=Mode.APPEND, cursor=("id",)),
    }

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.texts = self.wide = self.load = 0
        self.countries = 1

    def grow(self) -> None:
        """Some of them much, the others little or not at all."""
        pick = self._chance.choice
        self.load += 1
        self.orders += pick((0, 3, 1_000, GROUP, GROUP + 1, 2 * BATCH))
        self.stock += pick((0, 5, 5_000, BATCH))
        self.texts += pick((0, 1, 5, 20))
        self.countries = pick((2, 3, 5_000, GROUP, 2 * GROUP + 5))
        self.wide += pick((0, 0, 1, 50))
        if self.noted is None and self.orders > 2 * GROUP:
            self.noted = self.orders

    def read(self, request: ReadRequest) -> ShelfRead:
        return LargeRead(self, request)

    def check_rows(self, path: Path) -> None:
        last = {
            "orders": self.orders,
            "texts": self.texts,
            "country": self.countries,
            "wide": self.wide,
        }
        with closing(duckdb.connect(str(path), read_only=True, config={"threads": 1})) as db:
            for table, count in last.items():
                if count:
                    self._same(db, table, rows_of(table, self.load, count))
            if self.stock:
                newest = "SELECT item, max(id) FROM ({}) GROUP BY item"
                newest = f"({newest.format(rows_of('stock', 0, self.stock))})"
                all_ = f"SELECT * FROM ({rows_of('stock', 0, self.stock)})"
                self._same(db, "stock", f"{all_} WHERE (item, id) IN {newest}")
            noted = self.orders if self.noted is None else self.noted
            if self.orders > noted:
                sql = "SELECT count(*) FROM orders WHERE note IS DISTINCT FROM 'n' || id "
                sql += f"AND (id > {noted} OR note IS NOT NULL)"
                assert db.execute(sql).fetchone() == (0,), "orders: a note"

    @staticmethod
    def _same(db: duckdb.DuckDBPyConnection, table: str, wanted: str) -> None:
        names = ", ".join(db.sql(wanted).columns)
        sums = "SELECT count(*), sum(hash(t)) FROM ({}) t"
        there = db.execute(sums.format(f"SELECT {names} FROM {table}")).fetchone()
        assert there == db.execute(sums.format(wanted)).fetchone(), f"{table}: {there}"


class LargeRead(ShelfRead):
    """Rows beyond the cursor, with a mark after each ``BATCH``; or all countries."""

    def __init__(self, store: LargeStore, request: ReadRequest) -> None:
        self._stream = request.stream
        self.whole = not request.settings.cursor
        self.ordered = not self.whole and not request.refresh
        at = request.cursor
        self._first = 1 if at is None else int(str(position.decode(at.position))) + 1
        self._last = {
            "orders": store.orders,
            "stock": store.stock,
            "texts": store.texts,
            "country": store.countries,
            "wide": store.wide,
        }[self._stream]
        self._load = store.load
        noted = self._stream == "orders" and store.noted is not None
        self._table = "noted" if noted else self._stream
        self.has_news = self.whole or self._first <= self._last
        self.schema = _schema(self._table)

    def _rows(self, first: int, last: int) -> pa.Table:
        return _arrow(rows_of(self._table, self._load, last, first))

    def items(self) -> Iterator[ReadItem]:
        step = self._last if self.whole else BATCH
        for first in range(self._first, self._last + 1, step):
            last = min(first + step - 1, self._last)
            for batch in self._rows(first, last).to_batches():
                yield Rows(batch)
            if self.ordered:
                yield Mark(self._at(last))
        if not self.ordered:
            yield Mark(None if self.whole else self._at(self._last))

    def _at(self, last: int) -> Cursor:
        place = position.encode("int", last)
        return Cursor(CursorKind.MONOTONIC, f"{self._stream}(id)", place)
