"""How a daemon conducts runs: stalled, killed, one after another, and what they print (A8, B6)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from reconciler.daemon.status import LOOP_PATIENCE
from tests.crash.test_kill_points import _DUCKDB, _row
from tests.crash.test_stale_holder import _gone, _stopped, _workers
from tests.e2e.world import Daemon, World, eventually
from tests.patience import PATIENCE

_PAUSED = {"RECONCILER_TEST_PAUSE_AT": "worker.before_seal"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.write_config(_DUCKDB, lease_ttl="5m")
    world.fill("orders", (_row(n) for n in range(200)))
    yield world
    world.close()


def _equal(world: World) -> bool:
    return world.duckdb_rows("orders") == world.source_rows("orders")


def _paused_worker(daemon: Daemon) -> int:
    pid = daemon.process.pid
    eventually(lambda: any(map(_stopped, _workers(pid))), "a run stands still")
    return next(child for child in _workers(pid) if _stopped(child))


def test_a_run_that_moves_nothing_is_ended_and_named(world: World) -> None:
    patient = world.config.read_text()
    hasty = 'mode = "merge"\nretries = 0\nstall_timeout = "1s"'
    world.save(patient.replace('mode = "merge"', hasty))
    daemon = world.start(**_PAUSED)
    failed = daemon.finished("p", "failed")
    assert "stall_timeout" in failed["reason"]
    eventually(lambda: not any(map(_stopped, _workers(daemon.process.pid))), "its worker is gone")
    daemon.kill()
    world.save(patient)  # on a busy machine a good worker may move nothing for a second
    world.start()
    world.do("retry", "p")
    eventually(lambda: _equal(world), "the next run brings all")


def test_a_run_that_takes_too_long_is_ended_and_named(world: World) -> None:
    text = world.config.read_text()
    world.config.write_text(text.replace('mode = "merge"', 'mode = "merge"\ntimeout = "1s"'))
    daemon = world.start(**_PAUSED)
    failed = daemon.finished("p", "failed")
    assert "`timeout`" in failed["reason"]


def test_a_worker_killed_from_outside_is_named_and_the_others_go_on(world: World) -> None:
    second = _DUCKDB[_DUCKDB.index("[pipelines.p]") :].replace("pipelines.p", "pipelines.q")
    second = second.replace("[pipelines.q.streams.orders]", "[pipelines.q.streams.more]")
    world.config.write_text(world.config.read_text() + second)
    world.fill("more", [_row(1)])
    daemon = world.start(**_PAUSED)
    worker = _paused_worker(daemon)
    os.kill(worker, signal.SIGKILL)
    failed = daemon.wait_for("run_finished", lambda event: event["outcome"] == "failed")
    assert "SIGKILL" in failed["reason"]
    shown = json.loads(world.do("show", str(failed["run"]), "--json"))
    assert "SIGKILL" in shown["reason"]


def _draining(world: World) -> tuple[Daemon, int]:
    """A daemon told to stop that gives its run an hour, and the worker, which waits."""
    world.config.write_text(world.config.read_text().replace('grace = "2s"', 'grace = "1h"'))
    daemon = world.start(**_PAUSED)
    worker = _paused_worker(daemon)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for("daemon_draining")
    return daemon, worker


def test_a_run_that_ends_within_the_grace_is_carried_out(world: World) -> None:
    daemon, worker = _draining(world)
    os.kill(worker, signal.SIGCONT)
    assert daemon.died() == 0
    assert [run["outcome"] for run in _runs(world, "p")] == ["succeeded"]
    assert _equal(world)


def test_a_second_sigterm_does_not_wait_for_the_grace(world: World) -> None:
    daemon, worker = _draining(world)
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.died() == 0
    eventually(lambda: _gone(worker), "its worker is gone")


def test_what_is_after_another_runs_when_that_has_brought_something(world: World) -> None:
    text = _DUCKDB.replace('"every 1s"', '"every 500ms"')
    second = _DUCKDB[_DUCKDB.index("[pipelines.p]") :].replace("pipelines.p", "pipelines.q")
    second = second.replace('schedule = "every 1s"', 'after = "p"')
    second = second.replace("streams.orders]", "streams.late]")
    world.fill("late", [_row(1)])
    world.write_config(text + second)
    daemon = world.start()
    daemon.finished("q", "succeeded")
    ran = len(_runs(world, "q"))
    for number in (300, 301):
        seen = len(daemon.events)
        world.fill("late", [_row(number)])
        world.fill("orders", [_row(number)])
        daemon.finished("q", "succeeded", after=seen)
    assert world.duckdb_rows("late") == world.source_rows("late")
    assert len(_runs(world, "q")) == ran + 2, "nothing new is nothing to run after"
    assert daemon.stop() == 0


def _runs(world: World, pipeline: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(world.do("runs", pipeline, "--json"))
    return found


def test_what_a_library_prints_in_a_run_is_kept_with_the_run(world: World) -> None:
    (world.folder / "sitecustomize.py").write_text(
        "import sys\n"
        "def loud(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('.staged'):\n"
        "        print('a library says hello', flush=True)\n"
        "if 'reconciler.run.worker' in sys.orig_argv:\n"
        "    sys.addaudithook(loud)\n"
    )
    paths = (str(world.folder), os.environ.get("PYTHONPATH"))
    daemon = world.start(PYTHONPATH=os.pathsep.join(filter(None, paths)))
    finished = daemon.finished("p", "succeeded")
    assert "a library says hello" in world.do("logs", "p", "--run", str(finished["run"]))
    assert "a library says hello" in world.do("logs", "p")
    logs = world.folder / "state" / "logs"
    shutil.rmtree(logs)
    logs.write_text("in the way")
    world.fill("orders", [_row(300)])
    world.do("retry", "p")
    note = daemon.wait_for("run_note", lambda event: "printed" in event["note"])
    assert str(logs) in note["note"]
    eventually(lambda: _equal(world), "a place that does not take it costs no run")
    assert daemon.stop() == 0


def test_a_pause_while_no_daemon_is_up_holds_for_the_next_one(world: World) -> None:
    world.do("run", "p")
    world.do("pause", "p")
    world.fill("orders", [_row(500)])
    daemon = world.start()
    daemon.wait_ready()
    assert "paused" in world.do("why", "p")
    assert not _equal(world)
    world.do("resume", "p")
    eventually(lambda: _equal(world), "resumed, it runs at once")
    assert daemon.stop() == 0


def test_a_broken_table_does_not_keep_the_others_from_running(world: World) -> None:
    world.fill("good", [_row(1)])
    text = world.config.read_text().replace('"merge"', '"merge"\nretries = 0')
    world.config.write_text(text + "[pipelines.p.streams.good]\n[pipelines.p.streams.missing]\n")
    daemon = world.start()
    failed = daemon.finished("p", "failed")
    assert "missing" in failed["reason"]
    eventually(lambda: _equal(world), "the others are loaded")
    assert world.duckdb_rows("good") == world.source_rows("good")
    streams = json.loads(world.do("show", str(failed["run"]), "--json"))["streams"]
    outcomes = {stream["stream"]: stream["outcome"] for stream in streams}
    assert outcomes == {"orders": "succeeded", "good": "succeeded", "missing": "failed"}
    with sqlite3.connect(world.source) as db:
        db.execute("create table missing (id integer primary key, updated_at timestamp, name text)")
        db.execute("insert into missing values (1, '2026-01-01 00:00:00', 'there now')")
    db.close()
    world.do("resume", "p")
    world.do("retry", "p.missing")
    eventually(lambda: world.duckdb_rows("missing") == [(1, "there now")], "and it, once mended")
    assert daemon.stop() == 0


def test_a_run_whose_pipeline_left_the_config_can_be_cancelled(world: World) -> None:
    daemon = world.start(**_PAUSED)
    worker = _paused_worker(daemon)
    world.save(world.config.read_text().partition("[pipelines.")[0])
    daemon.wait_for("config_reloaded")
    world.do("cancel", "p")
    daemon.finished("p", "cancelled")
    eventually(lambda: _gone(worker), "the worker is gone")
    assert daemon.stop() == 0


def _waits(daemon: Daemon) -> bool:
    """The run that is due was chosen, which the loop says right before it claims."""
    with urllib.request.urlopen(daemon.wait_ready() + "metrics", timeout=PATIENCE) as answer:
        return b'state="waiting"} 1' in answer.read()


def test_a_daemon_that_is_told_to_stop_while_it_claims_begins_nothing(world: World) -> None:
    daemon = world.start(**_PAUSED)
    _paused_worker(daemon)
    world.do("cancel", "p")
    daemon.finished("p", "cancelled")
    other = sqlite3.connect(world.folder / "state" / "catalog.db", isolation_level=None)
    other.execute("begin immediate")
    eventually(lambda: _waits(daemon), "the next run is due, and its claim waits for this one")
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for("daemon_draining")
    other.execute("rollback")
    other.close()
    assert daemon.died() == 0
    outcomes = [run["outcome"] for run in json.loads(world.do("runs", "p", "--json"))]
    assert outcomes == ["interrupted", "cancelled"]


@pytest.mark.slow
def test_the_service_manager_hears_of_a_daemon_as_long_as_its_runs_have_their_grace(
    world: World,
) -> None:
    world.write_config(_DUCKDB, lease_ttl="5m", grace="1m")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(world.folder / "notify"))
        manager.settimeout(PATIENCE)
        daemon = world.start(
            **_PAUSED, NOTIFY_SOCKET=str(world.folder / "notify"), WATCHDOG_USEC="2000000"
        )
        _paused_worker(daemon)
        manager.setblocking(False)
        with suppress(BlockingIOError):  # a kernel keeps ten, and the daemon drops what is more
            while manager.recv(100):
                pass
        manager.settimeout(PATIENCE)
        daemon.process.send_signal(signal.SIGTERM)
        while manager.recv(100) != b"STOPPING=1":
            pass
        until = time.monotonic() + LOOP_PATIENCE + 3
        while time.monotonic() < until:
            manager.recv(100)
        manager.settimeout(3)
        assert manager.recv(100) == b"WATCHDOG=1"
