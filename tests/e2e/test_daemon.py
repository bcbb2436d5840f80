"""A daemon's life: stopped, killed, started again, steered, and its config edited (A7, A8)."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.test_kill_points import _DUCKDB, _row
from tests.crash.test_stale_holder import _gone, _metric, _stopped, _workers
from tests.e2e.world import World, eventually
from tests.patience import PATIENCE

_PAUSED = {"RECONCILER_TEST_PAUSE_AT": "worker.before_seal"}
_OTHERS = """
[pipelines.others]
source = "src"
destination = "dst"
schedule = "every 1h"
cursor = ["updated_at"]
settle = "0s"
[pipelines.others.streams.others]
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.write_config(_DUCKDB, lease_ttl="1h")
    world.fill("orders", (_row(n) for n in range(200)))
    yield world
    world.close()


def _equal(world: World) -> bool:
    return world.duckdb_rows("orders") == world.source_rows("orders")


def _in_the_middle(world: World) -> tuple[object, int]:
    """A daemon whose first run stands still in the middle, and that run's worker."""
    daemon = world.start(**_PAUSED)
    daemon.wait_ready()
    pid = daemon.process.pid
    eventually(lambda: any(map(_stopped, _workers(pid))), "a run stands still")
    return daemon, next(child for child in _workers(pid) if _stopped(child))


def _runs(world: World, *args: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(world.do("runs", "p", "--json", *args))
    return found


def test_a_killed_daemon_takes_its_workers_along_and_a_restart_goes_on_at_once(
    world: World,
) -> None:
    daemon, worker = _in_the_middle(world)
    daemon.process.kill()  # type: ignore[attr-defined]
    eventually(lambda: _gone(worker), "the worker is gone")
    daemon.died()  # type: ignore[attr-defined]
    again = world.start(RECONCILER_DEBUG="1")
    again.finished("p", "succeeded")  # patience ends long before that lease
    assert any(event["event"] == "run_started" for event in again.events), "debug is asked for"
    assert _equal(world)
    assert [run["outcome"] for run in _runs(world)][-2:] == ["succeeded", "interrupted"]


def test_sigterm_interrupts_what_outlives_the_grace_and_the_next_start_goes_on(
    world: World,
) -> None:
    world.write_config(_DUCKDB, lease_ttl="1h", grace="100ms")
    daemon, _ = _in_the_middle(world)
    assert daemon.stop() == 0  # type: ignore[attr-defined]
    (run,) = _runs(world)
    assert run["outcome"] == "interrupted"
    world.start().wait_ready()
    eventually(lambda: _equal(world), "the interrupted run's trigger is answered at once")


def test_a_cancelled_run_ends_in_seconds_and_does_not_start_again_by_itself(world: World) -> None:
    world.write_config(_DUCKDB.replace('"every 1s"', '"every 1h"'), lease_ttl="1h")
    daemon, worker = _in_the_middle(world)
    world.do("cancel", "p")
    cancelled = daemon.finished("p", "cancelled")  # type: ignore[attr-defined]
    eventually(lambda: _gone(worker), "the worker is gone")
    world.fill("others", [_row(1)])
    world.save(world.config.read_text() + _OTHERS)
    pid = daemon.process.pid  # type: ignore[attr-defined]
    eventually(lambda: any(map(_stopped, _workers(pid))), "it has planned since, and begun another")
    (run,) = _runs(world)
    assert (run["id"], run["outcome"]) == (cancelled["run"], "cancelled")
    assert "cancel" in world.do("why", "p")


def test_pause_resume_and_run_work_with_the_daemon_up(world: World) -> None:
    world.write_config(_DUCKDB.replace('"every 1s"', '"every 1h"'), lease_ttl="1h")
    daemon = world.start()
    daemon.finished("p", "succeeded")
    world.fill("orders", [_row(500)])
    world.do("run", "p")
    assert _equal(world)
    world.do("pause", "p", "--why", "maintenance")
    world.fill("orders", [_row(501)])
    world.do("run", "p", code=3)
    assert not _equal(world)
    assert "maintenance" in world.do("why", "p")
    world.do("resume", "p")
    world.do("run", "p")
    assert _equal(world)
    assert daemon.stop() == 0


def test_an_edited_config_takes_effect_as_a_whole_or_not_at_all(world: World) -> None:
    daemon = world.start()
    url = daemon.wait_ready()
    daemon.finished("p", "succeeded")
    good = world.config.read_text()

    world.save(good.replace('source = "src"', 'sorce = "src"'))
    rejected = daemon.wait_for("config_rejected")
    assert "sorce" in rejected["reason"]
    assert _metric(url, "reconciler_config_last_reload_successful") == 0
    world.fill("orders", [_row(700)])
    eventually(lambda: _equal(world), "the old config goes on")

    second = _DUCKDB[_DUCKDB.index("[pipelines.p]") :].replace("pipelines.p", "pipelines.q")
    second = second.replace("[pipelines.q.streams.orders]", "[pipelines.q.streams.more]")
    world.fill("more", [_row(1)])
    edited = world.config.with_name("edited.toml")
    edited.write_text(good + second)
    planned = json.loads(world.do("plan", "--json", config=edited))
    assert [(e["subject"], e["kind"]) for e in planned["edits"]] == [("q", "pipeline_added")]
    world.save(good + second)
    daemon.finished("q", "succeeded")
    assert _metric(url, "reconciler_config_last_reload_successful") == 1

    world.save(good)
    eventually(lambda: '"orphaned"' in world.do("plan", "--json"), "the removed one is an orphan")
    assert daemon.stop() == 0


def test_a_variable_that_an_edit_names_as_a_secret_leaves_the_workers(world: World) -> None:
    daemon = world.start(OTHER_PASSWORD="hunter2")
    daemon.finished("p", "succeeded")

    def told() -> list[bool]:
        """Of each worker, whether it has the variable."""
        found = (Path(f"/proc/{pid}/environ") for pid in _workers(daemon.process.pid))
        return [b"hunter2" in environ.read_bytes() for environ in found if environ.exists()]

    assert True in told()
    world.save(
        world.config.read_text() + '[connections.other]\nconnector = "sql"\n'
        'url = "postgresql://reader@localhost/x"\npassword = "env:OTHER_PASSWORD"\n'
    )
    daemon.wait_for("config_reloaded")
    seen = len(daemon.events)
    world.fill("orders", [_row(300)])
    daemon.finished("p", "succeeded", after=seen)
    eventually(lambda: set(told()) == {False}, "it is the daemon's alone")
    assert daemon.stop() == 0


def test_a_catalog_replaced_under_a_live_daemon_makes_it_not_ready(world: World) -> None:
    world.write_config(_DUCKDB, lease_ttl="1s")
    daemon = world.start()
    url = daemon.wait_ready()
    daemon.finished("p", "succeeded")
    catalog = world.folder / "state" / "catalog.db"
    catalog.rename(catalog.with_name("elsewhere.db"))
    world.fill("orders", (_row(n) for n in range(800, 900)))

    def says_why() -> bool:
        try:
            urllib.request.urlopen(f"{url}readyz", timeout=PATIENCE).close()
        except urllib.error.HTTPError as answer:
            with answer:
                return "replaced" in answer.read().decode()
        return False

    eventually(says_why, "not ready, and why")
