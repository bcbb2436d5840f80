"""The loop, with a catalog that others use too and workers that end when a test says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from catalog.errors import Unavailable
from catalog.port import new_operation_id
from catalog.records import (
    Batch,
    CancelRun,
    Finish,
    Outcome,
    Pause,
    RequestRun,
    Resume,
    Run,
    RunQuery,
)
from reconciler.config.desired import Cron, Project
from reconciler.daemon import loop as loop_module
from reconciler.telemetry.events import Event
from tests.loop_kit import World, pipeline, project, until
from tests.patience import PATIENCE

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Project], World]:
    """Whose loop comes round for a reason, and not because a second went by."""
    monkeypatch.setattr(loop_module, "_AWAKE_SECONDS", 2 * PATIENCE)
    return lambda project: World(project, tmp_path)


@pytest.fixture
def often(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes round soon, as where a test moves the clock."""
    monkeypatch.setattr(loop_module, "_AWAKE_SECONDS", 0.02)


Make = Callable[[Project], World]


async def test_what_a_reload_removed_while_it_waited_for_room_is_not_run(world: Make) -> None:
    here = world(project(pipeline("a"), pipeline("b"), max_runs=1))
    async with here.served():
        first, second = await here.one_of("a", "b")
        await here.loop.adopt(project(pipeline(first, schedule=None), max_runs=1))
        assert [view.name for view in here.loop.views] == [first]
        here.metrics.forget.assert_called_once_with(second)
        here.crew.end(first)
        await here.ended(first)
        await here.shown(first, "neither `schedule`")
        assert await here.other.runs(RunQuery(second)) == ()


async def test_a_limit_holds_from_the_reload_that_brought_it(world: Make) -> None:
    pipelines = pipeline("a"), pipeline("b")
    here = world(project(*(replace(p, schedule=None) for p in pipelines)))
    async with here.served():
        await here.loop.adopt(project(*pipelines, on_shelf=1))
        first, second = await here.one_of("a", "b")
        here.crew.end(first)
        await here.crew.begun(second)
    assert here.crew.most == 1


async def test_room_that_a_run_leaves_is_taken_before_its_end_is_written(world: Make) -> None:
    here = world(project(pipeline("a"), pipeline("b"), max_runs=1))
    finish, written = here.ours.finish, anyio.Event()

    async def late(*said: Any) -> Run:
        await written.wait()
        return await finish(*said)

    here.ours.finish = late  # type: ignore[assignment,method-assign]
    async with here.served():
        first, second = await here.one_of("a", "b")
        await anyio.wait_all_tasks_blocked()
        here.crew.end(first)
        await here.crew.begun(second)
        written.set()


