"""Daemons and workers are killed and stopped at random while writers write; then all is right.

What holds in the end: destination equals source row for row, no run number was given twice, nothing
staged lies about, the catalog finds no damage. The seed is shown when it fails; it decides what is
done, not how the processes' own timing falls.

An hour of it: ``RECONCILER_TEST_SECONDS=3600 pytest -m slow tests/crash/test_chaos.py``.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.crash.test_stale_holder import _workers
from tests.e2e.test_postgres_writers import _CONFIG, _TABLES, Writers, _events, _there
from tests.e2e.world import Daemon, World, eventually
from tests.servers import PostgresServer

pytestmark = pytest.mark.postgres
_PIPELINES = ("merged", "added")
Row = tuple[Any, ...]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


class Chaos:
    """Does to daemons and workers what machines do to them."""

    def __init__(self, world: World, seed: int) -> None:
        self.all: list[Daemon] = []
        self.done: list[str] = []
        self._world, self._chance = world, random.Random(seed)
        self._alive: list[Daemon] = []
        self._begin()

    def _begin(self) -> Daemon:
        daemon = self._world.start()
        self.all.append(daemon)
        self._alive.append(daemon)
        return daemon

    def go_on(self, seconds: float) -> None:
        """One blow after another."""
        blows: list[Callable[[], None]] = [
            *(self._kill_a_daemon, self._kill_a_worker, self._kill_a_worker),
            *(self._stop_a_daemon, self._stop_a_worker),
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self._chance.uniform(0.2, 1.5))
            blow = self._chance.choice(blows)
            self.done.append(blow.__name__)
            blow()

    def end(self) -> Daemon:
        """One daemon is left."""
        for daemon in self._alive[1:]:
            daemon.wait_ready()
            assert daemon.stop() == 0
        (last, *_) = self._alive
        return last

    def _kill_a_daemon(self) -> None:
        daemon = self._alive.pop(self._chance.randrange(len(self._alive)))
        daemon.kill()
        self._begin()

    def _a_worker(self) -> int | None:
        found = [pid for daemon in self._alive for pid in _workers(daemon.process.pid)]
        return self._chance.choice(found) if found else None

    def _kill_a_worker(self) -> None:
        worker = self._a_worker()
        if worker is not None:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    def _stop_a_worker(self) -> None:
        worker = self._a_worker()
        if worker is not None:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGSTOP)
                time.sleep(self._chance.uniform(0.1, 3))
                os.kill(worker, signal.SIGCONT)

    def _stop_a_daemon(self) -> None:
        """Mostly for longer than its lease; another may take over in the meantime."""
        sleeper = self._chance.choice(self._alive)
        sleeper.process.send_signal(signal.SIGSTOP)
        rival = self._begin() if self._chance.random() < 0.5 else None
        time.sleep(self._chance.uniform(0.3, 4))
        sleeper.process.send_signal(signal.SIGCONT)
        if rival is not None:
            leaves = self._chance.choice((sleeper, rival))
            self._alive.remove(leaves)
            leaves.wait_ready()  # a process that is still starting has no handler for signals
            assert leaves.stop() == 0


def _prove(world: World, server: PostgresServer, seconds: float) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    name = server.new_database("chaos")
    server.execute(*_TABLES, database=name)
    config = _CONFIG.format(url=server.url(database=name))
    config = config.replace("[defaults]", "[defaults]\nretries = 100")
    # On a machine that has no time for the writers, too, none of them is passed over.
    world.write_config(config.replace('max_wait = "5s"', 'max_wait = "1m"'), lease_ttl="1s")
    writers = Writers(server, name)
    chaos = Chaos(world, seed)
    writers.start()
    try:
        chaos.go_on(seconds)
        eventually(lambda: _events(world) != [], "rows arrive while others are written")
    finally:
        writers.stop()
    last = chaos.end()
    last.wait_ready()
    for pipeline in _PIPELINES:
        world.do("retry", pipeline)  # or the last failure's pause would be waited for
    events = server.execute("select id, writer from events order by id", database=name)
    accounts = server.execute("select id, writer, value from accounts order by id", database=name)
    _each_is_there_once(lambda: _events(world), events)
    _each_is_there_once(
        lambda: _there(world, "select id, writer, value from accounts order by id"), accounts
    )
    assert last.stop() == 0
    print(f"{len(chaos.done)} blows, {len(chaos.all)} daemons, {len(events)} events")  # noqa: T201
    _nothing_is_left_over(world, chaos.all)


def _each_is_there_once(read: Callable[[], list[Row]], wanted: list[Row]) -> None:
    """In its newest version; what is missing may still come, a row too many goes no more."""
    ids = [row[0] for row in wanted]

    def arrived() -> bool:
        there = read()
        doubled = [row for row, count in Counter(row[0] for row in there).items() if count > 1]
        assert not doubled, f"there more than once: {doubled[:5]} of {len(doubled)}"
        return there == wanted

    try:
        eventually(arrived, "each row is there once")
    except AssertionError as error:
        there = read()
        missing = sorted(set(ids) - {row[0] for row in there})
        others = sorted(set(there) - set(wanted))
        text = f"{len(missing)} of {len(ids)} missing: {missing[:20]}; others: {others[:20]}"
        raise AssertionError(f"{error}; {text}") from None


def _nothing_is_left_over(world: World, daemons: list[Daemon]) -> None:
    for pipeline in _PIPELINES:
        world.do("run", pipeline)
    assert list(world.folder.rglob("*.staged")) == []
    assert "No damage" in world.do("catalog", "check")
    said = [event for daemon in daemons for event in daemon.events]
    ended = [event["run"] for event in said if event["event"] == "run_finished"]
    assert ended
    assert len(ended) == len(set(ended)), "a run's number was given twice"
    assert not [event for event in said if event.get("outcome") == "held"]
    assert not [event for event in said if "fault of its own" in str(event.get("reason", ""))]
    assert not [event for event in said if event["event"] == "text"], "a process said a traceback"


def test_all_is_right_after_chaos(world: World, postgres_server: PostgresServer) -> None:
    _prove(world, postgres_server, 20)


@pytest.mark.slow
def test_all_is_right_after_long_chaos(world: World, postgres_server: PostgresServer) -> None:
    _prove(world, postgres_server, float(os.environ.get("RECONCILER_TEST_SECONDS", "300")))
