"""What the page, the probes and the scrape are told of the daemon is so."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from catalog.errors import CatalogError, Unavailable
from catalog.port import new_operation_id
from catalog.records import Finish, Hold, HoldKind, Outcome, Pause, PipelineState, StreamResult
from reconciler import version
from reconciler.config.desired import Pipeline, Project
from reconciler.daemon import status
from reconciler.daemon.session import Session
from reconciler.daemon.status import LOOP_PATIENCE, Status
from reconciler.plan.standing import State
from reconciler.telemetry.metrics import Metrics
from reconciler.web.status import PipelineQuery
from tests.cli_kit import commit, finish
from tests.loop_kit import World, pipeline, project

pytestmark = pytest.mark.anyio


class _Told:
    """A daemon's world, and what is told of it. The catalog fails while there is ``trouble``."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.world = World(project, folder)
        self.trouble: CatalogError | None = None
        self.keeper = self.world.runs.keeper
        self.metrics = Mock(spec=Metrics)
        self.rejected = ""
        catalog = SimpleNamespace(pipeline=self._pipeline, stats=self._stats)
        session = SimpleNamespace(
            catalog=catalog,
            keeper=self.keeper,
            pool=SimpleNamespace(idle=2, busy=1),
            runs=self.world.runs,
            clock=self.world.clock,
        )
        self.status = Status(
            cast(Session, session), self.world.loop, self.metrics, lambda: self.rejected
        )

    async def _pipeline(self, name: str) -> PipelineState:
        if self.trouble:
            raise self.trouble
        return await self.world.ours.pipeline(name)

    async def _stats(self) -> Any:
        if self.trouble:
            raise self.trouble
        return await self.world.ours.stats()

    async def look(self) -> None:
        """The loop sees all pipelines as they are now, and begins nothing."""
        for each in self.world.loop.project.pipelines.values():
            self.world.loop._decide(each, await self.world.ours.pipeline(each.name))

    async def names(self, **query: Any) -> list[str]:
        return [row.name for row in (await self.status.pipelines(PipelineQuery(**query))).rows]


Make = Callable[..., _Told]


@pytest.fixture
def told(tmp_path: Path) -> Make:
    def make(*pipelines: Pipeline, max_runs: int = 8) -> _Told:
        return _Told(project(*pipelines, max_runs=max_runs), tmp_path)

    return make


