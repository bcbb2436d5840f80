"""A loss of power at any step of whole runs, catalog and lake at once (rules 1 to 3, B8, D1, D6).

After each: what was acknowledged is there, in the catalog and at the destination, what was not is
there whole or not at all, the file is sound, and no epoch and no seq comes again. After the last:
the tables are the source's rows, each once. And the proof can fail: without a sync it finds losses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.crash.test_destination_power_loss import FORGOTTEN
from tests.crash.whole_world import CUTS, Report, live

MANY = 10_000
BLOCK = 20


def test_no_loss_of_power_takes_anything_from_a_run(tmp_path: Path) -> None:
    report = live(tmp_path, range(3))
    assert report.lost == []
    assert report.cuts == 3 * CUTS
    assert report.steps > 50 * report.cuts


def test_a_log_that_is_not_synced_is_found(tmp_path: Path) -> None:
    assert live(tmp_path, range(100, 110), enough=1, synchronous="NORMAL").lost


@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_sync_of_the_lake_left_out_is_found(what: str, tmp_path: Path) -> None:
    forgets: Callable[[str, Path], bool] = FORGOTTEN[what]
    assert live(tmp_path, range(200, 260), enough=1, forgets=forgets).lost


def block(folder: Path, number: int) -> Report:
    first = 10_000 + number * BLOCK
    # From cuts within one transaction to cuts after several runs.
    between = (40, 200, 200, 800)[number % 4]
    return live(folder, range(first, first + BLOCK), between=between)


@pytest.mark.slow
def test_no_loss_of_power_among_ten_thousand_takes_anything(tmp_path: Path) -> None:
    numbers = range(-(-MANY // (BLOCK * CUTS)))
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        reports = list(pool.map(partial(block, tmp_path), numbers))
    assert [loss for report in reports for loss in report.lost] == []
    assert sum(report.cuts for report in reports) >= MANY
