"""PostgreSQL as a source, on a real server: no row lost between two runs, no value bent."""

from __future__ import annotations

import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import adbc_driver_manager
import duckdb
import psycopg
import pyarrow as pa
import pytest
from msgspec.structs import replace

from catalog import position
from catalog.records import ErrorClass, HoldKind
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.ports import (
    ConnectorError,
    NeedsAnswer,
    ReadRequest,
    Rows,
    Secrets,
    Source,
    Stopped,
)
from reconciler.connectors.registry import open_source
from reconciler.connectors.sources import postgres
from reconciler.connectors.sources.postgres import Postgres
from reconciler.connectors.sources.session import Session
from reconciler.connectors.sources.sql import SqlSource
from tests.e2e.world import eventually
from tests.servers import PostgresServer, private_postgres
from tests.source_kit import Taken, take

pytestmark = pytest.mark.postgres

BY_TIME = StreamSettings(cursor=("updated_at",))
AT_ONCE = StreamSettings(cursor=("updated_at",), settle=0.0)
STREAM = "public.t"


_NO_ENCODING = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"


class Shop:
    """A database of its own, an application's connections, and the source under test."""

    def __init__(self, server: PostgresServer, name: str, like: str = "") -> None:
        self.server = server
        self.database = server.new_database(name, like)
        self.app = server.connect(database=self.database)
        self.source = self.open()
        self._more: list[psycopg.Connection[Any]] = []

    def open(self, user: str = "postgres", **secrets: str) -> Source:
        url = self.server.url(user=user, database=self.database)
        return open_source("shop", "sql", {"url": url}, Secrets(secrets))

    def another(self) -> psycopg.Connection[Any]:
        """One more connection of the application, not in autocommit."""
        made = psycopg.connect(self.server.url(database=self.database))
        self._more.append(made)
        return made

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.app.execute(statement)

    def value(self, query: str) -> Any:
        row = self.app.execute(query).fetchone()
        assert row is not None
        return row[0]

    def take(
        self, settings: StreamSettings, after: Taken | None = None, stream: str = STREAM
    ) -> Taken:
        return take(self.source, stream, settings, after.cursor if after else None)

    def close(self) -> None:
        self.source.close()
        for connection in (self.app, *self._more):
            connection.close()


