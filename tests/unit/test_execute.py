"""A whole run in its worker: which streams are read, and what is said of those that are not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import cast

from catalog.records import Outcome, StreamState
from reconciler.config.desired import Mode, Pipeline, StreamSettings
from reconciler.run import messages as m
from reconciler.run.connections import Connections
from reconciler.run.execute import execute
from reconciler.run.link import Link


class Quiet:
    """The daemon's end, for a run that brings nothing."""

    cancelled = False

    def check_lease(self) -> None:
        """It always may."""


def test_a_selected_table_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "s.db")) as app:
        app.execute("CREATE TABLE a_tmp (id INTEGER PRIMARY KEY)")
    settings = StreamSettings(mode=Mode.APPEND, cursor=("id",))
    order = m.RunOrder(
        *("kit", "p", "p", 1, 0),
        source=m.ConnectionOrder("db", "sql", {"url": f"sqlite://{tmp_path}/s.db"}, {}),
        destination=m.ConnectionOrder("out", "parquet", {"path": str(tmp_path / "out")}, {}),
        select=("a*", "b", "!b"),
        defaults=settings,
        named={},
        only=(),
        parallel=1,
        streams=tuple(StreamState("p", name) for name in ("a", "b")),
        unpublished=(),
    )
    connections = Connections()
    done = execute(order, cast(Link, Quiet()), connections)
    connections.forget(order.source)
    connections.forget(order.destination)
    assert [(s.stream, s.outcome) for s in done.streams] == [("a_tmp", Outcome.NOTHING_NEW)]
    assert [stream for stream, note in done.notes if "the source has it no more" in note] == ["a"]


def test_of_the_globs_that_match_the_last_decides() -> None:
    pipeline = Pipeline("p", "db", "out", select=("*", "!*_tmp", "keep_tmp"))
    assert [pipeline.reads(name) for name in ("a", "a_tmp", "keep_tmp")] == [True, False, True]
