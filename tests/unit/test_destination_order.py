"""What a batch may follow, at every destination (B4, B5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.config.desired import Mode
from reconciler.connectors.destinations.duckdb import DuckdbDestination
from reconciler.connectors.destinations.parquet import ParquetDestination
from reconciler.connectors.ports import Destination, NeedsAnswer
from tests.destination_kit import TABLE, load, orders, request, seal

_ANY = pytest.mark.parametrize(
    "opened",
    [lambda p: DuckdbDestination(p / "d.duckdb", "raw"), lambda p: ParquetDestination(p / "lake")],
    ids=["duckdb", "parquet"],
)


@_ANY
def test_a_table_put_back_from_another_past_after_it_was_looked_at_is_not_written_to(
    opened: Callable[[Path], Destination], tmp_path: Path
) -> None:
    """It is at the number before, but that batch is another one."""
    destination = opened(tmp_path)
    load(destination, request(1, epoch=1), orders(1))
    receipt = seal(destination, request(2, epoch=3, after=2), orders(2))
    with pytest.raises(NeedsAnswer) as refusal:
        destination.publish([receipt])
    assert "at batch 1 of run 1, but batch 2 comes after batch 1 of run 2" in refusal.value.reason
    assert refusal.value.choices == ("refresh",)
    there = destination.marker(TABLE)
    assert there is not None
    assert (there.seq, there.epoch) == (1, 1)


@_ANY
@pytest.mark.parametrize(("after", "mode"), [(0, Mode.APPEND), (1, Mode.APPEND), (2, Mode.REPLACE)])
def test_a_batch_comes_after_the_one_that_is_there_and_a_replacement_after_any(
    opened: Callable[[Path], Destination], tmp_path: Path, after: int, mode: Mode
) -> None:
    """0: it is not known after which."""
    destination = opened(tmp_path)
    load(destination, request(1, epoch=1), orders(1))
    load(destination, request(2, epoch=3, after=after, mode=mode), orders(2))
    there = destination.marker(TABLE)
    assert there is not None
    assert (there.seq, there.epoch) == (2, 3)