@pytest.fixture
def shop(postgres_server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[Shop]:
    made = Shop(postgres_server, "shop")
    yield made
    made.close()


@pytest.fixture
def table(shop: Shop) -> Shop:
    """A table whose rows the database stamps with the start of their transaction."""
    shop.run(
        "CREATE TABLE t (id int PRIMARY KEY, updated_at timestamptz NOT NULL DEFAULT now())",
        "CREATE INDEX t_updated_at ON t (updated_at)",
    )
    return shop


# -- no row is lost (C1) -----------------------------------------------------------------------


def test_a_transaction_that_commits_late_arrives_with_the_next_run(table: Shop) -> None:
    late = table.another()
    late.execute("INSERT INTO t (id) VALUES (1)")
    table.run("SELECT pg_sleep(0.01)", "INSERT INTO t (id) VALUES (2)")
    first = table.take(AT_ONCE)
    assert first.column("id") == []
    late.commit()
    assert table.take(AT_ONCE, first).column("id") == [1, 2]


def test_rows_older_than_an_open_transaction_are_read_meanwhile(table: Shop) -> None:
    table.run("INSERT INTO t (id) VALUES (1)", "SELECT pg_sleep(0.01)")
    late = table.another()
    late.execute("INSERT INTO t (id) VALUES (2)")
    table.run("SELECT pg_sleep(0.01)", "INSERT INTO t (id) VALUES (3)")
    first = table.take(AT_ONCE)
    assert first.column("id") == [1]
    late.commit()
    assert table.take(AT_ONCE, first).column("id") == [2, 3]


def test_a_refresh_of_what_is_merged_keeps_what_an_open_transaction_holds_back(
    table: Shop,
) -> None:
    merges = StreamSettings(cursor=("updated_at",), settle=0.0, mode=Mode.MERGE)
    table.run("INSERT INTO t (id) VALUES (1), (2)", "SELECT pg_sleep(0.01)")
    late = table.another()
    late.execute("INSERT INTO t (id) VALUES (3)")
    table.run("SELECT pg_sleep(0.01)", "UPDATE t SET updated_at = now() WHERE id = 2")
    again = take(table.source, STREAM, merges, refresh=True)
    assert again.column("id") == [1, 2]
    late.commit()
    assert table.take(merges, again).column("id") == [3, 2]


def test_a_prepared_transaction_arrives_when_it_is_committed(table: Shop) -> None:
    late = table.another()
    late.execute("INSERT INTO t (id) VALUES (1)")
    table.run("SELECT pg_sleep(0.01)", "INSERT INTO t (id) VALUES (2)", "SELECT pg_sleep(0.01)")
    late.execute("PREPARE TRANSACTION 'late'")  # when it began stands nowhere from now on
    late.commit()
    table.run("SELECT pg_sleep(0.01)", "INSERT INTO t (id) VALUES (3)")
    settings = StreamSettings(cursor=("updated_at",), settle=0.0, max_wait=30.0)
    first = table.take(settings)
    assert first.column("id") == []
    assert first.note("prepared transaction 'late'")
    table.run("COMMIT PREPARED 'late'")
    assert table.take(settings, first).column("id") == [1, 2, 3]


def test_a_role_that_may_not_look_waits_for_those_that_were_open(table: Shop) -> None:
    table.run(
        "DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN", "GRANT SELECT ON t TO reader"
    )
    source = table.open("reader")
    late = table.another()
    late.execute("INSERT INTO t (id) VALUES (1)")
    table.run("SELECT pg_sleep(0.01)", "INSERT INTO t (id) VALUES (2)")
    waited = threading.Event()

    def commit_when_it_waits() -> bool:
        if not waited.is_set():
            waited.set()
            table.another().execute("SELECT 1")  # it begins now, and is not waited for
            late.commit()
        return False

    settings = StreamSettings(cursor=("updated_at",), settle=0.0, max_wait=20.0)
    try:
        taken = take(source, STREAM, settings, stopped=commit_when_it_waits)
        assert waited.is_set()
        assert taken.column("id") == [1, 2]
    finally:
        source.close()
        table.run("DROP OWNED BY reader", "DROP ROLE reader")


def test_a_transaction_of_a_session_that_tells_nothing_is_waited_for(table: Shop) -> None:
    late = table.another()
    late.execute("SET track_activities = off")
    late.commit()
    late.execute("INSERT INTO t (id) VALUES (1)")
    table.run("SELECT pg_sleep(0.01)", "INSERT INTO t (id) VALUES (2)")
    hasty = StreamSettings(cursor=("updated_at",), settle=0.0, max_wait=0.1)
    with pytest.raises(ConnectorError, match="or set track_activities = on for them"):
        take(table.source, STREAM, hasty)

    def commit_when_it_waits() -> bool:
        late.commit()
        return False

    taken = take(table.source, STREAM, AT_ONCE, stopped=commit_when_it_waits)
    assert sorted(taken.column("id")) == [1, 2]


def test_reads_of_our_own_hold_no_bound_back(table: Shop) -> None:
    """They write nothing; a first load of a large table takes hours."""
    table.run(
        "DROP ROLE IF EXISTS reader",
        "CREATE ROLE reader LOGIN",
        "GRANT SELECT ON t TO reader",
        "INSERT INTO t VALUES (1, '2026-01-01Z')",
    )
    hasty = StreamSettings(cursor=("updated_at",), settle=0.0, max_wait=0.1)
    try:
        for user in ("reader", "postgres"):
            long, short = table.open(user), table.open(user)
            read = long.read(ReadRequest(STREAM, BY_TIME, None))
            table.run("SELECT pg_sleep(0.01)", "INSERT INTO t VALUES (2)")
            assert take(short, STREAM, hasty).column("id") == [1, 2]
            read.close()
            long.close()
            short.close()
            table.run("DELETE FROM t WHERE id = 2")
    finally:
        table.run("DROP OWNED BY reader", "DROP ROLE reader")


def test_an_autovacuum_is_not_waited_for_by_a_role_that_may_not_look() -> None:
    slowly = {"cost_delay": "100ms", "cost_limit": "1"}
    with private_postgres(
        autovacuum="on",
        autovacuum_naptime="1s",
        **{f"autovacuum_vacuum_{name}": value for name, value in slowly.items()},
    ) as server:
        server.execute(
            "CREATE ROLE reader LOGIN",
            "CREATE TABLE t (id int PRIMARY KEY, updated_at timestamptz NOT NULL)",
            "INSERT INTO t VALUES (1, '2026-01-01Z')",
            "GRANT SELECT ON t TO reader",
            "CREATE TABLE large AS SELECT g, repeat('x', 200) x FROM generate_series(1, 20000) g",
            "UPDATE large SET x = ''",
        )
        vacuums = "SELECT pid FROM pg_stat_activity WHERE query ~ '^autovacuum: VACUUM.*large'"
        eventually(lambda: bool(server.execute(vacuums)), "an autovacuum is at work")
        source = open_source("shop", "sql", {"url": server.url("reader")}, Secrets({}))
        hasty = StreamSettings(cursor=("updated_at",), max_wait=0.1)
        assert take(source, STREAM, hasty).column("id") == [1]
        assert server.execute(vacuums)
        source.close()


def test_a_role_that_may_not_look_gives_up_after_max_wait_and_names_the_pid(table: Shop) -> None:
    table.run(
        "DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN", "GRANT SELECT ON t TO reader"
    )
    source = table.open("reader")
    late = table.another()
    late.execute("INSERT INTO t (id) VALUES (1)")
    settings = StreamSettings(cursor=("updated_at",), max_wait=0.1)
    try:
        with pytest.raises(ConnectorError, match=f"pid {late.info.backend_pid}") as caught:
            take(source, STREAM, settings)
        assert caught.value.error is ErrorClass.TRANSIENT
        with pytest.raises(Stopped):
            take(source, STREAM, BY_TIME, stopped=lambda: True)
    finally:
        late.rollback()
        source.close()
        table.run("DROP OWNED BY reader", "DROP ROLE reader")


def test_rows_that_another_database_stamps_have_longer_to_arrive(table: Shop) -> None:
    origin = table.server.new_database("origin")
    table.server.execute(
        "CREATE TABLE t (id int PRIMARY KEY, updated_at timestamptz NOT NULL DEFAULT now())",
        "CREATE PUBLICATION p FOR TABLE t",
        "SELECT pg_create_logical_replication_slot('reconciler_test', 'pgoutput')",
        database=origin,
    )
    table.run(
        f"CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={table.server.port} user=postgres "
        f"dbname={origin}' PUBLICATION p WITH (create_slot = false, slot_name = 'reconciler_test', "
        "enabled = false)"
    )
    try:
        table.run("INSERT INTO t VALUES (1, now() - interval '1 min'), (2, now() - interval '5 s')")
        taken = table.take(BY_TIME)
        assert taken.column("id") == [1]
        assert taken.note("takes rows from another one, which stamps them")
        (warning,) = [f for f in table.source.check({}) if f.level == "warning"]
        assert "takes rows from another one" in warning.text
    finally:
        table.run("ALTER SUBSCRIPTION s SET (slot_name = NONE)", "DROP SUBSCRIPTION s")
        table.server.execute("SELECT pg_drop_replication_slot('reconciler_test')")


def test_rows_of_another_servers_tables_have_longer_to_arrive(shop: Shop) -> None:
    far = shop.server.new_database("far")
    shop.server.execute("CREATE TABLE t (id int, updated_at timestamptz)", database=far)
    shop.run(
        "CREATE EXTENSION postgres_fdw",
        "CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw "
        f"OPTIONS (host '127.0.0.1', port '{shop.server.port}', dbname '{far}')",
        "CREATE USER MAPPING FOR postgres SERVER far OPTIONS (user 'postgres')",
        "CREATE TABLE every (id int, updated_at timestamptz) PARTITION BY RANGE (id)",
        "CREATE FOREIGN TABLE t PARTITION OF every DEFAULT SERVER far",
        "CREATE VIEW v AS SELECT * FROM every",
        "INSERT INTO t VALUES (1, now() - interval '1 min'), (2, now() - interval '5 s')",
    )
    for stream in ("public.t", "public.every", "public.v"):
        taken = shop.take(BY_TIME, stream=stream)
        assert taken.column("id") == [1]
        assert taken.note("another server stamps the rows of a foreign table")


@pytest.mark.parametrize("stream", ["public.m", "public.v"])
def test_a_materialized_view_is_read_up_to_its_newest_row(table: Shop, stream: str) -> None:
    table.run(
        "CREATE MATERIALIZED VIEW m AS SELECT * FROM t",
        "CREATE VIEW v AS SELECT * FROM m",
    )
    first = table.take(AT_ONCE, stream=stream)
    assert not first.has_news
    table.run("INSERT INTO t VALUES (1, now()), (9, 'infinity')", "REFRESH MATERIALIZED VIEW m")
    table.run("INSERT INTO t VALUES (2)")
    second = table.take(AT_ONCE, first, stream)
    assert second.column("id") == [1]
    table.run("REFRESH MATERIALIZED VIEW m")
    third = table.take(AT_ONCE, second, stream)
    assert third.column("id") == [2]
    assert third.note("is read up to its newest")
    assert not table.take(AT_ONCE, third, stream).has_news


def test_the_newest_day_of_a_materialized_view_waits_for_the_next(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE t (id int, day date)",
        "CREATE MATERIALIZED VIEW m AS SELECT * FROM t",
        "INSERT INTO t VALUES (1, '2020-01-01'), (2, '2020-01-02')",
        "REFRESH MATERIALIZED VIEW m",
    )
    settings = StreamSettings(cursor=("day",))
    first = shop.take(settings, stream="public.m")
    assert first.column("id") == [1]
    shop.run("INSERT INTO t VALUES (3, '2020-01-02'), (4, '2020-01-03')")
    shop.run("REFRESH MATERIALIZED VIEW m")
    assert sorted(shop.take(settings, first, "public.m").column("id")) == [2, 3]


def test_a_writer_that_holds_the_bound_for_longer_than_max_wait_is_a_failure(table: Shop) -> None:
    table.run("INSERT INTO t (id) VALUES (1)", "SELECT pg_sleep(0.01)")
    late = table.another()
    late.execute("INSERT INTO t (id) VALUES (2)")
    pid = late.info.backend_pid
    table.run("SELECT pg_sleep(0.1)", "INSERT INTO t (id) VALUES (3)")
    settings = StreamSettings(cursor=("updated_at",), settle=0.0, max_wait=0.05)
    first = table.take(settings)
    assert first.column("id") == [1]
    with pytest.raises(ConnectorError, match=f"held back .*pid {pid}") as caught:
        table.take(settings, first)
    assert caught.value.error is ErrorClass.TRANSIENT
    late.commit()
    assert table.take(settings, first).column("id") == [2, 3]


def test_a_session_that_wrote_nothing_holds_the_bound_for_max_wait_only(table: Shop) -> None:
    idle = table.another()
    idle.execute("SELECT 1")
    table.run("SELECT pg_sleep(0.1)", "INSERT INTO t (id) VALUES (1)", "SELECT pg_sleep(0.01)")
    patient = StreamSettings(cursor=("updated_at",), settle=0.0)
    assert table.take(patient).column("id") == []
    settings = StreamSettings(cursor=("updated_at",), settle=0.0, max_wait=0.05)
    taken = table.take(settings)
    assert taken.column("id") == [1]
    assert f"pid {idle.info.backend_pid}" in taken.note("has written nothing")


def test_rows_within_the_time_to_settle_wait(table: Shop) -> None:
    table.run("INSERT INTO t (id) VALUES (1)")
    table.run("INSERT INTO t VALUES (2, now() - interval '1 hour')")
    patient = StreamSettings(cursor=("updated_at",), settle=60.0)
    first = table.take(patient)
    assert first.column("id") == [2]
    assert first.counts == {}
    table.run("SELECT pg_sleep(0.01)")
    assert table.take(AT_ONCE, first).column("id") == [1]


def test_rows_that_share_a_time_all_arrive_once(table: Shop) -> None:
    table.run("INSERT INTO t SELECT g, '2026-01-31 10:00:00Z' FROM generate_series(1, 500) g")
    first = table.take(BY_TIME)
    assert len(first.rows) == 500
    assert table.take(BY_TIME, first).has_news is False


def test_rows_that_are_committed_while_reading_come_next_time(table: Shop) -> None:
    table.run(
        "INSERT INTO t SELECT g, '2026-01-01Z'::timestamptz + g * interval '1 s' "
        "FROM generate_series(1, 200000) g"
    )
    moved: list[int] = []

    def update_once() -> bool:
        if not moved:
            moved.append(1)
            table.run("UPDATE t SET updated_at = '2026-06-01Z' WHERE id = 200000")
        return False

    first = take(table.source, STREAM, BY_TIME, stopped=update_once)
    assert len(first.rows) == 200_000
    assert table.take(BY_TIME, first).has_news is False  # below the bound that was fixed
    table.run("UPDATE t SET updated_at = now() WHERE id = 200000", "SELECT pg_sleep(0.01)")
    assert table.take(AT_ONCE, first).column("id") == [200_000]


def test_marks_stand_between_values_and_a_run_goes_on_from_any_of_them(table: Shop) -> None:
    table.run(
        "ALTER TABLE t ADD COLUMN pad text DEFAULT repeat('x', 200)",
        "INSERT INTO t SELECT g, '2026-01-01Z'::timestamptz + (g / 7) * interval '1 s' "
        "FROM generate_series(1, 150000) g",
    )
    taken = table.take(BY_TIME)
    assert taken.ordered
    assert len(taken.marks) > 2
    ids = taken.column("id")
    for mark, count in list(zip(taken.marks, taken.rows_before_mark, strict=True))[:2]:
        rest = take(table.source, STREAM, BY_TIME, mark.cursor)
        assert sorted(ids[:count] + rest.column("id")) == sorted(ids)


def test_no_mark_stands_between_two_texts_of_one_number(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE t (id int PRIMARY KEY, n numeric)",
        "CREATE INDEX ON t (n)",
        "INSERT INTO t VALUES (1, 1), (2, 2.0), (3, 2.00), (4, 2.000)",
    )
    settings = StreamSettings(cursor=("n",))
    taken = shop.take(settings)
    assert taken.rows_before_mark == [1, 4]
    rest = take(shop.source, STREAM, settings, taken.marks[0].cursor)
    assert sorted(rest.column("id")) == [2, 3, 4]


def test_without_an_index_one_mark_ends_the_read_and_check_says_so(table: Shop) -> None:
    table.run("DROP INDEX t_updated_at", "INSERT INTO t VALUES (1, '2026-01-01Z')")
    taken = table.take(BY_TIME)
    assert (taken.ordered, len(taken.marks)) == (False, 1)
    findings = table.source.check({STREAM: BY_TIME})
    proposed = next(f for f in findings if f.level == "warning" and "no index" in f.text)
    table.run(proposed.hint)
    assert not [f for f in table.source.check({STREAM: BY_TIME}) if "no index" in f.text]


def test_integers_are_read_to_the_greatest_and_the_assumption_is_told(table: Shop) -> None:
    table.run("INSERT INTO t VALUES (999999, DEFAULT), (1000000, DEFAULT)")
    settings = StreamSettings(cursor=("id",))
    first = table.take(settings)
    assert first.column("id") == [999_999, 1_000_000]
    assert first.note("exact only if rows become visible in its order")
    table.run("INSERT INTO t VALUES (1000001, DEFAULT)")
    assert table.take(settings, first).column("id") == [1_000_001]
    assert first.note("rows that change are not seen either")
    table.run("TRUNCATE t", "INSERT INTO t VALUES (1, DEFAULT)")
    fallen = table.take(settings, first)
    assert (fallen.has_news, "reaches the cursor, 1000000, any more" in fallen.idle) == (
        False,
        True,
    )


def test_lookback_brings_a_late_number_that_was_passed_over(table: Shop) -> None:
    late = table.another()
    late.execute("INSERT INTO t VALUES (1, DEFAULT)")
    table.run("INSERT INTO t VALUES (2, DEFAULT)")
    settings = StreamSettings(cursor=("id",), lookback=10)
    first = table.take(settings)
    assert first.column("id") == [2]
    late.commit()
    table.run("INSERT INTO t VALUES (3, DEFAULT)")
    assert sorted(table.take(settings, first).column("id")) == [1, 2, 3]


def test_lookback_goes_by_the_time_in_a_uuid(shop: Shop) -> None:
    def made(millis: int) -> uuid.UUID:
        return uuid.UUID(int=millis << 80 | 7 << 76 | 2 << 62)

    shop.run("CREATE TABLE t (id uuid PRIMARY KEY)", f"INSERT INTO t VALUES ('{made(90_000)}')")
    settings = StreamSettings(cursor=("id",), lookback=60.0)
    first = shop.take(settings)
    late = (made(29_999), made(30_000), made(90_001))
    shop.run(*(f"INSERT INTO t VALUES ('{value}')" for value in late))
    assert set(shop.take(settings, first).column("id")) == {*late[1:], made(90_000)}


@pytest.mark.parametrize("kind", ["uuid", "text"])
def test_lookback_is_refused_where_there_is_no_way_back(shop: Shop, kind: str) -> None:
    shop.run(f"CREATE TABLE t (id {kind} PRIMARY KEY)", "INSERT INTO t VALUES (gen_random_uuid())")
    with pytest.raises(ConnectorError, match="lookback knows no way back from the value of 'id'"):
        shop.take(StreamSettings(cursor=("id",), lookback=60.0))
    note = shop.take(StreamSettings(cursor=("id",))).note("visible in its order")
    assert "lookback" not in note


@pytest.mark.parametrize(
    ("kind", "values", "tag"),
    [
        ("numeric", ["1.5", "12345678901234567890.5"], "decimal"),
        ("text", ["Zebra", "aardvark"], "text"),
        ("uuid", [str(uuid.UUID(int=1)), str(uuid.UUID(int=2**127))], "uuid"),
        ("date", ["2026-01-01", "2026-01-02"], "date"),
        ("timestamp", ["2026-01-01 10:00", "2026-01-02 11:00:00.5"], "naive_timestamp"),
    ],
)
@pytest.mark.parametrize("indexed", [True, False])
def test_cursors_of_every_kind_go_on_in_order(
    shop: Shop, kind: str, values: list[str], tag: str, *, indexed: bool
) -> None:
    collate = ' COLLATE "C"' if kind == "text" else ""
    shop.run(f"CREATE TABLE t (id int PRIMARY KEY, c {kind}{collate})")
    if indexed:
        shop.run("CREATE INDEX ON t (c)")
    shop.run(f"INSERT INTO t VALUES (1, '{values[0]}')")
    settings = StreamSettings(cursor=("c",))
    first = shop.take(settings)
    assert (first.column("id"), first.ordered) == ([1], indexed)
    assert first.cursor is not None
    assert first.cursor.position.tag == tag
    shop.run(f"INSERT INTO t VALUES (2, '{values[1]}')")
    if tag in ("date", "naive_timestamp"):  # read below a clock, which has passed both
        assert shop.take(settings, first).has_news is False
    else:
        assert shop.take(settings, first).column("id") == [2]


# -- values (C4, C5) ---------------------------------------------------------------------------


def test_infinity_and_the_far_future_are_counted_and_move_nothing(table: Shop) -> None:
    table.run(
        "INSERT INTO t VALUES (1, 'infinity'), (2, '9999-12-31Z'), (3, '2026-01-01Z'), "
        "(4, '-infinity')"
    )
    taken = table.take(BY_TIME)
    assert sorted(row["id"] for row in rows_of(taken)) == [3, 4]
    assert taken.counts == {"beyond_bound": 2}
    assert taken.cursor is not None
    assert taken.cursor.position.text < "2100"


@pytest.mark.parametrize("kind", ["date", "timestamp", "timestamptz"])
@pytest.mark.parametrize("oldest", ["-infinity", "0044-03-15 BC"])
def test_a_time_before_the_year_one_is_read_and_is_no_place_for_a_cursor(
    shop: Shop, kind: str, oldest: str
) -> None:
    shop.run(
        f"CREATE TABLE t (id int PRIMARY KEY, c {kind})",
        "CREATE INDEX ON t (c)",
        f"INSERT INTO t VALUES (1, '4713-01-01 BC'), (2, '{oldest}')",
    )
    settings = StreamSettings(cursor=("c",))
    old = shop.take(settings)
    assert ({row["id"] for row in old.rows}, len(old.marks), old.marks[0].data_at) == (
        *({1, 2}, 1, None),
    )
    shop.run("INSERT INTO t VALUES (3, '2026-01-01')")
    taken = shop.take(settings)
    assert (len(taken.rows), len(taken.marks)) == (3, 2)
    assert taken.marks[0].cursor is not None
    assert taken.marks[0].cursor.position.text.startswith("2026-01-01")


def test_rows_stamped_while_the_bound_is_found_lie_in_no_future(
    table: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Postgres.begin

    def begin_late(dialect: Postgres) -> None:  # as on a slow line, or a busy machine
        table.run("INSERT INTO t (id) VALUES (1)")
        begin(dialect)

    monkeypatch.setattr(Postgres, "begin", begin_late)
    assert table.take(BY_TIME).counts == {}


def test_nan_in_a_numeric_cursor_is_counted(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE t (id int PRIMARY KEY, c numeric)",
        "INSERT INTO t VALUES (1, 1), (2, 'NaN'), (3, 'Infinity')",
    )
    taken = shop.take(StreamSettings(cursor=("c",)))
    assert (taken.column("id"), taken.counts) == ([1], {"beyond_bound": 2})


def test_a_null_cursor_is_held_skipped_or_read_again(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE t (id int PRIMARY KEY, updated_at timestamptz)",
        "CREATE INDEX ON t (updated_at)",
        "INSERT INTO t VALUES (1, '2026-01-01Z'), (2, NULL)",
    )
    with pytest.raises(NeedsAnswer) as caught:
        shop.take(BY_TIME)
    assert caught.value.kind is HoldKind.NULL_CURSOR
    skipped = shop.take(StreamSettings(cursor=("updated_at",), null_cursor="skip"))
    assert (skipped.column("id"), skipped.counts) == ([1], {"null_cursor": 1})
    again = StreamSettings(cursor=("updated_at",), null_cursor="reread")
    first = shop.take(again)
    assert first.column("id") == [1, 2]
    assert shop.take(again, first).column("id") == [2]


def test_a_null_cursor_in_a_column_that_says_not_null_is_held(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE t (id int PRIMARY KEY, updated_at timestamptz)",
        "CREATE INDEX ON t (updated_at)",
    )
    if shop.app.info.server_version >= 180000:
        shop.run(
            "INSERT INTO t VALUES (1, '2026-01-01Z'), (2, NULL)",
            "ALTER TABLE t ADD CONSTRAINT filled NOT NULL updated_at NOT VALID",
        )
    else:
        shop.run(
            "CREATE TABLE more () INHERITS (t)",
            "ALTER TABLE ONLY t ALTER COLUMN updated_at SET NOT NULL",
            "INSERT INTO t VALUES (1, '2026-01-01Z')",
            "INSERT INTO more VALUES (2, NULL)",
        )
    with pytest.raises(NeedsAnswer) as caught:
        shop.take(BY_TIME)
    assert caught.value.kind is HoldKind.NULL_CURSOR


def test_another_definition_is_held(table: Shop) -> None:
    table.run("INSERT INTO t VALUES (1, '2026-01-01Z')")
    first = table.take(BY_TIME)
    with pytest.raises(NeedsAnswer, match="cursor column was 'updated_at', is 'id'") as caught:
        table.take(StreamSettings(cursor=("id",)), first)
    assert caught.value.kind is HoldKind.DEFINITION
    again = take(table.source, STREAM, StreamSettings(cursor=("id",)), refresh=True)
    assert again.column("id") == [1]


# -- types -------------------------------------------------------------------------------------


def rows_of(taken: Taken) -> list[dict[str, Any]]:
    """As DuckDB sees them, which has infinity."""
    if not taken.batches:
        return []
    seen = pa.Table.from_batches(taken.batches)
    connection = duckdb.connect()
    try:
        connection.register("seen", seen)
        result = connection.sql("SELECT * FROM seen")
        return [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]
    finally:
        connection.close()


def test_types_survive(shop: Shop) -> None:
    one = uuid.UUID(int=5)
    shop.run(
        "CREATE TYPE mood AS ENUM ('well')",
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
        "CREATE TABLE t (id bigint PRIMARY KEY, b bool, i2 smallint, r real, f float8, "
        "n numeric(10,2), free numeric, wide numeric(60,5), x text, by bytea, d date, tm time, "
        "tz timestamptz, ts timestamp, u uuid, j json, jb jsonb, ia int[], ta text[], ua uuid[], "
        "iv interval, mo money, ip inet, o oid, em mood, po positive, rg int4range, xm xml)",
        "INSERT INTO t VALUES (1, true, 2, 1.5, 'NaN', 12.30, 1.50, 1.5, 'é\U0001f600', '\\x00ff', "
        "'2026-01-31', '10:00:00.5', '2026-01-31 10:00+02', '2026-01-31 10:00', "
        f"'{one}', '{{\"a\": 1}}', '{{\"a\":1}}', '{{1,NULL}}', '{{a,\"\"}}', '{{{one}}}', "
        "'1 day 2 hours', 1.5, '10.0.0.1', 4000000000, 'well', 7, '[1,3)', '<a/>')",
    )
    (row,) = shop.take(StreamSettings()).rows
    assert str(row.pop("f")) == "nan"
    assert row == {
        "id": 1,
        "b": True,
        "i2": 2,
        "r": 1.5,
        "n": Decimal("12.30"),
        "free": "1.50",
        "wide": "1.50000",
        "x": "é\U0001f600",
        "by": b"\x00\xff",
        "d": dt.date(2026, 1, 31),
        "tm": dt.time(10, 0, 0, 500_000),
        "tz": dt.datetime(2026, 1, 31, 8, tzinfo=dt.UTC),
        "ts": dt.datetime(2026, 1, 31, 10),  # noqa: DTZ001 - it has no zone
        "u": one,
        "j": '{"a": 1}',
        "jb": '{"a": 1}',
        "ia": [1, None],
        "ta": ["a", ""],
        "ua": [one],
        "iv": "1 day 02:00:00",
        "mo": "$1.50",
        "ip": "10.0.0.1/32",
        "o": 4_000_000_000,
        "em": "well",
        "po": 7,
        "rg": "[1,3)",
        "xm": "<a/>",
    }


def test_what_arrives_as_text_is_written_the_same_whatever_the_database_prefers(shop: Shop) -> None:
    shop.run(
        "CREATE TYPE place AS (x float8, b bytea)",
        "CREATE TABLE t (id int PRIMARY KEY, iv interval, r daterange, p place)",
        "INSERT INTO t VALUES (1, '1 day 2 hours', '[2026-01-31,2026-02-01)', "
        "ROW(0.30000000000000004, 'a'))",
        "ALTER DATABASE shop SET IntervalStyle = 'iso_8601'",
        "ALTER DATABASE shop SET DateStyle = 'German'",
        "ALTER DATABASE shop SET extra_float_digits = -5",
        "ALTER DATABASE shop SET bytea_output = 'escape'",
    )
    assert shop.take(StreamSettings()).rows == [
        {
            "id": 1,
            "iv": "1 day 02:00:00",
            "r": "[2026-01-31,2026-02-01)",
            "p": r'(0.30000000000000004,"\\x61")',
        }
    ]


def test_what_arrives_as_text_is_what_postgres_writes(shop: Shop) -> None:
    shop.run(
        'CREATE TABLE t (id int PRIMARY KEY, n numeric, many numeric[], c "char")',
        "INSERT INTO t VALUES (1, 'NaN', '{NaN,1.50,NULL}', ''), (2, '1e-5', NULL, 'x')",
    )
    written = list(shop.app.execute("SELECT n::text, c::text FROM t ORDER BY id"))
    taken = shop.take(StreamSettings())
    assert [(row["n"], row["c"]) for row in taken.rows] == written
    assert taken.column("many") == [["NaN", "1.50", None], None]


def test_a_table_that_others_inherit_from_has_no_key(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE older (PRIMARY KEY (id)) INHERITS (t)",
        "INSERT INTO t VALUES (1)",
        "INSERT INTO older VALUES (1)",
    )
    keys = {found.name: found.schema.key for found in shop.source.discover(["*"], {})}
    assert keys == {"public.t": (), "public.older": ("id",)}


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        ((), True),
        (("CREATE UNIQUE INDEX ON t (b, a)",), False),
        (("CREATE UNIQUE INDEX ON t (b) INCLUDE (c)",), False),
        (("ALTER TABLE t ADD UNIQUE (a) DEFERRABLE INITIALLY DEFERRED",), False),
        (("ALTER TABLE t ADD PRIMARY KEY (c), ADD UNIQUE (a, b)",), False),
        (('CREATE UNIQUE INDEX ON t (b COLLATE "ci")',), False),
        (("CREATE INDEX ON t (a)",), True),
        (("CREATE UNIQUE INDEX ON t (a, c)", "CREATE UNIQUE INDEX ON t (c, b)"), True),
        (("CREATE UNIQUE INDEX ON t (a) WHERE c > 0",), True),
        (("CREATE UNIQUE INDEX ON t (a, nullif(b, ''))",), True),
        (("CREATE UNIQUE INDEX ON t (a)", "CREATE TABLE u () INHERITS (t)"), True),
    ],
)
def test_a_unique_index_says_that_rows_have_not_the_same_key(
    shop: Shop, statements: tuple[str, ...], *, told: bool
) -> None:
    shop.run(
        "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        "CREATE TABLE t (a int, b text, c int)",
        *statements,
    )
    assert said_of_the_key(shop) == told


