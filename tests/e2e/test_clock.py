"""Real daemons whose wall clock jumps, and machines that sleep (A6, A8).

Each daemon's clocks are moved while it runs; nothing else is played.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog.open import open_catalog
from catalog.records import Outcome, Run, RunQuery, TriggerKind
from tests.crash.test_kill_points import _PARQUET, _prepare, _row
from tests.crash.test_stale_holder import _metric, _stopped, _workers
from tests.e2e.clocks import Clocks
from tests.e2e.world import Daemon, World, eventually

_HOUR = 3_600.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    return Clocks(tmp_path)


class Trickle:
    """A writer that adds rows all the time, so that every run brings some."""

    def __init__(self, world: World) -> None:
        self._world, self._over = world, threading.Event()
        self._next = 1_000
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Trickle:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._over.wait(0.1):
            self._world.fill("orders", [_row(self._next)])
            self._next += 1


def _runs(world: World) -> tuple[Run, ...]:
    async def read() -> tuple[Run, ...]:
        async with open_catalog(f"sqlite:///{world.folder}/state/catalog.db") as catalog:
            return await catalog.runs(RunQuery(pipeline="p", limit=1_000))

    return asyncio.run(read())


def _equal(world: World) -> bool:
    return world.parquet_rows("orders") == world.source_rows("orders")


def _succeeded(world: World) -> int:
    return sum(run.outcome is Outcome.SUCCEEDED for run in _runs(world))


def _goes_on(world: World, what: str) -> None:
    before = _succeeded(world)
    eventually(lambda: _succeeded(world) > before, what)


def _jump(world: World, clocks: Clocks, hours: tuple[int, ...]) -> None:
    """One daemon, its clock moved a second at a time and by hours, while rows trickle in."""
    _prepare(world, "parquet")
    world.write_config(_PARQUET, lease_ttl="1m", grace="1m")  # not lost on a busy machine
    daemon = world.start(**clocks.env)
    url = daemon.wait_ready()
    with Trickle(world):
        _goes_on(world, "runs before any jump")
        for step in range(12):
            clocks.move(1 if step % 2 == 0 else -1)
            time.sleep(0.1)  # how long the clock stands so, not a wait for anything
        _goes_on(world, "runs after seconds")
        for jump in hours:
            clocks.move(jump * _HOUR)
            _goes_on(world, f"runs after {jump:+} h")
    eventually(lambda: _equal(world), "each row is there once")
    assert _metric(url, "reconciler_leases_lost_total") == 0
    assert _metric(url, "reconciler_fenced_writes_total") == 0
    assert daemon.stop() == 0
    assert _equal(world)


def _no_tick_was_answered_twice(world: World) -> None:
    runs = _runs(world)
    assert {run.outcome for run in runs} <= {Outcome.SUCCEEDED, Outcome.NOTHING_NEW}
    assert {run.trigger.kind for run in runs} == {TriggerKind.TICK}
    ticks = [run.trigger.tick for run in runs]
    assert len(ticks) == len(set(ticks)), f"a tick was answered twice: {ticks}"


def test_no_run_is_doubled_or_lost_when_the_wall_clock_jumps(world: World, clocks: Clocks) -> None:
    _jump(world, clocks, (1, -1))
    _no_tick_was_answered_twice(world)


@pytest.mark.slow
def test_nor_when_it_jumps_often(world: World, clocks: Clocks) -> None:
    _jump(world, clocks, (-1, 1, 1, -1, 24, -24, -24, 24))
    _no_tick_was_answered_twice(world)


def _paused_worker(daemon: Daemon) -> int:
    pid = daemon.process.pid
    eventually(lambda: any(map(_stopped, _workers(pid))), "a run stands still")
    return next(child for child in _workers(pid) if _stopped(child))


@pytest.mark.slow
def test_no_lease_is_lost_or_taken_when_a_wall_clock_jumps(world: World, clocks: Clocks) -> None:
    _prepare(world, "parquet")
    world.write_config(_PARQUET, lease_ttl="1s")
    daemon = world.start(RECONCILER_TEST_PAUSE_AT="worker.before_publish", **clocks.env)
    url = daemon.wait_ready()
    worker = _paused_worker(daemon)
    rival = world.start()  # by another wall clock, and the same boot clock
    rival.wait_ready()
    for jump in (_HOUR, -2 * _HOUR, _HOUR):
        clocks.move(jump)
        time.sleep(1.5)  # longer than the lease; a rival that may take it would
    os.kill(worker, signal.SIGCONT)
    assert daemon.finished("p", "succeeded")["run"] == 1
    assert _metric(url, "reconciler_leases_lost_total") == 0
    eventually(lambda: _equal(world), "each row is there once")
    assert {daemon.stop(), rival.stop()} == {0}
    assert _outcome(world, 1) is Outcome.SUCCEEDED


def _outcome(world: World, epoch: int) -> Outcome | None:
    return next(run.outcome for run in _runs(world) if run.epoch == epoch)


def _family(daemon: Daemon) -> list[int]:
    return [*_workers(daemon.process.pid), daemon.process.pid]


def _suspend(clocks: Clocks, daemons: list[Daemon], seconds: float) -> None:
    """As a machine's suspend: all stand still, and boot and wall clock are ahead when they wake."""
    pids = [pid for daemon in daemons for pid in _family(daemon)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: all(map(_stopped, pids)), "all stand still")
    clocks.move(seconds, seconds)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def _goes_on_after_sleep(world: World, daemons: list[Daemon]) -> None:
    def equal() -> bool:
        for pid in _workers(daemons[0].process.pid):
            if _stopped(pid):  # its later workers stop at the same point
                os.kill(pid, signal.SIGCONT)
        return _equal(world)

    eventually(equal, "each row is there once after the sleep")
    world.fill("orders", [_row(2_000)])
    eventually(equal, "and a later one")
    for daemon in daemons:
        assert daemon.stop() == 0
    assert _equal(world)
    assert {run.outcome for run in _runs(world)} <= {
        *(Outcome.SUCCEEDED, Outcome.NOTHING_NEW, Outcome.INTERRUPTED)
    }


