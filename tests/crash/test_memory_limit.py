"""A worker that runs out of memory costs one run, which says so; the next one brings all.

Only the worker is limited: what a large row, a leak in a library or a small container does to it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.test_kill_points import _PARQUET, _row
from tests.crash.test_stale_holder import _workers
from tests.e2e.world import World, eventually

_MIB = 1024 * 1024
_ROOM = 16 * _MIB
_ROWS = 2_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.write_config(_PARQUET.replace('schedule = "every 1s"\n', ""), lease_ttl="30s")
    world.fill("orders", [_row(0)])
    yield world
    world.close()


def _fill_with_large_rows(world: World) -> None:
    with sqlite3.connect(world.source) as db:
        db.execute(
            "with recursive n (i) as (select 1 union all select i + 1 from n where i < ?) insert "
            "into orders select i, '2026-01-02 00:00:00', i || hex(randomblob(10000)) from n",
            (_ROWS,),
        )
    db.close()


def _memory_groups() -> tuple[Path, dict[str, int]] | None:
    """Where control groups of memory are made here, and what limits one: version 2, or 1."""
    two, one = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
    control = two / "cgroup.subtree_control"
    if control.exists() and "memory" in control.read_text() and os.access(two, os.W_OK):
        return two, {"memory.max": _ROOM, "memory.swap.max": 0}
    if (one / "cgroup.procs").exists():
        return one, {"memory.limit_in_bytes": _ROOM, "memory.memsw.limit_in_bytes": _ROOM}
    return None


@contextmanager
def _group() -> Iterator[Path]:
    found = _memory_groups()
    if found is None:
        pytest.skip("needs a control group of memory that may be written")
    root, limits = found
    group = root / f"reconciler-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs a control group of memory that may be written: {error}")
    try:
        for name, value in limits.items():
            if (group / name).exists():  # the one for swap is not everywhere
                (group / name).write_text(str(value))
        yield group
    finally:
        eventually(lambda: (group / "cgroup.procs").read_text() == "", "the group is empty")
        group.rmdir()


@pytest.mark.slow
def test_a_worker_that_the_kernel_kills_for_memory_costs_a_run(world: World) -> None:
    with _group() as group:
        daemon = world.start()
        daemon.wait_ready()
        world.cli("run", "p")  # its worker has all loaded then, and is the one that is warm
        (worker,) = _workers(daemon.process.pid)
        (group / "cgroup.procs").write_text(str(worker))
        _fill_with_large_rows(world)
        world.cli("run", "p", code=1)
        failed = daemon.finished("p", "failed")
        assert "by the kernel for want of memory" in failed["reason"]
        daemon.finished("p", "succeeded", after=daemon.events.index(failed))
    assert world.parquet_rows("orders") == world.source_rows("orders")
    assert daemon.stop() == 0
    outcomes = [e["outcome"] for e in daemon.events if e["event"] == "run_finished"]
    assert outcomes == ["succeeded", "failed", "succeeded"]
    assert list(world.folder.rglob("*.staged")) == []
