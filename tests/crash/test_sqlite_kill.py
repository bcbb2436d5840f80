"""A killed process takes nothing acknowledged along; processes share one file (rule 3, D5)."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from catalog.open import open_catalog
from catalog.records import RunQuery
from tests.crash.sqlite_child import WORKERS
from tests.crash.test_sqlite_power_loss import cursor

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.anyio


def start(path: Path, name: str, commits: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.crash.sqlite_child", str(path), name, str(commits)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def acknowledged(lines: list[str]) -> dict[str, int]:
    """The last seq that each pipeline was told of; a line cut short by a kill is none."""
    pairs = [line.split() for line in lines if line.endswith("\n")]
    return {name: int(seq) for name, seq in pairs}


async def found(path: Path) -> dict[str, int]:
    """What a new process finds, after it looked for damage."""
    async with open_catalog(f"sqlite:///{path}") as catalog:
        assert (await catalog.check()).problems == ()
        seqs = {}
        for state in await catalog.changed(0):
            for stream in await catalog.streams(state.name):
                seqs[state.name] = stream.seq
                assert stream.cursor == cursor(stream.seq)
                assert stream.rows == state.rows == stream.seq
        return seqs


@pytest.mark.parametrize("after", [1, 100, 400])
async def test_a_kill_takes_nothing_that_was_acknowledged(tmp_path: Path, after: int) -> None:
    path = tmp_path / "catalog.db"
    with start(path, "p", 1_000_000) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(after)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    told, there = acknowledged(lines), await found(path)
    assert told
    for name, seq in told.items():
        # One more may be there: committed, and killed before it could say so.
        assert there[name] in (seq, seq + 1)


async def test_two_processes_write_one_catalog_and_neither_loses_anything(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    commits = 60
    with start(path, "a", commits) as one, start(path, "b", commits) as other:
        outputs = [child.communicate()[0].splitlines(keepends=True) for child in (one, other)]
    assert one.returncode == other.returncode == 0
    names = [f"{child}{number}" for child in "ab" for number in range(WORKERS)]
    assert acknowledged([*outputs[0], *outputs[1]]) == dict.fromkeys(names, commits)
    assert await found(path) == dict.fromkeys(names, commits)
    async with open_catalog(f"sqlite:///{path}") as catalog:
        epochs = [run.epoch for run in await catalog.runs(RunQuery())]
        assert epochs == list(range(2 * WORKERS, 0, -1))


async def test_processes_that_make_a_catalog_at_once_make_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "catalog.db"
    children = [start(path, name, 1) for name in "abcd"]
    for child in children:
        child.communicate()
        assert child.returncode == 0
    assert len(await found(path)) == 4 * WORKERS
