"""The Parquet destination through its port: B2-B8, E1."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.config.desired import Mode
from reconciler.connectors.destinations.parquet import ParquetDestination, open_parquet
from reconciler.connectors.ports import Secrets
from tests.destination_kit import (
    OWNER,
    TABLE,
    cursor,
    glob_ids,
    leftovers,
    load,
    orders,
    request,
    seal,
    view_rows,
)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture
def destination(lake: Path) -> ParquetDestination:
    return open_parquet({"path": str(lake)}, Secrets({}))


def test_a_published_batch_is_seen_and_its_staging_is_gone(
    destination: ParquetDestination, lake: Path
) -> None:
    load(destination, request(1), orders(1, 2))
    load(destination, request(2), orders(3))
    assert glob_ids(lake) == [1, 2, 3]
    assert view_rows(lake / TABLE) == [1, 2, 3]
    assert leftovers(lake) == []
    assert destination.staged("cat-1", "shop") == []


def test_the_marker_moves_with_the_batch(destination: ParquetDestination) -> None:
    assert destination.marker(OWNER, TABLE) is None
    load(destination, request(1), orders(1))
    marker = destination.marker(OWNER, TABLE)
    assert marker is not None
    assert (marker.owner, marker.seq, marker.cursor) == (OWNER, 1, cursor(1))
    assert marker.has_rows


def test_a_sealed_batch_is_listed_unseen_and_can_be_discarded(
    destination: ParquetDestination, lake: Path
) -> None:
    receipt = seal(destination, request(1), orders(1))
    assert destination.staged("cat-1", "shop") == [receipt.name]
    assert glob_ids(lake) == []
    destination.discard(receipt.name)
    assert destination.staged("cat-1", "shop") == []
    assert leftovers(lake) == []


def test_replace_takes_the_place_of_all_rows(destination: ParquetDestination, lake: Path) -> None:
    load(destination, request(1), orders(1, 2))
    load(destination, request(2, mode=Mode.REPLACE), orders(7))
    assert glob_ids(lake) == [7]
    assert view_rows(lake / TABLE) == [7]
    load(destination, request(3), orders(8))
    assert view_rows(lake / TABLE) == [7, 8]
    assert sorted(p.name for p in lake.parent.iterdir()) == ["lake"]
