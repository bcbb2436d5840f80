"""A loss of power at any moment of whole runs into DuckDB's own file (rules 1 to 3, B4, B8, E2).

Nothing stands in for SQLite, DuckDB or Arrow here: a process carries out whole runs in one folder
while all that comes to its disk is recorded, and of each moment states are made as a machine may
find them at the next boot. In each: what was acknowledged is there, in the catalog and in DuckDB,
what was not is there whole or not at all, and after one more run the tables are the source's rows,
each once. And the proof can fail: without a sync it finds losses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.crash.disk_recorder import Recorder
from tests.crash.duckdb_books import Store
from tests.crash.duckdb_large import LargeStore
from tests.crash.duckdb_life import FILE
from tests.crash.duckdb_world import Lives, Report, live

MANY, MANY_LARGE = 2_000, 360
LIVES, RUNS, CUTS = 3, 4, 30
BESIDE = f"{FILE}.reconciler"

FORGOTTEN: dict[str, Callable[[str, Path], bool]] = {
    "content of the database": lambda kind, path: path.name == FILE,
    "names beside the database": lambda kind, path: kind == "dir" and path.name == "world",
    "content of staged files": lambda kind, path: path.suffix == ".staged" and BESIDE in path.parts,
    "directories of staging": lambda kind, path: kind == "dir" and "staged" in path.parts,
    "the catalog's log": lambda kind, path: path.name == "catalog.db-wal",
    "what a checkpoint overwrites": lambda kind, path: path.name.startswith("undo"),
}


def test_no_loss_of_power_takes_anything_and_a_forgotten_sync_is_found(tmp_path: Path) -> None:
    lives = Lives(tmp_path, 7, Recorder(tmp_path))
    lives.record(runs=2)
    lives.cut(15)
    assert lives.report.lost == []
    assert lives.report.cuts == 15
    lives.cut(30, FORGOTTEN["content of the database"], enough=1)
    assert len(lives.report.lost) == 1


@pytest.mark.slow
@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_forgotten_sync_is_found(what: str, tmp_path: Path) -> None:
    lives = Lives(tmp_path, 8, Recorder(tmp_path))
    lives.record(RUNS)
    lives.cut(200, FORGOTTEN[what], enough=1)
    assert len(lives.report.lost) == 1


@pytest.mark.slow
def test_all_that_rests_on_syncs_of_the_databases_log_is_a_checkpoints_word(tmp_path: Path) -> None:
    """DuckDB writes into its log that a checkpoint is about to end, and syncs it, before the header
    moves; without that word it refuses the log as an older one's. No row is gone or there twice.
    """
    lives = Lives(tmp_path, 9, Recorder(tmp_path))
    lives.record(RUNS)
    lives.cut(90, lambda kind, path: path.name == f"{FILE}.wal")
    assert [loss for loss in lives.report.lost if "an older version of this" not in loss] == []


def block(folder: Path, large: bool, number: int) -> Report:
    folder = folder / f"block-{number}"  # LD_PRELOAD takes a space for the end of a path
    folder.mkdir()
    seed, recorder = 1_000 + number, Recorder(folder)
    if large:
        return live(folder, seed, recorder, LargeStore, lives=LIVES, runs=2, cuts=CUTS)
    return live(folder, seed, recorder, Store, lives=LIVES, runs=RUNS, cuts=CUTS)


def lose(folder: Path, many: int, *, large: bool) -> None:
    """So many losses of power, in processes side by side."""
    numbers = range(-(-many // (LIVES * CUTS)))
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        reports = list(pool.map(partial(block, folder, large), numbers))
    assert [loss for report in reports for loss in report.lost] == []
    assert sum(report.cuts for report in reports) >= many


@pytest.mark.slow
def test_no_loss_of_power_among_thousands_takes_anything(tmp_path: Path) -> None:
    lose(tmp_path, MANY, large=False)


@pytest.mark.slow
def test_no_loss_of_power_in_large_loads_takes_anything(tmp_path: Path) -> None:
    """What DuckDB writes to the file before it is committed, values that have blocks of their own,
    metadata of many blocks, and blocks that are written over when they are free."""
    lose(tmp_path, MANY_LARGE, large=True)