def test_a_version_installed_meanwhile_is_not_the_one_that_runs(
    told: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = told().status
    monkeypatch.setattr(status, "version", lambda: "99")
    assert found.summary().version == version()


def test_a_loop_that_does_not_come_round_is_to_be_restarted_and_one_told_to_stop_is_not(
    told: Make,
) -> None:
    one = told()
    assert one.status.not_alive() == ""
    one.world.loop.beat_at = time.monotonic() - LOOP_PATIENCE + 5
    assert one.status.not_alive() == ""
    one.world.loop.beat_at = time.monotonic() - LOOP_PATIENCE - 1
    assert "has not come round for 11 s" in one.status.not_alive()
    one.world.loop.drain()
    assert one.status.not_alive() == ""


async def test_it_is_not_ready_while_no_run_could_start(told: Make) -> None:
    one = told(pipeline("shop"))
    assert one.status.not_ready() == ()
    one.keeper.held["shop"] = (await one.world.claim("shop", "daemon-1")).lease
    one.keeper.deadline_ns = one.world.clock.boot_ns() + 1
    assert one.status.not_ready() == ()
    one.keeper.deadline_ns -= 1
    assert one.status.not_ready() == ("leases could not be renewed in time",)
    one.keeper.held.clear()
    one.world.loop.trouble(Unavailable("its disk is full"))
    one.world.loop.drain()
    assert one.status.not_ready() == (
        "draining: told to stop",
        "the catalog: its disk is full",
    )


async def test_the_daemon_as_a_whole(told: Make) -> None:
    one = told(
        *(pipeline("a"), pipeline("b", fresh_within=60.0), pipeline("c", fresh_within=60.0)),
        max_runs=3,
    )
    began = one.world.clock.wall_us()
    await _succeeds(one, "b")
    one.world.clock.advance(60)
    await _succeeds(one, "c")
    await one.world.edit(Pause("a"))
    await one.look()
    one.rejected = "a mistake"
    found = one.status.summary()
    assert (found.project, found.catalog, found.holder) == (
        *("story", "sqlite:///nowhere"),
        "daemon-1",
    )
    assert (found.started_at, found.runs_open, found.runs_max) == (began, 0, 3)
    assert found.states == {State.PAUSED: 1, State.IDLE: 2}
    assert (found.stale, found.config_rejected) == (0, "a mistake")
    one.world.clock.advance(1)
    one.world.runs.conducting["a"] = Mock()
    found = one.status.summary()
    assert (found.stale, found.runs_open) == (1, 1), "b is stale since a second ago"
    _, b, _ = (await one.status.pipelines(PipelineQuery())).rows
    assert (b.fresh_at, b.stale) == (began, True)
    assert b.next_run_at is not None
    assert b.next_run_at > began


async def _succeeds(one: _Told, name: str) -> None:
    lease = (await one.world.claim(name)).lease
    done = Finish(Outcome.SUCCEEDED, "", streams=(StreamResult(name, Outcome.SUCCEEDED),))
    await one.world.other.finish(new_operation_id(), lease, done)


async def test_data_that_never_arrived_is_stale(told: Make) -> None:
    one = told(pipeline("shop", fresh_within=60.0), pipeline("other"))
    await one.look()
    assert one.status.summary().stale == 1
    rows = (await one.status.pipelines(PipelineQuery())).rows
    assert [(row.name, row.stale) for row in rows] == [("other", False), ("shop", True)]


async def test_pipelines_are_found_by_part_of_their_name_and_by_state_in_pages(told: Make) -> None:
    one = told(*map(pipeline, ("shop_b", "Shop_a", "lake", "workshop")))
    await one.world.edit(Pause("lake"))
    await one.look()
    assert await one.names() == ["Shop_a", "lake", "shop_b", "workshop"]
    assert await one.names(text="sHop") == ["Shop_a", "shop_b", "workshop"]
    assert await one.names(state=State.PAUSED) == ["lake"]
    page = await one.status.pipelines(PipelineQuery(offset=1, limit=2))
    assert (page.total, [row.name for row in page.rows]) == (4, ["lake", "shop_b"])


async def test_a_pipeline_is_shown_with_how_its_last_run_ended(told: Make) -> None:
    one = told(pipeline("shop"))
    hold = Hold(HoldKind.SCHEMA, "new", at=1, choices=("approve",))
    held = [StreamResult(s, Outcome.HELD, reason="new", hold=hold) for s in ("orders", "gone")]
    claimed = await one.world.claim("shop")
    await commit(one.world.other, claimed, rows=3, rejected=2)
    began = one.world.clock.wall_us()
    one.world.clock.advance(5)
    await finish(one.world.other, claimed, Outcome.FAILED, *held, reason="its disk is full")
    await one.world.claim("shop", "daemon-2")
    await one.look()
    (row,) = (await one.status.pipelines(PipelineQuery())).rows
    assert (row.state, row.fresh_at, row.stale, row.next_run_at) == (
        *(State.RUNNING, None, False),
        None,
    )
    assert "daemon-2" in row.reason
    assert (row.last_run, row.last_outcome, row.last_reason) == (
        *(claimed.lease.epoch, "failed"),
        "its disk is full",
    )
    assert (row.last_started_at, row.last_finished_at) == (began, began + 5 * 10**6)
    assert (row.failures, row.rows, row.rejected) == (1, 3, 2)
    assert row.held == ("orders",), "the other one is not read any more"


async def test_a_catalog_that_is_away_is_the_reason_and_a_gauge(told: Make) -> None:
    one = told(pipeline("shop"))
    await one.look()
    one.keeper.held["shop"] = (await one.world.claim("shop", "daemon-1")).lease
    await one.status.observe()
    one.metrics.workers.assert_called_once_with(idle=2, busy=1)
    one.metrics.leases_held.assert_called_once_with(1)
    (stats,) = one.metrics.catalog_stats.call_args.args
    assert stats.backend == "memory"
    one.trouble = Unavailable("away")
    await one.status.observe()
    one.metrics.catalog_stats.assert_called_with(None)
    (row,) = (await one.status.pipelines(PipelineQuery())).rows
    assert (row.name, row.reason) == ("shop", "the catalog: away")