def test_a_unique_index_that_is_not_valid_says_nothing_of_a_key(shop: Shop) -> None:
    shop.run("CREATE TABLE t (a int, b text)", "INSERT INTO t VALUES (1, 'x'), (1, 'x')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        shop.run("CREATE UNIQUE INDEX CONCURRENTLY ON t (a)")
    assert said_of_the_key(shop)


def test_a_row_without_a_value_is_not_merged_by_a_unique_index_that_lets_it_repeat(
    shop: Shop,
) -> None:
    shop.run(
        "CREATE TABLE t (a int UNIQUE, b text)",
        "INSERT INTO t VALUES (1, 'x'), (NULL, 'x'), (NULL, 'x')",
    )
    with pytest.raises(NeedsAnswer, match="no value in the key column 'a'"):
        shop.take(StreamSettings(mode=Mode.MERGE, key=("a", "b")))


def said_of_the_key(shop: Shop) -> bool:
    """Whether rows that share it are told to become one: by a run, and as much by ``check``."""
    settings = StreamSettings(mode=Mode.MERGE, key=("a", "b"))
    said = any("become one" in note for note in shop.take(settings).notes)
    assert any("become one" in one.text for one in shop.source.check({STREAM: settings})) == said
    return said


def test_infinite_times_stay_infinite(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE t (id int PRIMARY KEY, ts timestamp, d date, many timestamptz[])",
        "INSERT INTO t VALUES (1, 'infinity', '-infinity', '{infinity}'), (2, NULL, NULL, NULL)",
    )
    taken = shop.take(StreamSettings())
    table = pa.Table.from_batches(taken.batches)
    seen = duckdb.connect()
    seen.register("seen", table)
    shown = seen.sql("SELECT ts::text, d::text, many[1]::text FROM seen ORDER BY id").fetchall()
    seen.close()
    assert shown == [("infinity", "-infinity", "infinity"), (None, None, None)]


def test_what_no_type_can_hold_is_set_aside_with_its_key(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE t (id int PRIMARY KEY, n numeric(10,2), m int[], ts timestamptz)",
        "INSERT INTO t VALUES (1, 'NaN'), (2, 1)",
        "INSERT INTO t (id, m) VALUES (3, '{{1,2},{3,4}}')",
        "INSERT INTO t (id, ts) VALUES (4, '294276-01-01Z')",
    )
    taken = shop.take(StreamSettings())
    assert taken.column("id") == [2]
    reasons = {row.place: row.reason for row in taken.rejected}
    assert "nan" in reasons["id=1"]
    assert "more than one dimension" in reasons["id=3"]
    assert "beyond the year 294246" in reasons["id=4"]


def test_json_that_is_json_to_postgres_alone_is_set_aside(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE t (id int PRIMARY KEY, j json, many json[])",
        r"""INSERT INTO t VALUES (1, '"\ud800"', NULL), (2, '"\ud83d\ude00"', '{}')""",
        r"""INSERT INTO t VALUES (3, '1', ARRAY['1', '"\uDC00"'::json])""",
        r"""INSERT INTO t VALUES (4, '1', ARRAY['"\udc00"'::json]), (5, NULL, ARRAY['1'::json])""",
    )
    taken = shop.take(StreamSettings())
    assert taken.column("id") == [2, 5]
    assert {row.place for row in taken.rejected} == {"id=1", "id=3", "id=4"}
    assert "column 'many': " in taken.rejected[1].reason


def test_an_array_that_is_not_counted_from_one_is_a_list_as_well(shop: Shop) -> None:
    shop.run(
        "CREATE DOMAIN days AS date[]",
        "CREATE TABLE t (id int PRIMARY KEY, n int[], x numeric[], d days)",
        "INSERT INTO t VALUES (1, '[5:6]={1,NULL}', '[-1:0]={1.0,2}', '[0:0]={2026-01-31}')",
        "INSERT INTO t VALUES (2, '{}', NULL, '{}')",
    )
    assert shop.take(StreamSettings()).rows == [
        {"id": 1, "n": [1, None], "x": ["1.0", "2"], "d": [dt.date(2026, 1, 31)]},
        {"id": 2, "n": [], "x": None, "d": []},
    ]


@pytest.mark.parametrize(
    ("encoding", "text"), [("WIN1251", "ёж"), ("LATIN1", "é"), ("EUC_JP", "亜")]
)
def test_text_of_a_database_in_another_encoding_arrives(
    postgres_server: PostgresServer, encoding: str, text: str
) -> None:
    like = _NO_ENCODING.replace("SQL_ASCII", encoding)
    shop = Shop(postgres_server, "shop", like=like)
    shop.run("CREATE TABLE t (x text PRIMARY KEY)", f"INSERT INTO t VALUES ('{text}')")
    assert shop.take(StreamSettings()).rows == [{"x": text}]
    by_text = StreamSettings(cursor=("x",))
    if encoding == "LATIN1":
        assert shop.take(by_text, after=shop.take(by_text)).has_news is False
    else:
        with pytest.raises(ConnectorError, match="another order than Unicode"):
            shop.take(by_text)
    shop.close()


def test_text_of_a_database_that_knows_no_encoding_is_looked_at(
    postgres_server: PostgresServer,
) -> None:
    shop = Shop(postgres_server, "shop", like=_NO_ENCODING)
    shop.run(
        "CREATE TABLE t (id int PRIMARY KEY, x text)",
        r"INSERT INTO t VALUES (1, E'\xff'), (2, 'ok')",
    )
    taken = shop.take(StreamSettings())
    shop.close()
    assert taken.column("id") == [2]
    assert [row.reason for row in taken.rejected] == ["column 'x': b'\\xff' is no UTF-8 text"]


def test_columns_of_the_config_give_a_free_numeric_its_size(shop: Shop) -> None:
    shop.run("CREATE TABLE t (id int PRIMARY KEY, n numeric)", "INSERT INTO t VALUES (1, 1.25)")
    assert shop.take(StreamSettings()).note("numeric of any size")
    taken = shop.take(StreamSettings(columns=(("n", "decimal(38,9)"),)))
    assert taken.rows == [{"id": 1, "n": Decimal("1.250000000")}]
    assert not any("numeric" in note for note in taken.notes)


def test_odd_names_and_long_text_survive(shop: Shop) -> None:
    shop.run(
        'CREATE SCHEMA "My ""own"" schema"',
        'CREATE TABLE "My ""own"" schema"."T a.b" ("Key ""K" int PRIMARY KEY, "sel ect" text)',
        'INSERT INTO "My ""own"" schema"."T a.b" SELECT g, repeat(chr(120), g) '
        "FROM unnest(ARRAY[1, 1000000]) g",
    )
    stream = 'My "own" schema.T a.b'
    settings = StreamSettings(cursor=('Key "K',))
    taken = shop.take(settings, stream=stream)
    assert [len(text) for text in taken.column("sel ect")] == [1, 1_000_000]
    assert shop.take(settings, taken, stream).has_news is False
    (found,) = shop.source.discover(["My*"], {})
    assert (found.name, found.schema.key, found.indexed) == (stream, ('Key "K',), ('Key "K',))


# -- what is there, and what goes wrong ----------------------------------------------------------


def test_discover_knows_keys_cursors_and_the_indexes_on_them(table: Shop) -> None:
    table.run(
        "CREATE TABLE line (b int, a int, modified timestamp, PRIMARY KEY (a, b))",
        "CREATE VIEW v AS SELECT 1 AS x",
    )
    found = {s.name: s for s in table.source.discover(["public.*"], {"public.v": StreamSettings()})}
    assert set(found) == {"public.t", "public.line", "public.v"}
    assert found["public.line"].schema.key == ("a", "b")
    assert found["public.line"].cursors[0] == "modified"
    assert found["public.t"].cursors == ("updated_at", "id")
    assert found["public.t"].indexed == ("updated_at", "id")


def test_a_query_has_types_and_a_cursor_like_a_table(table: Shop) -> None:
    table.run("INSERT INTO t VALUES (1, '2026-01-01Z'), (2, '2026-01-02Z')")
    settings = StreamSettings(
        query="SELECT id, updated_at, id::numeric(5,1) AS n FROM t WHERE id > 1 -- the newer ones",
        key=("id",),
        cursor=("updated_at",),
    )
    taken = table.take(settings, stream="some")
    assert taken.column("n") == [Decimal("2.0")]
    assert table.take(settings, taken, "some").has_news is False


def test_a_whole_table_is_one_snapshot(table: Shop) -> None:
    table.run("INSERT INTO t VALUES (1, '2026-01-01Z')")
    taken = table.take(StreamSettings(mode=Mode.REPLACE))
    assert (taken.column("id"), len(taken.marks)) == ([1], 1)


def test_a_clock_that_is_behind_the_cursor_is_said(table: Shop) -> None:
    """As after a failover to a server whose clock is late."""
    table.run("INSERT INTO t VALUES (1, '2026-01-01Z')")
    cursor = table.take(AT_ONCE).cursor
    assert cursor is not None
    ahead = int(time.time() + 3600) * 1_000_000
    later = replace(cursor, position=position.encode("timestamp", ahead))
    table.run("INSERT INTO t VALUES (2)")
    found = take(table.source, STREAM, AT_ONCE, later)
    assert not found.has_news
    assert "has not reached the cursor" in found.idle
    assert found.note("clock was set back") == found.idle
    assert table.take(AT_ONCE).idle == ""


def test_a_bound_that_an_open_transaction_puts_before_the_cursor_is_no_clock_set_back(
    table: Shop,
) -> None:
    first = table.take(AT_ONCE)
    late = table.another()
    late.execute("INSERT INTO t (id) VALUES (1)")
    late.execute("PREPARE TRANSACTION 'open'")
    late.commit()
    settings = StreamSettings(cursor=("updated_at",), settle=0.0, max_wait=30.0)
    found = table.take(settings, first)
    table.run("ROLLBACK PREPARED 'open'")
    assert found.note("held back by prepared transaction")
    assert not found.has_news
    assert found.idle == ""


def test_what_a_read_may_not_see_of_a_table_is_said(table: Shop) -> None:
    table.run(
        "CREATE TABLE empty ()",
        "CREATE ROLE reader LOGIN",
        "GRANT SELECT ON t TO reader",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
    )
    source = table.open(user="reader")
    try:
        assert take(source, STREAM, BY_TIME).note("row-level security")
    finally:
        source.close()
        table.run("DROP OWNED BY reader", "DROP ROLE reader")
    assert not [note for note in table.take(BY_TIME).notes if "row-level" in note]
    whole = StreamSettings(mode=Mode.REPLACE)
    assert table.take(whole, stream="public.empty").note("has no columns")


def test_a_missing_table_or_column_is_permanent_and_names_the_nearest(table: Shop) -> None:
    with pytest.raises(ConnectorError, match=r"did you mean 'public\.t'") as no:
        table.take(BY_TIME, stream="public.tt")
    assert no.value.error is ErrorClass.PERMANENT
    with pytest.raises(ConnectorError, match="did you mean 'updated_at'") as no:
        table.take(StreamSettings(columns=(("update_at", "text"),)))
    assert no.value.error is ErrorClass.PERMANENT


_OURS = "application_name LIKE 'reconciler%'"
_END_CONNECTIONS = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}"


