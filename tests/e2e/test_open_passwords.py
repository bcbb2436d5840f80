"""A password that is a word of the config as well hides nothing there, and spoils no answer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import World
from tests.servers import PostgresServer

pytestmark = pytest.mark.postgres
_CONFIG = """
[connections.src]
connector = "sql"
url = "{url}"
password = "env:WEAK"
[connections.out]
connector = "duckdb"
path = "out.duckdb"
[pipelines.p]
source = "src"
destination = "out"
cursor = ["id"]
[pipelines.p.streams."public.orders"]
"""
_ADD = (
    "INSERT INTO orders SELECT n, '2026-01-01'::timestamptz + n * interval '1 s', 'n' || n "
    "FROM generate_series({}, {}) n"
)


class Shop(World):
    """A database, its pipeline, and a copy of the destination to put back."""

    def __init__(self, folder: Path, server: PostgresServer) -> None:
        super().__init__(folder)
        self._server = server
        self._database = server.new_database("openly")
        self.query(
            "CREATE TABLE orders (id int PRIMARY KEY, updated_at timestamptz, name text)",
            "CREATE INDEX ON orders (updated_at)",
        )
        self.write_config(_CONFIG.format(url=server.url(database=self._database)))

    def query(self, *statements: str) -> None:
        self._server.execute(*statements, database=self._database)

    def load(self, first: int, last: int) -> None:
        self.query(_ADD.format(first, last))
        self.do("run", "p")

    def ids(self) -> list[int]:
        return [row[0] for row in self.duckdb_rows("orders")]


@pytest.fixture
def shop(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[Shop]:
    shop = Shop(tmp_path, postgres_server)
    yield shop
    shop.close()


@pytest.mark.parametrize(
    ("password", "answer", "there"),
    [
        ("postgres", "rewind --to-destination", [*range(1, 13)]),
        ("orders", "adopt", [1, 2, 3, 4, 5, 11, 12]),
    ],
)
def test_a_restored_destination_can_be_answered_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, password: str, answer: str, there: list[int]
) -> None:
    monkeypatch.setenv("WEAK", password)
    shop.load(1, 5)
    copy = shutil.copy(shop.folder / "out.duckdb", shop.folder / "copy")
    shop.load(6, 10)
    shutil.copy(copy, shop.folder / "out.duckdb")
    shop.do("run", "p", code=3)
    verb, *options = answer.split()
    shop.do("cursor", verb, "p.public.orders", *options)
    shop.load(11, 12)
    assert shop.ids() == there


def test_a_changed_cursor_can_be_set(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAK", "openly")
    shop.load(1, 5)
    shop.save(shop.config.read_text().replace('"id"', '"updated_at"'))
    shop.do("run", "p", code=3)
    shop.do("cursor", "set", "p.public.orders", "2026-01-01 00:00:06Z")
    shop.load(6, 7)
    assert shop.ids() == [*range(1, 8)]