def test_a_machine_that_sleeps_costs_a_run_and_no_row(world: World, clocks: Clocks) -> None:
    _prepare(world, "parquet")
    daemon = world.start(RECONCILER_TEST_PAUSE_AT="worker.before_seal", **clocks.env)
    daemon.wait_ready()
    worker = _paused_worker(daemon)
    daemon.process.send_signal(signal.SIGSTOP)
    eventually(lambda: _stopped(daemon.process.pid), "the daemon stands still, too")
    clocks.move(8 * _HOUR, 8 * _HOUR)
    os.kill(worker, signal.SIGCONT)  # the first to wake: only the boot clock tells it
    eventually(lambda: not _stopped(worker), "the worker is awake")
    eventually(
        lambda: Path(f"/proc/{worker}/stat").read_text().rsplit(") ", 1)[1][0] == "Z",
        "it ends by itself",
    )
    daemon.process.send_signal(signal.SIGCONT)
    ended = daemon.finished("p", "interrupted")
    assert ended["run"] == 1
    assert "its lease ran out" in ended["reason"]
    _goes_on_after_sleep(world, [daemon])


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before_seal", "before_publish"])
def test_two_daemons_that_sleep_do_not_double_a_row(
    world: World, clocks: Clocks, point: str
) -> None:
    _prepare(world, "parquet")
    daemon = world.start(RECONCILER_TEST_PAUSE_AT=f"worker.{point}", **clocks.env)
    daemon.wait_ready()
    _paused_worker(daemon)
    rival = world.start(**clocks.env)
    rival.wait_ready()
    _suspend(clocks, [daemon, rival], 8 * _HOUR)
    _goes_on_after_sleep(world, [daemon, rival])


@pytest.mark.slow
@pytest.mark.parametrize("rivals", [0, 1])
def test_processes_that_stood_still_past_their_lease_go_on(
    world: World, clocks: Clocks, rivals: int
) -> None:
    _prepare(world, "parquet")
    world.write_config(_PARQUET, lease_ttl="1s")
    daemon = world.start(RECONCILER_TEST_PAUSE_AT="worker.before_seal", **clocks.env)
    daemon.wait_ready()
    _paused_worker(daemon)
    daemon.process.send_signal(signal.SIGSTOP)
    others = [world.start(**clocks.env) for _ in range(rivals)]
    for other in others:
        other.finished("p", "succeeded")
    time.sleep(2)  # twice its lease
    daemon.process.send_signal(signal.SIGCONT)
    _goes_on_after_sleep(world, [daemon, *others])
