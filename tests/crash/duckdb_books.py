"""What comes into the DuckDB file, and what has to be in it after a loss of power."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Self

import duckdb
import pyarrow as pa

from catalog import position
from catalog.records import Cursor, CursorKind
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.destinations.duckdb_table import OpenSchema
from reconciler.connectors.ports import ReadRequest
from tests.crash.whole_books import Shelf, ShelfRead, is_bad

ITEMS = 5
NOTE = pa.field("note", pa.string())
MANY = 3_000


class Store(Shelf):
    """The shelf, and ``stock``: changes of a few items, to be merged. Later both have a ``note``,
    a column that was not there before."""

    streams: ClassVar[Mapping[str, StreamSettings]] = {
        "orders": StreamSettings(mode=Mode.APPEND, cursor=("id",)),
        "country": StreamSettings(mode=Mode.REPLACE),
        "stock": StreamSettings(mode=Mode.MERGE, cursor=("id",), key=("item",)),
    }

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.stock = 0
        self.noted: int | None = None
        """Orders there were when the column came."""

    def grow(self) -> None:
        """More of both, or not; the countries are others, now and then very many."""
        super().grow()
        self.stock += self._chance.choice((0, 2, 4, 9))
        if self._chance.random() < 0.1:
            self.country = [{"id": n, "name": f"{self.orders}/{n}"} for n in range(MANY)]
        if self.noted is None and self.stock > 12:
            self.noted = self.orders

    def twin(self) -> Self:
        """Another with the same rows, which then goes its own way."""
        other = copy.copy(self)
        other._chance = copy.deepcopy(self._chance)
        return other

    def read(self, request: ReadRequest) -> ShelfRead:
        return StoreRead(self, request)

    def check_rows(self, path: Path) -> None:
        """After the last run: the tables are what the source has, each row once."""
        with closing(
            duckdb.connect(str(path), read_only=True, config={"threads": 1})
        ) as connection:
            run = connection.execute
            good = [n for n in range(1, self.orders + 1) if not is_bad(n)]
            rows = run("SELECT id FROM orders ORDER BY id").fetchall() if good else []
            assert [row[0] for row in rows] == good, f"orders: {rows}"
            # Orders may have come before their note did; one that is newer has it.
            noted = self.orders if self.noted is None else self.noted
            has_notes = self.orders > noted
            for n, note in run("SELECT id, note FROM orders").fetchall() if has_notes else []:
                assert note == f"n{n}" or (note is None and n <= noted), f"order {n}: {note}"
            country = run("SELECT id, name FROM country ORDER BY id").fetchall()
            assert country == [(c["id"], c["name"]) for c in self.country], "country"
            latest = {n % ITEMS: n for n in range(1, self.stock + 1) if not is_bad(n)}
            stock = run("SELECT item, id FROM stock").fetchall() if latest else []
            assert sorted(stock) == sorted(latest.items()), f"stock: {stock}"
            for table, last in (("orders", self.orders), ("stock", self.stock)):
                bad = {str(n) for n in range(1, last + 1) if is_bad(n)}
                if bad:
                    sql = f"SELECT place, _batch_id FROM {table}__rejected"
                    places = Counter(run(sql).fetchall())
                    assert max(places.values()) == 1, f"{table}: a row was set aside twice"
                    assert {place for place, _ in places} == bad, f"{table}: {places}"


class StoreRead(ShelfRead):
    """Orders or changes of stock beyond the cursor, with a mark after each three."""

    def __init__(self, store: Store, request: ReadRequest) -> None:
        super().__init__(store, request)
        self._stream = request.stream
        if self._stream == "stock":
            self._last = store.stock
            self.has_news = self._first <= self._last
        self._noted = store.noted is not None and not self.whole
        if self._noted:
            self.schema = self.schema.append(NOTE)

    def _row(self, order: int) -> dict[str, Any]:
        row = super()._row(order)
        if self._stream == "stock":
            row = {"id": order, "item": order % ITEMS}
        return row | ({"note": f"n{order}"} if self._noted else {})

    def _at(self, order: int) -> Cursor:
        place = position.encode("int", order)
        return Cursor(CursorKind.MONOTONIC, f"{self._stream}(id)", place)


def markers(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """What the file itself says, batch by table; every row of every table is read for it, and no
    table has rows of a batch that its marker does not know. Changes nothing.
    """
    schema = OpenSchema(connection, "main")
    look = schema.look()
    found = {table: marker.seq for table, marker in look.markers.items()}
    for table in {name.removesuffix("__rejected") for name in look.tables if name[0] != "_"}:
        for name in {table, f"{table}__rejected"} & {*look.tables}:
            sql = f"SELECT max(_batch_id), bit_xor(hash(t)) FROM {schema.name(name)} t"
            newest = (connection.execute(sql).fetchone() or (0,))[0] or 0
            assert newest <= found[table], f"{name}: rows of batch {newest}, marker at {found}"
    return found


def left_over(folder: Path) -> list[str]:
    """Files beside the database that a whole run must not leave behind."""
    known = {"lock", "markers.json"}
    return [str(p) for p in folder.rglob("*") if p.is_file() and p.name not in known]