@pytest.mark.usefixtures("often")
async def test_a_schedule_without_catch_up_leaves_out_what_was_due_before_it_was_there(
    world: Make,
) -> None:
    """Before a reload brought it, and while it was paused."""
    daily = {"schedule": Cron("0 0 * * *"), "catch_up": False}
    here = world(project())
    here.clock.advance(86_400 - here.clock.wall_us() // 10**6 % 86_400 - 600)
    async with here.served():
        here.clock.advance(1800)  # midnight was 20 minutes ago
        await here.loop.adopt(project(pipeline("new", **daily), pipeline("old", **daily)))
        await here.edit(Pause("old"))
        await here.shown("old", "paused")
        assert not here.crew.under_way
        here.clock.advance(86_400)
        here.loop.look(("old",))
        await here.crew.begun("new")
        await here.edit(Resume("old"))
        await until(lambda: not here.loop.views.reason("old"))
        await anyio.wait_all_tasks_blocked()
        assert here.crew.under_way.keys() == {"new"}
        here.clock.advance(86_400)
        await here.crew.begun("new", "old")


@pytest.mark.usefixtures("often")
async def test_the_clock_may_be_moved_under_a_loop_that_sleeps(world: Make) -> None:
    here = world(project(pipeline("a", schedule=Cron("0 0 * * *"))))
    async with here.served():
        await anyio.wait_all_tasks_blocked()
        assert not here.crew.under_way
        here.clock.jump_wall(86_400)
        await here.crew.begun("a")


async def test_a_cancel_reaches_its_run_though_the_pipeline_left_the_config(world: Make) -> None:
    here = world(project(pipeline("a")))
    theirs = await here.claim("a")
    await here.edit(CancelRun("a"))
    done = Finish(Outcome.INTERRUPTED, "told to stop")
    await here.other.finish(new_operation_id(), theirs.lease, done)
    async with here.served():
        await here.crew.begun("a")
        await here.loop.adopt(project())
        here.loop.look(("a",))
        await anyio.wait_all_tasks_blocked()
        assert here.crew.under_way.keys() == {"a"}, "it was another run that was to end"
        await here.edit(CancelRun("a"))
        assert (await here.ended("a")).outcome is Outcome.CANCELLED


async def test_who_comes_after_a_pipeline_of_another_daemon_runs_when_that_brought_something(
    world: Make,
) -> None:
    down = pipeline("down", schedule=None, after=("up",))
    here = world(project(pipeline("up", schedule=None), down))
    async with here.served():
        await here.shown("down", "up")
        theirs = await here.claim("up")
        batch = Batch("orders", 0, "r", rows=3)
        await here.other.commit(new_operation_id(), theirs.lease, [batch], {"orders": 1})
        done = Finish(Outcome.SUCCEEDED, "done", published=(("orders", 1),))
        await here.other.finish(new_operation_id(), theirs.lease, done)
        await here.crew.begun("down")


async def test_a_dead_holders_pipeline_is_taken_over_at_once(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_RIVAL_SECONDS", 0.01)
    here = world(project(pipeline("a")))
    theirs = await here.claim("a")
    async with here.served():
        await here.shown("a", "conducted by daemon-2")
        here.lock.ended.add("daemon-2")
        await here.crew.begun("a")
        assert here.runs.conducting["a"].lease.epoch > theirs.lease.epoch


async def test_holders_whose_runs_are_over_are_looked_after_no_more(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project whose runs the command line starts meets another holder with each."""
    monkeypatch.setattr(loop_module, "_RIVAL_SECONDS", 0.01)
    here = world(project(pipeline("a", schedule=None)))
    async with here.served():
        for holder in ("cli-2", "cli-3"):
            theirs = await here.claim("a", holder)
            await here.looks_after(holder)
            done = Finish(Outcome.SUCCEEDED, "done")
            await here.other.finish(new_operation_id(), theirs.lease, done)
        await here.looks_after()


@pytest.mark.usefixtures("often")
async def test_a_new_name_waits_for_the_run_by_the_old_one(world: Make) -> None:
    here = world(project(pipeline("new", renamed_from="old")))
    theirs = await here.claim("old")
    async with here.served():
        await anyio.wait_all_tasks_blocked()
        assert not here.crew.under_way
        done = Finish(Outcome.SUCCEEDED, "done")
        await here.other.finish(new_operation_id(), theirs.lease, done)
        here.clock.advance(3600)
        await here.crew.begun("new")
        assert here.runs.conducting["new"].claimed.pipeline.origin == "old"


async def test_a_name_that_cannot_be_taken_over_is_told_once_and_its_pipeline_runs(
    world: Make,
) -> None:
    """Once for each config."""
    pipelines = project(pipeline("new", renamed_from="old"))
    here = world(pipelines)
    for name in ("old", "new"):
        theirs = await here.claim(name)
        batch = Batch("orders", 0, "r")
        await here.other.commit(new_operation_id(), theirs.lease, [batch], {"orders": 1})
        done = Finish(Outcome.SUCCEEDED, "done")
        await here.other.finish(new_operation_id(), theirs.lease, done)
    with capture_logs() as said:
        async with here.served():
            here.clock.advance(3600)
            await here.crew.begun("new")
            for _ in range(2):
                assert [line["event"] for line in said] == [Event.RENAME_REFUSED]
                said.clear()
                await here.loop.adopt(pipelines)
                await anyio.wait_all_tasks_blocked()


async def test_trouble_is_said_once_until_the_catalog_does_as_asked_again(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing else would ask it for long."""
    monkeypatch.setattr(loop_module, "_TROUBLE_SECONDS", 0.01)
    here = world(project(pipeline("a", schedule=None)))
    claim, asked = here.ours.claim, anyio.Event()

    async def away(*_: Any, **__: Any) -> Sequence[Any]:
        asked.set()
        raise Unavailable("away")

    with capture_logs() as said:
        async with here.served():
            here.ours.claim = away  # type: ignore[assignment,method-assign]
            here.loop.trouble(Unavailable("away"))
            await asked.wait()
            here.ours.claim = claim  # type: ignore[method-assign]
            await until(lambda: not here.loop.last_trouble)
    assert [line["event"] for line in said] == [Event.CATALOG_UNAVAILABLE, Event.CATALOG_RECOVERED]


@pytest.mark.usefixtures("often")
async def test_what_could_not_be_claimed_for_trouble_is_claimed_when_it_is_over(
    world: Make,
) -> None:
    here = world(project(pipeline("a", schedule=None)))
    claim, asked = here.ours.claim, anyio.Event()

    async def away(*_: Any, **__: Any) -> Sequence[Any]:
        asked.set()
        here.ours.claim = claim  # type: ignore[method-assign]
        raise Unavailable("away")

    async with here.served():
        await anyio.wait_all_tasks_blocked()
        here.ours.claim = away  # type: ignore[assignment,method-assign]
        await here.edit(RequestRun("a", "r"))
        await asked.wait()
        await anyio.wait_all_tasks_blocked()
        here.clock.advance(1)
        await here.crew.begun("a")
        assert not here.loop.last_trouble


async def test_a_config_that_is_edited_while_the_catalog_is_away_is_served_when_it_is_back(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TROUBLE_SECONDS", 0.01)
    here = world(project())
    changed, left = here.ours.changed, [2]

    async def away(*asked: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise Unavailable("away")
        return await changed(*asked)

    async with here.served():
        await anyio.wait_all_tasks_blocked()
        here.ours.changed = away  # type: ignore[assignment,method-assign]
        await here.loop.adopt(project(pipeline("a")))
        await here.crew.begun("a")


async def test_what_a_reload_removed_while_it_was_claimed_in_vain_is_not_claimed_again(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_TROUBLE_SECONDS", 0.01)
    here = world(project(pipeline("a")))
    claim = here.ours.claim

    async def away(*_: Any, **__: Any) -> Sequence[Any]:
        here.ours.claim = claim  # type: ignore[method-assign]
        await here.loop.adopt(project(pipeline("b")))
        raise Unavailable("away")

    here.ours.claim = away  # type: ignore[assignment,method-assign]
    async with here.served():
        await here.crew.begun("b")
        await anyio.wait_all_tasks_blocked()
        assert await here.other.runs(RunQuery("a")) == ()


async def test_a_run_that_is_claimed_while_the_daemon_is_told_to_stop_is_not_carried_out(
    world: Make,
) -> None:
    here = world(project(pipeline("a")))
    claim = here.ours.claim

    async def late(*asked: Any, **more: Any) -> Any:
        here.loop.drain()
        return await claim(*asked, **more)

    here.ours.claim = late  # type: ignore[method-assign]
    async with here.served():
        await until(lambda: here.loop.draining and not here.runs.conducting)
        (run,) = await here.other.runs(RunQuery("a"))
        assert run.outcome is Outcome.INTERRUPTED
