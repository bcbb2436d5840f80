"""A holder that stops for longer than its lease and wakes up writes nothing (rule 1, A6, A8, B5).

SIGSTOP is what a suspended machine, a debugger or a long pause of the scheduler looks like: the
process knows nothing of the time that passed. Another daemon takes over meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from tests.crash.test_kill_points import _prepare, _row, _rows
from tests.e2e.world import Daemon, World, eventually
from tests.patience import PATIENCE

_DESTINATIONS = pytest.mark.parametrize("destination", ["parquet", "duckdb"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def _stopped(pid: int) -> bool:
    return _state(pid) == "T"


def _state(pid: int) -> str:
    """``T``: stopped; ``Z``: ended, and its parent has not asked how yet; empty: gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _gone(pid: int) -> bool:
    """Ended, whether or not anybody has asked how."""
    return _state(pid) in ("", "Z")


def _workers(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []  # the daemon itself is gone
    return [int(child) for child in children.split()]


def _metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def _marker_run(world: World, destination: str) -> int:
    """The run that published last, as the destination has it."""
    if destination == "parquet":
        state = world.folder / "lake" / "orders" / "_reconciler.json"
        return int(json.loads(state.read_text())["epoch"])
    with duckdb.connect(str(world.folder / "out.duckdb"), read_only=True) as db:
        (row,) = db.execute("select epoch from _reconciler_markers").fetchall()
    return int(row[0])


def _equal(world: World, destination: str) -> bool:
    return _rows(world, destination) == world.source_rows("orders")


def _run_under_way(world: World) -> int:
    """Mostly the first; on a busy machine the lease of a first may have run out before."""
    (lease,) = json.loads(world.do("leases", "--json"))["leases"]
    return int(lease["epoch"])


def _ends_well(world: World, destination: str, daemons: list[Daemon]) -> None:
    """Both daemons go on: later rows arrive once, and both end cleanly."""
    world.fill("orders", (_row(n) for n in range(900, 950)))
    eventually(lambda: _equal(world, destination), "later rows arrive once")
    assert {daemon.stop() for daemon in daemons} == {0}
    assert _equal(world, destination)
    assert "No damage" in world.do("catalog", "check")


@_DESTINATIONS
def test_a_daemon_that_slept_through_its_lease_commits_nothing(
    world: World, destination: str
) -> None:
    _prepare(world, destination)
    sleeper = world.start(RECONCILER_TEST_PAUSE_AT="daemon.before_commit")
    url = sleeper.wait_ready()
    pid = sleeper.process.pid
    eventually(lambda: _stopped(pid), "the first daemon stops before its commit")
    run = _run_under_way(world)
    eventually(lambda: "Z" in map(_state, _workers(pid)), "its worker waits no longer than it may")
    successor = world.start()
    taken = successor.finished("p", "succeeded")
    assert taken["run"] > run
    eventually(lambda: _equal(world, destination), "the second daemon loads everything")

    seen = len(sleeper.events)
    sleeper.process.send_signal(signal.SIGCONT)
    assert sleeper.wait_for("write_fenced", after=seen)["run"] == run
    assert sleeper.wait_for("run_lost", after=seen)["run"] == run
    assert _metric(url, "reconciler_fenced_writes_total") >= 1
    eventually(lambda: _metric(url, "reconciler_leases_lost_total") >= 1, "it counts it as lost")
    assert _equal(world, destination)
    assert _marker_run(world, destination) == taken["run"], "what is there is the successor's"
    _ends_well(world, destination, [sleeper, successor])


@_DESTINATIONS
def test_a_worker_that_slept_before_it_published_doubles_nothing(
    world: World, destination: str
) -> None:
    _prepare(world, destination)
    sleeper = world.start(RECONCILER_TEST_PAUSE_AT="worker.before_publish")
    sleeper.wait_ready()
    pid = sleeper.process.pid
    eventually(lambda: any(map(_stopped, _workers(pid))), "the worker stops before it publishes")
    (worker,) = [child for child in _workers(pid) if _stopped(child)]
    os.kill(pid, signal.SIGSTOP)
    run = _run_under_way(world)
    successor = world.start()
    successor.wait_ready()
    eventually(lambda: _equal(world, destination), "the second daemon publishes what was committed")
    world.fill("orders", (_row(n, "changed") for n in range(600, 650)))
    eventually(lambda: _equal(world, destination), "and goes on")

    os.kill(worker, signal.SIGCONT)  # first the worker: it still believes in its lease
    eventually(lambda: not _stopped(worker), "the worker wakes up")
    seen = len(sleeper.events)
    os.kill(pid, signal.SIGCONT)
    assert sleeper.wait_for("run_lost", after=seen)["run"] == run
    # Its next worker would stop at the same point: the first daemon has shown what it had to.
    assert sleeper.stop() == 0
    eventually(lambda: _equal(world, destination), "nothing is lost or doubled by the sleeper")
    _ends_well(world, destination, [successor])
