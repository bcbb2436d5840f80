"""What a worker keeps open from run to run, and when it is opened anew."""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from reconciler.connectors.destinations.duckdb import DuckdbDestination
from reconciler.connectors.destinations.parquet import ParquetDestination
from reconciler.run import connections
from reconciler.run.connections import Connections
from reconciler.run.link import Link
from reconciler.run.messages import ConnectionOrder, InspectOrder
from reconciler.run.worker import next_order


def _order(
    connector: str, options: Mapping[str, str], secrets: Mapping[str, str] | None = None
) -> ConnectionOrder:
    return ConnectionOrder("there", connector, options, secrets or {})


def test_the_same_order_is_answered_by_what_is_open() -> None:
    kept = Connections()
    first = kept.destination(_order("duckdb", {"path": "/there/out.duckdb"}))
    for _ in range(2):
        assert kept.destination(_order("duckdb", {"path": "/there/out.duckdb"})) is first


def test_an_edited_option_or_another_secret_opens_anew() -> None:
    kept = Connections()
    url = "postgresql://reader@db/shop"
    first = kept.source(_order("sql", {"url": url}, {"password": "old"}))
    second = kept.source(_order("sql", {"url": url}, {"password": "new"}))
    third = kept.source(_order("sql", {"url": url + "2"}, {"password": "new"}))
    assert len({id(first), id(second), id(third)}) == 3


@pytest.mark.parametrize("connector", ["duckdb", "parquet"])
def test_the_next_run_follows_a_link_that_leads_elsewhere(connector: str, tmp_path: Path) -> None:
    kept = Connections()
    link = tmp_path / "current"
    first, second = (_order(connector, {"path": str(link / "out")}) for _ in range(2))
    link.symlink_to("one")
    before = kept.destination(first)
    link.unlink()
    link.symlink_to("two")
    assert kept.destination(first) is before
    after = kept.destination(second)
    assert isinstance(after, DuckdbDestination | ParquetDestination)
    assert after.path == tmp_path / "two" / "out"


def _shop(path: Path) -> ConnectionOrder:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    return _order("sql", {"url": f"sqlite://{path}"})


def _is_open(path: Path) -> bool:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(link.readlink())
    return path in found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files that are open are seen there")
def test_an_idle_worker_closes_what_it_does_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open connection keeps a database from being dropped and a disk from being unmounted."""
    order = _shop(tmp_path / "shop.db")
    kept = Connections()
    for lane in (kept.lane(0), kept.lane(1)):
        lane.source(order).discover(["*"], {})
    kept.close_unused()
    assert _is_open(tmp_path / "shop.db"), "it is of use to the next run"
    monkeypatch.setattr(connections, "IDLE", 0.0)
    said = SimpleNamespace(orders=queue.SimpleQueue())
    asked = InspectOrder(order, "source")
    threading.Timer(0.1, said.orders.put, [asked]).start()
    assert next_order(cast(Link, said), kept, look=0.01) is asked
    assert not _is_open(tmp_path / "shop.db")
    assert [found.name for found in kept.source(order).discover(["*"], {})] == ["t"]
    kept.close_unused()