def test_a_connection_that_ended_between_two_reads_costs_no_run(table: Shop) -> None:
    table.run("INSERT INTO t VALUES (1, '2026-01-01Z')")
    assert table.take(BY_TIME).column("id") == [1]
    table.run(_END_CONNECTIONS)
    assert table.take(BY_TIME).column("id") == [1]


def test_a_connection_that_ended_between_two_looks_for_streams_costs_no_run(table: Shop) -> None:
    assert table.source.discover(["nothing.*"], {}) == []
    table.run(_END_CONNECTIONS)
    assert [found.name for found in table.source.discover(["public.*"], {})] == [STREAM]


def test_a_connection_does_not_grow_old(table: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a role or database, and where a name leads, hold for new connections alone."""
    monkeypatch.setattr(postgres, "_MAX_AGE", 0.0)
    table.run("CREATE SCHEMA other", "CREATE TABLE other.t (id int PRIMARY KEY)")
    table.run("INSERT INTO t VALUES (1)", "INSERT INTO other.t VALUES (2)")
    by_id = StreamSettings(cursor=("id",))
    assert table.take(by_id, stream="t").column("id") == [1]
    table.run(f"ALTER DATABASE {table.database} SET search_path = other")
    assert table.take(by_id, stream="t").column("id") == [2]


def test_a_type_made_since_it_connected_is_known_to_the_warm_source(table: Shop) -> None:
    table.take(AT_ONCE)
    table.run(
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "ALTER TABLE t ADD COLUMN moods mood[] DEFAULT '{sad,ok}'",
        "INSERT INTO t VALUES (1, '2026-01-01Z')",
    )
    assert table.take(AT_ONCE).column("moods") == [["sad", "ok"]]


def test_a_connection_lost_in_a_read_is_transient_and_the_next_connects_anew(table: Shop) -> None:
    table.run(
        "INSERT INTO t SELECT g, '2026-01-01Z'::timestamptz + g * interval '1 s' "
        "FROM generate_series(1, 1000000) g"
    )

    def lose_it() -> bool:
        table.run(_END_CONNECTIONS)
        return False

    with pytest.raises(ConnectorError) as caught:
        take(table.source, STREAM, BY_TIME, stopped=lose_it)
    assert caught.value.error is ErrorClass.TRANSIENT
    table.run("DELETE FROM t WHERE id > 1")
    assert table.take(BY_TIME).column("id") == [1]


def test_a_refused_login_needs_new_credentials_and_the_password_is_never_told(
    table: Shop,
) -> None:
    source = table.open("nobody_here", password="s3cret/word")
    with pytest.raises(ConnectorError) as caught:
        take(source, STREAM, BY_TIME)
    assert caught.value.error is ErrorClass.AUTH_EXPIRED
    assert "s3cret" not in str(caught.value)
    nowhere = open_source(
        "gone", "sql", {"url": "postgresql://me@127.0.0.1:1/x"}, Secrets({"password": "s3cret"})
    )
    with pytest.raises(ConnectorError) as caught:
        take(nowhere, STREAM, BY_TIME)
    assert caught.value.error is ErrorClass.TRANSIENT
    assert "s3cret" not in str(caught.value)


def test_a_password_of_any_characters_reaches_the_server(table: Shop) -> None:
    table.run("DROP ROLE IF EXISTS odd", "CREATE ROLE odd LOGIN PASSWORD 'p@ss:/w%rd'")
    source = table.open("odd", password="p@ss:/w%rd")
    findings = source.check({})
    source.close()
    table.run("DROP ROLE odd")
    assert findings[0].level == "ok"
    assert findings[1].hint == 'GRANT pg_read_all_stats TO "odd"'


def test_a_server_in_another_zone_bounds_a_column_without_one_by_the_earlier(shop: Shop) -> None:
    shop.run(
        "ALTER DATABASE shop SET TimeZone = 'America/New_York'",
        "CREATE TABLE t (id int PRIMARY KEY, updated_at timestamp)",
        "INSERT INTO t VALUES (1, (now() AT TIME ZONE 'UTC') - interval '1 hour'), "
        "(2, (now() AT TIME ZONE 'America/New_York') - interval '1 hour')",
    )
    taken = shop.take(BY_TIME)
    assert taken.column("id") == [2]
    assert "America/New_York" in taken.note("has no zone")


@pytest.mark.parametrize("whose", ["DATABASE shop", "ROLE writer"])
def test_a_zone_that_the_reader_does_not_have_bounds_a_column_without_one(
    shop: Shop, whose: str
) -> None:
    shop.run(
        "CREATE TABLE t (id int PRIMARY KEY, updated_at timestamp NOT NULL DEFAULT now())",
        "GRANT SELECT, INSERT ON t TO PUBLIC",
        "CREATE ROLE reader LOGIN",
        "CREATE ROLE writer LOGIN",
        "ALTER ROLE reader SET TimeZone = 'UTC'",
        f"ALTER {whose} SET TimeZone = 'America/New_York'",
        "INSERT INTO t VALUES (0, (now() AT TIME ZONE 'UTC') - interval '1 day')",
    )
    source = shop.open(user="reader")
    try:
        first = take(source, STREAM, AT_ONCE, None)
        with shop.server.connect("writer", "shop") as writer:
            writer.execute("INSERT INTO t (id) VALUES (1)")
        second = take(source, STREAM, AT_ONCE, first.cursor)
        assert second.column("id") == [1]
        assert "America/New_York" in second.note("has no zone")
    finally:
        source.close()
        shop.run("DROP OWNED BY reader, writer", "DROP ROLE reader, writer")


# -- what changes at the source while it is read, and between two reads -----------------------


def _in_background(read: Callable[[], Taken]) -> tuple[threading.Thread, list[Taken | Exception]]:
    ended: list[Taken | Exception] = []

    def keep() -> None:
        try:
            ended.append(read())
        except ConnectorError as error:
            ended.append(error)

    thread = threading.Thread(target=keep)
    thread.start()
    return thread, ended


def _wait_until(shop: Shop, what: str) -> None:
    """Until a session of ours is seen so."""
    sql = f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS} AND {what}"
    eventually(lambda: bool(shop.value(sql)), what)


def test_rows_of_a_partition_that_is_written_anew_while_a_read_begins_are_not_passed_over(
    shop: Shop,
) -> None:
    """In a snapshot taken before, it has no rows."""
    shop.run(
        "CREATE TABLE t (id int, updated_at timestamptz NOT NULL DEFAULT now()) "
        "PARTITION BY LIST (id)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)",
        "CREATE TABLE t2 PARTITION OF t FOR VALUES IN (2)",
        "CREATE INDEX ON t (updated_at)",
        "INSERT INTO t VALUES (1)",
        "INSERT INTO t VALUES (2)",
    )
    settings = StreamSettings(cursor=("updated_at",), key=("id",), settle=0.0)
    admin = shop.another()
    admin.execute("ALTER TABLE t1 SET UNLOGGED")
    thread, ended = _in_background(lambda: shop.take(settings))
    _wait_until(shop, "wait_event_type = 'Lock'")
    admin.commit()
    thread.join()
    (error,) = ended
    assert isinstance(error, ConnectorError)
    assert (error.error, "written anew" in str(error)) == (ErrorClass.TRANSIENT, True)
    assert sorted(shop.take(settings).column("id")) == [1, 2]


def test_a_column_that_comes_while_a_read_begins_is_not_left_out(table: Shop) -> None:
    """Here the transaction that the read waits for brings it, and rows that have it."""
    table.run("CREATE ROLE reader LOGIN", "GRANT SELECT ON t TO reader")
    source = table.open("reader")
    late = table.another()
    late.execute("INSERT INTO t VALUES (1, '2026-01-01Z')")

    def alter_when_it_waits() -> bool:
        if late.info.transaction_status:
            late.execute("ALTER TABLE t ADD note text DEFAULT 'kept'")
            late.commit()
        return False

    try:
        with pytest.raises(ConnectorError, match="was altered") as caught:
            take(source, STREAM, AT_ONCE, stopped=alter_when_it_waits)
        assert caught.value.error is ErrorClass.TRANSIENT
        assert take(source, STREAM, AT_ONCE).column("note") == ["kept"]
    finally:
        source.close()
        table.run("DROP OWNED BY reader", "DROP ROLE reader")


def test_a_table_that_is_locked_keeps_no_other_from_being_read(table: Shop) -> None:
    table.run(
        "CREATE ROLE reader LOGIN",
        "ALTER ROLE reader SET lock_timeout = '50ms'",
        "CREATE TABLE other (id int PRIMARY KEY)",
        "GRANT SELECT ON t, other TO reader",
    )
    source = table.open("reader")
    admin = table.another()
    admin.execute("LOCK TABLE t")
    try:
        assert source.streams(["public.*"]) == ["public.other", STREAM]
        with pytest.raises(ConnectorError, match="another session has locked the table") as caught:
            take(source, STREAM, BY_TIME)
        assert caught.value.error is ErrorClass.TRANSIENT
        assert take(source, "public.other", StreamSettings(mode=Mode.REPLACE)).has_news
    finally:
        admin.rollback()
        source.close()
        table.run("DROP OWNED BY reader", "DROP ROLE reader")


@pytest.mark.parametrize(
    ("kind", "first", "wider", "second"),
    [
        ("int", "1", "bigint", "3000000000"),
        ("numeric(4,1)", "1.5", "numeric(10,4)", "1.5001"),
        ("varchar(1)", "a", "text", "ab"),
    ],
)
def test_a_cursor_whose_column_takes_a_wider_type_goes_on(
    shop: Shop, kind: str, first: str, wider: str, second: str
) -> None:
    settings = StreamSettings(cursor=("c",))
    shop.run(f"CREATE TABLE t (c {kind} PRIMARY KEY)", f"INSERT INTO t VALUES ('{first}')")
    before = shop.take(settings)
    shop.run(f"ALTER TABLE t ALTER c TYPE {wider}", f"INSERT INTO t VALUES ('{second}')")
    after = shop.take(settings, before)
    assert [str(value) for value in after.column("c")] == [second]
    assert (before.cursor and after.cursor) is not None
    shop.run("ALTER TABLE t ALTER c TYPE uuid USING gen_random_uuid()")
    with pytest.raises(NeedsAnswer, match="the cursor's type was"):
        shop.take(settings, after)


def test_a_cursor_whose_column_takes_a_narrower_type_is_held(shop: Shop) -> None:
    """What was read may be rounded to a place beyond the cursor, and come again."""
    settings = StreamSettings(cursor=("n",), mode=Mode.APPEND)
    shop.run("CREATE TABLE t (n numeric(4,2))", "INSERT INTO t VALUES (1.25)")
    before = shop.take(settings)
    shop.run("ALTER TABLE t ALTER n TYPE numeric(4,1)")
    with pytest.raises(NeedsAnswer, match="the cursor's type was"):
        shop.take(settings, before)


def test_a_table_made_anew_and_a_view_defined_anew_are_told(table: Shop) -> None:
    table.run(
        "CREATE VIEW v AS SELECT * FROM t WHERE id < 3",
        "INSERT INTO t VALUES (1, '2026-01-01Z'), (5, '2026-01-01Z')",
    )
    views = StreamSettings(cursor=("updated_at",), key=("id",))
    seen, viewed = table.take(BY_TIME), table.take(views, stream="public.v")
    table.run(
        "ALTER TABLE t ADD note text",
        "CREATE OR REPLACE VIEW v AS SELECT id, updated_at FROM t WHERE id < 6",
    )
    assert not [note for note in table.take(BY_TIME, seen).notes if "anew" in note]
    again = table.take(views, viewed, stream="public.v")
    assert again.note("the view has another definition")
    table.run("DROP TABLE t CASCADE", "CREATE TABLE t (id int PRIMARY KEY, updated_at timestamptz)")
    assert table.take(BY_TIME, seen).note("the table was made anew")
    table.run("INSERT INTO t VALUES (7, now())")
    later = table.take(AT_ONCE, seen)
    assert (later.column("id"), bool(later.note("made anew"))) == ([7], True)


def test_a_number_without_a_size_is_read_in_its_own_order(shop: Shop) -> None:
    """It arrives as text, whose order is another one: marks would stand before what was read."""
    shop.run(
        "CREATE TABLE t (n numeric PRIMARY KEY, pad text DEFAULT repeat('x', 200))",
        "INSERT INTO t SELECT g FROM generate_series(1, 100000) g",
    )
    taken = shop.take(StreamSettings(cursor=("n",)))
    assert len(taken.marks) > 1
    assert [int(n) for n in taken.column("n")] == list(range(1, 100_001))


def test_what_a_key_includes_is_no_part_of_it(shop: Shop) -> None:
    shop.run("CREATE TABLE t (id int, note text, PRIMARY KEY (id) INCLUDE (note))")
    (found,) = shop.source.discover(["public.t"], {})
    assert found.schema.key == ("id",)


@pytest.mark.parametrize("kind", ["text COLLATE ci", "numeric", "interval"])
def test_a_key_of_which_a_value_has_two_writings_is_told(shop: Shop, kind: str) -> None:
    shop.run(
        "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        f"CREATE TABLE t (v int, id {kind}, n int, PRIMARY KEY (v, id))",
        "INSERT INTO t VALUES (1, '1', 1)",
    )
    by_number = StreamSettings(cursor=("n",))
    assert shop.take(by_number).note("another writing").startswith("key 'id'")
    if kind == "numeric":
        sized = StreamSettings(cursor=("n",), columns=(("id", "decimal(9,2)"),))
        assert not [note for note in shop.take(sized).notes if "writing" in note]


def test_a_key_that_its_partitions_do_not_have_yet_is_none(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE t (id int NOT NULL) PARTITION BY LIST (id)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)",
        "ALTER TABLE ONLY t ADD PRIMARY KEY (id)",
        "INSERT INTO t VALUES (1), (1)",
    )
    (found,) = shop.source.discover(["public.t"], {})
    assert found.schema.key == ()


def test_a_name_of_two_tables_is_refused_and_one_that_a_schema_has_goes_before(shop: Shop) -> None:
    shop.run(
        "CREATE SCHEMA a",
        'CREATE SCHEMA "a.b"',
        "CREATE TABLE a.c (id int)",
        'CREATE TABLE public."a.c" (id text)',
        'CREATE TABLE a."b.d" (id int)',
        'CREATE TABLE "a.b".d (id int)',
    )
    whole = StreamSettings(mode=Mode.REPLACE)
    assert shop.take(whole, stream="a.c").schema.field("id").type == pa.int32()
    assert shop.take(whole, stream="public.a.c").schema.field("id").type == pa.string()
    with pytest.raises(ConnectorError, match=r'names "a"\."b\.d" and "a\.b"\."d"'):
        shop.take(whole, stream="a.b.d")


def test_a_role_with_all_its_connections_taken_is_tried_again(table: Shop) -> None:
    table.run("CREATE ROLE few LOGIN CONNECTION LIMIT 0")
    source = table.open("few")
    with pytest.raises(ConnectorError, match="too many connections for role") as caught:
        take(source, STREAM, BY_TIME)
    table.run("DROP ROLE few")
    assert caught.value.error is ErrorClass.TRANSIENT


def test_a_database_that_is_not_there_may_come_back(table: Shop) -> None:
    url = table.server.url(database="being_restored")
    source = open_source("shop", "sql", {"url": url}, Secrets({}))
    with pytest.raises(ConnectorError, match=r'database "being_restored" does not exist') as caught:
        take(source, STREAM, BY_TIME)
    assert caught.value.error is ErrorClass.TRANSIENT


def test_a_pooler_that_gives_each_statement_another_session_is_named() -> None:
    class Pooler:
        def connect(self) -> Any:
            raise adbc_driver_manager.ProgrammingError(
                "INVALID_ARGUMENT: [libpq] Failed to describe prepared statement: ERROR:  unnamed "
                "prepared statement does not exist",
                status_code=adbc_driver_manager.AdbcStatusCode.INVALID_ARGUMENT,
            )

        def is_current(self, connection: Any, age: float, idle: float) -> bool:
            raise NotImplementedError

    with pytest.raises(ConnectorError, match="have the pooler in session mode"):
        Session("shop", Pooler(), ()).value("SELECT 1")


def test_a_session_that_a_pooler_hands_on_says_nothing_of_us_and_reads_as_ours_do(
    table: Shop,
) -> None:
    """In transaction mode one of others' begins our read, and ours is given to others after it."""
    table.run("ALTER TABLE t ADD v interval DEFAULT '1 day 02:00'", "INSERT INTO t VALUES (1)")
    names = f"SELECT application_name FROM pg_stat_activity WHERE {_OURS}"
    url = table.server.url(database=table.database)
    session = Session("shop", postgres.Server(url, None), ())
    source = SqlSource(Postgres(session, url))
    session.run("SET IntervalStyle = 'iso_8601'")
    read = source.read(ReadRequest(STREAM, AT_ONCE, None))
    (rows, _) = read.items()
    assert isinstance(rows, Rows)
    assert rows.batch.column("v").to_pylist() == ["1 day 02:00:00"]
    assert table.value(names) == "reconciler, read only"
    read.close()
    assert table.value(names) == "reconciler"
    source.close()


def test_of_several_servers_the_one_that_fits_is_read(table: Shop) -> None:
    servers = f"localhost:1,127.0.0.1:{table.server.port}"
    url = f"postgresql://postgres@{servers}/{table.database}?target_session_attrs=read-write"
    table.run("INSERT INTO t VALUES (1, '2026-01-01Z')")
    source = open_source("shop", "sql", {"url": url}, Secrets({"password": "none is asked for"}))
    try:
        first = take(source, STREAM, BY_TIME)
    finally:
        source.close()
    assert first.column("id") == [1]
    assert first.cursor is not None
    assert servers in first.cursor.definition


def test_a_role_whose_types_the_driver_cannot_name_is_told_why(table: Shop) -> None:
    table.run(f"ALTER DATABASE {table.database} SET quote_all_identifiers = on")
    with pytest.raises(ConnectorError, match="quote_all_identifiers is on") as caught:
        table.take(BY_TIME)
    assert caught.value.error is ErrorClass.PERMANENT


def test_an_index_in_the_order_of_a_language_is_none_for_a_cursor(
    postgres_server: PostgresServer,
) -> None:
    ((version,),) = postgres_server.execute("SHOW server_version_num")
    if int(version) < 150_000:
        pytest.skip("a database of another provider came with 15")
    shop = Shop(
        postgres_server,
        "icu",
        "LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LC_COLLATE 'C' TEMPLATE template0",
    )
    shop.run("CREATE TABLE t (id text PRIMARY KEY)", "INSERT INTO t VALUES ('a'), ('B')")
    taken = shop.take(StreamSettings(cursor=("id",)))
    shop.close()
    assert (sorted(taken.column("id")), taken.ordered) == (["B", "a"], False)


def test_a_server_named_behind_the_question_mark_is_another_source(table: Shop) -> None:
    def at(host: str) -> Source:
        url = f"postgresql://postgres@/{table.database}?host={host}&port={table.server.port}"
        return open_source("shop", "sql", {"url": url}, Secrets({}))

    table.run("INSERT INTO t VALUES (1, '2026-01-01Z')")
    one, other = at("127.0.0.1"), at("localhost")
    try:
        first = take(one, STREAM, BY_TIME)
        assert first.column("id") == [1]
        with pytest.raises(NeedsAnswer, match="the source was 'postgresql://127"):
            take(other, STREAM, BY_TIME, first.cursor)
        assert not take(table.source, STREAM, BY_TIME, first.cursor).has_news
    finally:
        one.close()
        other.close()
