"""What ``[retention]`` takes away in the catalog and in the state directory, and what it leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import anyio
import msgspec
import pytest

from catalog.clock import ManualClock
from catalog.memory import MemoryCatalog
from catalog.port import new_operation_id
from catalog.records import (
    Candidate,
    Claimed,
    Finish,
    Holder,
    Outcome,
    Pause,
    RequestRun,
    Resume,
    RunQuery,
    Trigger,
    TriggerKind,
)
from catalog.records import Retention as Limits
from reconciler.config.desired import RetentionSettings
from reconciler.daemon import runlogs
from reconciler.daemon.retention import retain
from reconciler.daemon.session import Session
from reconciler.lease.locks import HolderLock
from tests.crash.whole_world import PROJECT
from tests.patience import PATIENCE

pytestmark = pytest.mark.anyio

HOUR = 3600


class _Slow(MemoryCatalog):
    """Takes one row away at a time, and counts how often it was asked to."""

    asked = 0

    async def retain(self, op: str, keep: Limits) -> int:
        self.asked += 1
        return await super().retain(op, msgspec.structs.replace(keep, limit=1))


class _World:
    """A catalog and a state directory; runs are kept for an hour."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.catalog = _Slow(self.clock)
        self.lock = HolderLock(folder, Holder("daemon-1", "host", 1))
        keeper = SimpleNamespace(lock=self.lock)
        fields = {"catalog": self.catalog, "clock": self.clock, "keeper": keeper}
        self.session = cast(Session, SimpleNamespace(**fields))
        self.project = replace(PROJECT, state_dir=folder, retention=RetentionSettings(HOUR))

    async def claim(self, holder: str) -> Claimed:
        state = await self.catalog.pipeline("shop")
        candidate = Candidate("shop", state.version, Trigger(TriggerKind.TICK, tick=1), "due")
        by = Holder(holder, "host", 1)
        op = new_operation_id()
        (run,) = await self.catalog.claim(op, by, [candidate], ttl=60, limits={})
        assert isinstance(run, Claimed)
        return run

    async def run(self) -> None:
        lease = (await self.claim("daemon-1")).lease
        await self.catalog.finish(new_operation_id(), lease, Finish(Outcome.FAILED, "failed"))

    async def runs(self) -> list[int]:
        return [run.epoch for run in await self.catalog.runs(RunQuery())]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[_World]:
    world = _World(tmp_path)
    yield world
    world.lock.close()


async def test_runs_and_edits_go_after_as_long_as_the_config_says(world: _World) -> None:
    await world.catalog.edit(new_operation_id(), "ann", "", Pause("shop"))
    await world.run()
    await world.run()
    world.clock.advance(HOUR - 1)
    await world.catalog.edit(new_operation_id(), "ann", "", Resume("shop"))
    await world.run()
    assert await retain(world.session, world.project) == 0
    world.clock.advance(2)
    with anyio.fail_after(PATIENCE):
        assert await retain(world.session, world.project) == 3
    assert await world.runs() == [3]
    assert [edit.action for edit in await world.catalog.edits()] == ["resume"]
    world.clock.advance(HOUR)
    await retain(world.session, world.project)
    assert await world.runs() == [3], "a pipeline's last run stays"


async def test_an_operation_can_be_sent_again_for_two_days(world: _World) -> None:
    async def asked() -> bool:
        await world.catalog.edit("once", "ann", "", RequestRun("shop", "a"))
        await retain(world.session, world.project)
        return (await world.catalog.pipeline("shop")).request is not None

    assert await asked()
    await world.run()
    version = (await world.catalog.pipeline("shop")).version
    world.clock.advance(47 * HOUR)
    await asked()
    assert (await world.catalog.pipeline("shop")).version == version
    world.clock.advance(2 * HOUR)
    await retain(world.session, world.project)
    await asked()
    assert (await world.catalog.pipeline("shop")).version > version


async def test_at_most_so_many_portions_are_taken(world: _World) -> None:
    for _ in range(4):
        await world.run()
    world.clock.advance(2 * HOUR)
    assert await retain(world.session, world.project, portions=2) == 2
    assert world.catalog.asked == 2
    assert await world.runs() == [4, 3]


async def test_files_go_of_holders_that_nobody_knows_and_of_runs_too_old(world: _World) -> None:
    folder = world.project.state_dir
    for holder in ("cli-dead", "cli-known"):
        HolderLock(folder, Holder(holder, "host", 2)).close()
    living = HolderLock(folder, Holder("cli-living", "host", 2))
    await world.claim("cli-known")
    now = world.clock.wall_us() / 1e6
    runlogs.path(folder, "shop", 1).parent.mkdir(parents=True)
    for run, age in ((1, HOUR + 1), (2, HOUR - 1)):
        runlogs.path(folder, "shop", run).touch()
        os.utime(runlogs.path(folder, "shop", run), (now - age, now - age))
    await retain(world.session, world.project)
    assert {path.name for path in (folder / "holders").iterdir()} == {
        *("daemon-1", "cli-known", "cli-living")
    }
    assert [run for run, _ in runlogs.newest_first(folder)] == [2]
    living.close()


async def test_a_disk_that_keeps_its_files_costs_no_more_than_those(world: _World) -> None:
    await world.run()
    await world.run()
    world.clock.advance(2 * HOUR)
    holders = world.project.state_dir / "holders"
    holders.rename(holders.with_name("elsewhere"))
    holders.touch()
    await retain(world.session, world.project)
    assert await world.runs() == [2]
