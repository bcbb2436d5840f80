"""Any sequence of batches, published late, twice or after a crash, equals a dictionary (B5, E).

A crash is a publish that is cut off at a random point by an exception, after which a new object,
as a new process would have it, publishes what the catalog knows to be committed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.config.desired import Mode
from reconciler.connectors.destinations import duckdb as duckdb_module
from reconciler.connectors.destinations import parquet as parquet_module
from reconciler.connectors.ports import Destination, Receipt
from tests.destination_kit import OWNER, TABLE, leftovers, request, seal, view_rows
from tests.memory import MEMORY

Rows = list[tuple[int, str]]
"""Flushes cost nothing there, and no power is lost in these stories."""
KEYS = st.integers(0, 4)
VALUES = st.sampled_from("abcdef")
ROWS = st.lists(st.tuples(KEYS, VALUES), max_size=5)


class Crash(Exception):
    """The process ends here."""


def crashing(after: int) -> Callable[[str], None]:
    """A point that ends the process when it is passed for the nth time."""
    left = after

    def point(name: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Crash(name)

    return point


def quiet(name: str) -> None:
    """No crash."""


def steps(modes: list[Mode]) -> st.SearchStrategy[list[tuple[Mode, Rows, int, bool]]]:
    """Batches: mode, rows, where the publish crashes (0: nowhere), and whether it comes later."""
    one = st.tuples(st.sampled_from(modes), ROWS, st.integers(0, 9), st.booleans())
    return st.lists(one, min_size=1, max_size=6)


def apply(model: Rows, mode: Mode, rows: Rows) -> Rows:
    """What the table holds after the batch."""
    if mode is Mode.REPLACE:
        return list(rows)
    if mode is Mode.APPEND:
        return [*model, *rows]
    return list({**dict(model), **dict(rows)}.items())


def tell_story(
    open_it: Callable[[], Destination],
    module: Any,
    story: list[tuple[Mode, Rows, int, bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> Rows:
    """Load the batches as the run would, with crashes; returns what the table must hold."""
    destination, model, waiting = open_it(), list[tuple[int, str]](), list[Receipt]()
    for seq, (mode, rows, crash_at, late) in enumerate(story, start=1):
        wanted = request(seq, epoch=seq, mode=mode, key=("id",))
        waiting.append(seal(destination, wanted, [{"id": k, "name": v} for k, v in rows]))
        model = apply(model, mode, rows)
        if late and seq < len(story):
            continue
        monkeypatch.setattr(module, "point", crashing(crash_at))
        try:
            destination.publish(waiting)
        except Crash:
            destination = open_it()
        monkeypatch.setattr(module, "point", quiet)
        destination.publish(waiting)
        marker = open_it().marker(TABLE)
        assert marker is not None
        assert (marker.seq, marker.has_rows) == (seq, bool(model))
        waiting = waiting[-1:]  # the catalog may not have heard of its publish
    assert destination.staged(OWNER.catalog, OWNER.pipeline) == []
    return sorted(model)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), kind=st.sampled_from([Mode.APPEND, Mode.MERGE]))
def test_duckdb_equals_the_model(data: st.DataObject, kind: Mode) -> None:
    story = data.draw(steps([kind, Mode.REPLACE]))
    if kind is Mode.MERGE:  # a replace does not look at keys: give it none twice
        story = [(m, list(dict(r).items()) if m is Mode.REPLACE else r, c, w)
                 for m, r, c, w in story]  # fmt: skip
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as folder,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        path = Path(folder) / "x.duckdb"
        expected = tell_story(
            lambda: duckdb_module.DuckdbDestination(path), duckdb_module, story, monkeypatch
        )
        with duckdb.connect(str(path)) as connection:
            found = connection.execute("SELECT id, name FROM orders ORDER BY ALL").fetchall()
        assert found == expected
        assert leftovers(path.parent) == []


@settings(max_examples=40, deadline=None)
@given(story=steps([Mode.APPEND, Mode.REPLACE]))
def test_parquet_equals_the_model(story: list[tuple[Mode, Rows, int, bool]]) -> None:
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as folder,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        path = Path(folder) / "lake"
        expected = tell_story(
            lambda: parquet_module.ParquetDestination(path), parquet_module, story, monkeypatch
        )
        latest = dict(table_rows(path))  # the view shows the last row of each key
        assert sorted(table_rows(path)) == expected
        assert view_rows(path / TABLE, "id, name") == sorted(latest.items())
        assert leftovers(path) == []


def table_rows(lake: Path) -> Rows:
    """By glob, in order of arrival."""
    sql = (
        f"SELECT id, name FROM read_parquet('{lake}/**/*.parquet') "
        "ORDER BY parse_filename(filename), file_row_number"
    )
    if not list(lake.glob("**/*.parquet")):
        return []
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()
