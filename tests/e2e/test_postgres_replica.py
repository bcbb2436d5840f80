"""A physical replica as the source: what it does not show yet is not passed over."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reconciler.config.desired import StreamSettings
from reconciler.connectors.ports import Secrets, Source
from reconciler.connectors.registry import open_source
from tests.e2e.world import eventually
from tests.servers import PostgresServer, private_postgres
from tests.source_kit import take

pytestmark = pytest.mark.postgres

AT_ONCE = StreamSettings(cursor=("updated_at",), settle=0.0)
STREAM = "public.t"
_TABLE = "CREATE TABLE t (id int PRIMARY KEY, updated_at timestamptz NOT NULL DEFAULT now())"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A server and its standby, and a role that may read one table and see nobody else."""
    with private_postgres() as primary:
        primary.execute(
            _TABLE,
            "CREATE INDEX ON t (updated_at)",
            "CREATE ROLE reader LOGIN",
            "CREATE ROLE sees LOGIN IN ROLE pg_read_all_stats",
            "GRANT SELECT ON t TO reader, sees",
        )
        with private_postgres(primary, wal_retrieve_retry_interval="100ms") as standby:
            yield primary, standby


def _add(pair: tuple[PostgresServer, PostgresServer], row: int, *, seen: bool = True) -> None:
    primary, standby = pair
    primary.execute(f"INSERT INTO t VALUES ({row})")
    if seen:
        _wait_for(standby, row)


def _wait_for(server: PostgresServer, row: int) -> None:
    query = f"SELECT 1 FROM t WHERE id = {row}"
    eventually(lambda: server.execute(query) != [], f"row {row} is there")


def _reads(server: PostgresServer, role: str = "reader") -> Source:
    return open_source("shop", "sql", {"url": server.url(role)}, Secrets({}))


@contextmanager
def _silent(primary: PostgresServer) -> Iterator[None]:
    """Its line to the standby stands, and nothing comes over it."""
    ((sender,),) = primary.execute("SELECT pid FROM pg_stat_replication")
    os.kill(sender, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(sender, signal.SIGCONT)


@pytest.mark.parametrize("why", ["paused", "cut off"])
def test_rows_that_a_replica_does_not_show_yet_are_read_once_it_does(
    pair: tuple[PostgresServer, PostgresServer], why: str
) -> None:
    primary, standby = pair
    primary.execute("TRUNCATE t")
    _add(pair, 1)
    if why == "paused":
        standby.execute("SELECT pg_wal_replay_pause()")
        go_on = ["SELECT pg_wal_replay_resume()"]
    else:
        ((line,),) = standby.execute("SHOW primary_conninfo")
        standby.execute("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        receives = "SELECT 1 FROM pg_stat_wal_receiver"
        eventually(lambda: standby.execute(receives) == [], "nothing is received any more")
        line = line.replace("'", "''")
        go_on = [f"ALTER SYSTEM SET primary_conninfo = '{line}'", "SELECT pg_reload_conf()"]
    _add(pair, 2, seen=False)
    source = _reads(standby)
    try:
        first = take(source, STREAM, AT_ONCE)
        assert first.column("id") == [1]
        standby.execute(*go_on)
        _wait_for(standby, 2)
        _add(pair, 3)
        assert take(source, STREAM, AT_ONCE, first.cursor).column("id") == [2, 3]
    finally:
        source.close()


def test_rows_that_come_over_a_silent_line_later_are_read_once_they_do(
    pair: tuple[PostgresServer, PostgresServer],
) -> None:
    primary, standby = pair
    primary.execute("TRUNCATE t")
    _add(pair, 1)
    source = _reads(standby, "sees")
    try:
        with _silent(primary):
            _add(pair, 2, seen=False)
            first = take(source, STREAM, AT_ONCE)
        assert first.column("id") == [1]
        _wait_for(standby, 2)
        _add(pair, 3)
        assert take(source, STREAM, AT_ONCE, first.cursor).column("id") == [2, 3]
    finally:
        source.close()


def test_a_replica_that_does_not_tell_how_far_it_lags_is_read_by_the_clock(
    pair: tuple[PostgresServer, PostgresServer],
) -> None:
    primary, standby = pair
    primary.execute("TRUNCATE t", "REVOKE EXECUTE ON FUNCTION pg_last_wal_receive_lsn FROM PUBLIC")
    _add(pair, 1)
    source = _reads(standby)
    try:
        read = take(source, STREAM, AT_ONCE)
    finally:
        source.close()
        primary.execute("GRANT EXECUTE ON FUNCTION pg_last_wal_receive_lsn TO PUBLIC")
    assert read.column("id") == [1]
    assert read.note("how far the replica lags is not told")


def test_a_replica_that_is_promoted_is_read_on() -> None:
    with private_postgres() as primary:
        primary.execute(
            _TABLE,
            "INSERT INTO t VALUES (1)",
            "CREATE ROLE reader LOGIN",
            "GRANT SELECT ON t TO reader",
        )
        with private_postgres(primary) as standby:
            source = _reads(standby)
            try:
                first = take(source, STREAM, AT_ONCE)
                primary.stop()
                standby.execute("SELECT pg_promote()", "INSERT INTO t VALUES (2)")
                then = take(source, STREAM, AT_ONCE, first.cursor)
            finally:
                source.close()
    assert first.note("this is a replica")
    assert (first.column("id"), then.column("id")) == ([1], [2])
    assert not [note for note in then.notes if "replica" in note]
