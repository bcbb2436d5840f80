"""Concurrent writers on a real PostgreSQL while it is loaded: all rows arrive, each once (C1).

Slow transactions that stamp at their beginning and commit seconds later, quick ones, equal
timestamps, updates of old rows and a prepared transaction, against pipelines that run each second.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.e2e.world import World, eventually, read_duckdb
from tests.patience import PATIENCE
from tests.servers import PostgresServer

pytestmark = pytest.mark.postgres
_SECONDS = 12.0
_CONFIG = """
[connections.src]
connector = "sql"
url = "{url}"
[connections.duck]
connector = "duckdb"
path = "out.duckdb"
[connections.lake]
connector = "parquet"
path = "lake"
[defaults]
cursor = ["stamped_at"]
settle = "200ms"
max_wait = "5s"
[pipelines.merged]
source = "src"
destination = "duck"
schedule = "every 1s"
mode = "merge"
[pipelines.merged.streams."public.accounts"]
[pipelines.added]
source = "src"
destination = "lake"
schedule = "every 1s"
mode = "append"
[pipelines.added.streams."public.events"]
"""
_TABLES = (
    "create table accounts (id bigserial primary key, writer int, value int,"
    " stamped_at timestamptz not null default now())",
    "create table events (id bigserial primary key, writer int,"
    " stamped_at timestamptz not null default now())",
    "create index on accounts (stamped_at)",
    "create index on events (stamped_at)",
)


class Writers:
    """Threads that write until told to stop."""

    def __init__(self, server: PostgresServer, database: str) -> None:
        self._server, self._database = server, database
        self._over = threading.Event()
        self.faults: list[BaseException] = []
        work = [self._quick, self._quick, self._slow, self._slow, self._updates, self._prepared]
        self._threads = [
            threading.Thread(target=self._serve, args=(number, what))
            for number, what in enumerate(work)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert self.faults == []

    def _serve(self, number: int, what: Any) -> None:
        try:
            self._work(number, what)
        except BaseException as fault:
            self.faults.append(fault)

    def _work(self, number: int, what: Any) -> None:
        chance = random.Random(number)
        with self._server.connect(database=self._database) as db:
            while not self._over.is_set():
                what(db, number, chance)

    def _insert(self, db: Any, number: int, rows: int) -> None:
        values = [(number,)] * rows
        db.cursor().executemany("insert into events (writer) values (%s)", values)
        db.cursor().executemany("insert into accounts (writer, value) values (%s, 0)", values)

    def _quick(self, db: Any, number: int, chance: random.Random) -> None:
        with db.transaction():  # several rows of one transaction share their timestamp
            self._insert(db, number, chance.randint(1, 5))
        self._over.wait(chance.random() * 0.03)

    def _slow(self, db: Any, number: int, chance: random.Random) -> None:
        with db.transaction():  # stamped now, seen only seconds later
            self._insert(db, number, 3)
            self._over.wait(chance.uniform(0.5, 2.0))
            self._insert(db, number, 3)

    def _updates(self, db: Any, number: int, chance: random.Random) -> None:
        del number
        db.execute(
            "update accounts set value = value + 1, stamped_at = now() where id in"
            " (select id from accounts order by random() limit 3)"
        )
        self._over.wait(chance.random() * 0.1)

    def _prepared(self, db: Any, number: int, chance: random.Random) -> None:
        name = f"p{chance.getrandbits(40)}"
        db.execute("begin")
        self._insert(db, number, 2)
        db.execute(f"prepare transaction '{name}'")
        self._over.wait(chance.uniform(0.3, 1.5))
        db.execute(f"commit prepared '{name}'")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def _there(world: World, sql: str) -> list[tuple[Any, ...]]:
    return read_duckdb(world.folder / "out.duckdb", sql)


def _events(world: World) -> list[tuple[Any, ...]]:
    files = f"'{world.folder}/lake/events/*.parquet'"
    try:
        return duckdb.sql(f"select id, writer from {files} order by id").fetchall()
    except duckdb.IOException:
        return []


def test_every_row_of_concurrent_writers_arrives_once(
    world: World, postgres_server: PostgresServer
) -> None:
    name = postgres_server.new_database("writers")
    postgres_server.execute(*_TABLES, database=name)
    world.write_config(_CONFIG.format(url=postgres_server.url(database=name)))
    daemon = world.start()
    daemon.wait_ready()
    writers = Writers(postgres_server, name)
    writers.start()
    time.sleep(_SECONDS)  # how long they write, not a wait for anything
    eventually(lambda: _events(world) != [], "rows arrive while others are written")
    writers.stop()

    events = postgres_server.execute("select id, writer from events order by id", database=name)
    accounts = postgres_server.execute(
        "select id, writer, value from accounts order by id", database=name
    )
    assert len(events) > 200
    eventually(lambda: _events(world) == events, "each event is there once")
    eventually(
        lambda: _there(world, "select id, writer, value from accounts order by id") == accounts,
        "each account is there once, in its newest version",
    )
    assert daemon.stop() == 0
    assert not [e for e in daemon.events if e.get("outcome") in ("failed", "held")]
