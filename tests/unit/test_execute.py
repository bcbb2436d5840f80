"""A whole run in its worker: which streams are read, and what is said of those that are not."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from catalog.records import Batch, Commit, Outcome, StreamState
from reconciler.config.desired import Mode, Pipeline, SchemaPolicy, StreamSettings
from reconciler.connectors.ports import BatchName, Destination, Owner
from reconciler.run import messages as m
from reconciler.run.connections import Connections
from reconciler.run.execute import discard_orphans, execute
from reconciler.run.link import Link
from reconciler.schema.decide import GoOn, decide
from reconciler.schema.model import Schema
from tests.replacing import replace


class Quiet:
    """The daemon's end, for a run that brings nothing."""

    cancelled = False

    def check_lease(self) -> None:
        """It always may."""


class Fencing(Quiet):
    """The daemon's end once another holder took over: it learns of it with a commit."""

    def pulse(self) -> AbstractContextManager[None]:
        return nullcontext()

    def say(self, message: m.Moved) -> None:
        """Nobody listens."""

    def propose(self, stream: str, schema: Schema) -> m.Verdict:
        found = decide(stream, None, schema, SchemaPolicy(), (), 1)
        assert isinstance(found, GoOn)
        return m.Verdict(1, found.version, found.target, found.columns)

    def commit(self, batches: tuple[Batch, ...], published: Any) -> m.NotCommitted:
        return m.NotCommitted(1, "fenced", "another holder took over", definite=True)


APPEND = StreamSettings(mode=Mode.APPEND, cursor=("id",))


def order(folder: Path, *tables: str, **more: Any) -> m.RunOrder:
    """A run of a SQLite file with these tables, of one row each, into Parquet."""
    with closing(sqlite3.connect(folder / "s.db", isolation_level=None)) as app:
        for table in tables:
            app.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY)")
            app.execute(f"INSERT INTO {table} VALUES (1)")
    plain = m.RunOrder(
        *("kit", "p", "p", 7, 0),
        source=m.ConnectionOrder("db", "sql", {"url": f"sqlite://{folder}/s.db"}, {}),
        destination=m.ConnectionOrder("out", "parquet", {"path": str(folder / "out")}, {}),
        select=(),
        defaults=APPEND,
        named={},
        only=(),
        parallel=1,
        streams=(),
        unpublished=(),
    )
    return replace(plain, **more)


def carried_out(wanted: m.RunOrder, link: Quiet) -> m.Done:
    connections = Connections()
    done = execute(wanted, cast(Link, link), connections)
    connections.forget(wanted.source)
    connections.forget(wanted.destination)
    return done


def test_only_what_older_runs_left_and_nobody_committed_is_discarded(tmp_path: Path) -> None:
    """(B2)"""
    owner = Owner("kit", "its first name", "orders")
    left = [BatchName(owner, epoch, 4) for epoch in (5, 6, 7, 8)]
    waits = Commit("p", "orders", 4, 6, "{}", 1, 1, 0, 1, 1, None)
    elsewhere = [replace(name, owner=replace(owner, pipeline="p")) for name in left]
    gone: list[BatchName] = []

    def staged(catalog: str, pipeline: str) -> list[BatchName]:
        asked = catalog, pipeline
        return [n for n in left + elsewhere if (n.owner.catalog, n.owner.pipeline) == asked]

    destination = SimpleNamespace(staged=staged, discard=gone.append)
    wanted = order(tmp_path, origin="its first name", unpublished=(waits,))
    discard_orphans(wanted, cast(Destination, destination))
    assert gone == [left[0]]


def test_who_is_fenced_begins_no_other_stream_and_leaves_nothing(tmp_path: Path) -> None:
    done = carried_out(order(tmp_path, "a", "b", named={"a": APPEND, "b": APPEND}), Fencing())
    assert [(s.stream, s.outcome) for s in done.streams] == [("a", Outcome.FENCED)]
    assert not list(tmp_path.rglob("*.staged"))


def test_where_no_more_threads_can_be_started_those_that_run_do_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None goes on behind the run that began it, into the commits of the next."""
    begun: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        real(thread)

    real = threading.Thread.start
    wanted = order(tmp_path, "a", "b", named={"a": APPEND, "b": APPEND}, parallel=2)
    monkeypatch.setattr(threading.Thread, "start", start)
    done = carried_out(wanted, Fencing())
    assert [(s.stream, s.outcome) for s in done.streams] == [("a", Outcome.FENCED)]
    assert not begun[0].is_alive()


def test_a_stream_has_the_settings_of_its_name_and_only_those_asked_for_are_read(
    tmp_path: Path,
) -> None:
    named = {"a": replace(APPEND, mode=Mode.MERGE), "b": APPEND}
    wanted = order(tmp_path, "a", "b", "c", select=("*",), named=named, only=("a", "c"))
    done = carried_out(wanted, Fencing())
    assert [(s.stream, s.outcome) for s in done.streams] == [
        ("a", Outcome.FAILED),
        ("c", Outcome.FENCED),
    ]
    assert "mode 'merge'" in done.streams[0].reason


def test_a_selected_table_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    states = tuple(StreamState("p", name) for name in ("a", "b"))
    wanted = order(tmp_path, select=("a*", "b", "!b"), streams=states)
    with closing(sqlite3.connect(tmp_path / "s.db")) as app:
        app.execute("CREATE TABLE a_tmp (id INTEGER PRIMARY KEY)")
    done = carried_out(wanted, Quiet())
    assert [(s.stream, s.outcome) for s in done.streams] == [("a_tmp", Outcome.NOTHING_NEW)]
    assert [stream for stream, note in done.notes if "the source has it no more" in note] == ["a"]


def test_of_the_globs_that_match_the_last_decides() -> None:
    pipeline = Pipeline("p", "db", "out", select=("*", "!*_tmp", "keep_tmp"))
    assert [pipeline.reads(name) for name in ("a", "a_tmp", "keep_tmp")] == [True, False, True]
