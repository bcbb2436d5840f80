"""SIGKILL between every two durable steps, and inside publish: nothing lost, nothing twice.

Each test kills the worker or the daemon at one named point of a run, starts again without the kill
point, and compares the destination with the source row for row (rule 2, B2, B5, A2, A7).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.world import World, eventually

ROWS = 500
_WORKER = ("before_seal", "sealed", "committed", "before_publish", "published")
_DAEMON = ("claimed", "before_commit", "committed", "before_finish")
_PARQUET = """
[connections.src]
connector = "sql"
url = "sqlite:///source.db"
[connections.dst]
connector = "parquet"
path = "lake"
[pipelines.p]
source = "src"
destination = "dst"
schedule = "every 1s"
mode = "append"
cursor = ["updated_at"]
settle = "0s"
[pipelines.p.streams.orders]
"""
_DUCKDB = _PARQUET.replace(
    'connector = "parquet"\npath = "lake"', 'connector = "duckdb"\npath = "out.duckdb"'
).replace('"append"', '"merge"')


def _places(points: Sequence[str], seldom: Sequence[tuple[str, str]]) -> pytest.MarkDecorator:
    """Each point with each destination; ``seldom``: where it makes no odds which of the two."""
    cases = [(point, destination) for point in points for destination in ("parquet", "duckdb")]
    return pytest.mark.parametrize(
        ("point", "destination"),
        [pytest.param(*case, marks=[pytest.mark.slow] if case in seldom else []) for case in cases],
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def _row(number: int, name: str = "") -> tuple[int, str, str]:
    moment = f"2026-01-01 {number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}"
    return number, moment, name or f"row {number}"


def _prepare(world: World, destination: str, schedule: str = "every 1s") -> None:
    text = _PARQUET if destination == "parquet" else _DUCKDB
    world.write_config(text.replace("every 1s", schedule))
    world.fill("orders", (_row(n) for n in range(ROWS)))


def _rows(world: World, destination: str) -> list[tuple[object, ...]]:
    return world.parquet_rows("orders") if destination == "parquet" else world.duckdb_rows("orders")


def _converges(world: World, destination: str) -> None:
    """A daemon without kill points brings destination and source together, and new rows too."""
    daemon = world.start()
    daemon.wait_ready()
    eventually(
        lambda: _rows(world, destination) == world.source_rows("orders"), "rows as in the source"
    )
    world.fill("orders", (_row(n) for n in range(ROWS, ROWS + 50)))
    eventually(
        lambda: _rows(world, destination) == world.source_rows("orders"), "later rows arrive too"
    )
    assert daemon.stop() == 0
    assert _rows(world, destination) == world.source_rows("orders")


@_places(_WORKER, seldom=[("before_seal", "parquet")])
def test_a_killed_worker_costs_one_run_and_no_row(
    world: World, destination: str, point: str
) -> None:
    _prepare(world, destination, "every 200ms")
    daemon = world.start(RECONCILER_TEST_KILL_AT=f"worker.{point}")
    failed = daemon.finished("p", "failed")
    assert "SIGKILL" in failed["reason"]
    daemon.kill()
    world.do("retry", "p")  # or the failure's pause would be waited for
    _converges(world, destination)


@_places(_DAEMON, seldom=[*zip(_DAEMON, ["duckdb", "parquet"] * 2, strict=True)])
def test_a_killed_daemon_goes_on_where_it_stood(world: World, destination: str, point: str) -> None:
    _prepare(world, destination, "every 200ms")
    daemon = world.start(RECONCILER_TEST_KILL_AT=f"daemon.{point}")
    assert daemon.died() == -9
    _converges(world, destination)
