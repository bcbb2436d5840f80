"""What a worker keeps open from run to run, and when it is opened anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from reconciler.connectors.destinations.duckdb import DuckdbDestination
from reconciler.connectors.destinations.parquet import ParquetDestination
from reconciler.run.connections import Connections
from reconciler.run.messages import ConnectionOrder


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
