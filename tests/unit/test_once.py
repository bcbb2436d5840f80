"""One run in this process: what it asks for, whom it makes way for, and how it is ended."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import anyio
import pytest

from catalog.errors import CatalogError, Leased, NotFound, Unavailable
from catalog.open import open_catalog
from catalog.port import Catalog, new_operation_id
from catalog.records import (
    CancelRun,
    Candidate,
    Claimed,
    Holder,
    Outcome,
    Pause,
    PipelineState,
    Rename,
    Run,
    RunQuery,
    Trigger,
    TriggerKind,
)
from reconciler.config.desired import Daemon, Project
from reconciler.daemon.once import IsPaused, run_here
from reconciler.daemon.session import Hands
from reconciler.lease.locks import HolderLock, new_holder
from reconciler.run.pool import WorkerPool
from tests.loop_kit import Crew, pipeline, project
from tests.patience import PATIENCE

pytestmark = pytest.mark.anyio


class _Warm(Crew):
    warmed = False

    async def warm(self) -> None:
        self.warmed = True


class _Here:
    """A project with two pipelines, and another process at its catalog."""

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self.folder, self.other, self.crew = folder, catalog, _Warm()
        self.project = replace(
            project(pipeline("shop"), pipeline("lake", renamed_from="pond"), on_shelf=1),
            state_dir=folder,
            catalog=f"sqlite:///{folder}/catalog.db",
        )
        self.holder = new_holder("cli")

    async def run(self, name: str = "shop", *streams: str) -> Run:
        lock = HolderLock(self.folder, self.holder)
        hands = Hands(self.holder, lock, cast(WorkerPool, self.crew))

        def load() -> Project:
            assert self.crew.warmed, "the worker gets ready while the config is read"
            return self.project

        try:
            with anyio.fail_after(PATIENCE):
                return await run_here(*(load, hands, name, streams), by="ann", on_moved=Mock())
        finally:
            lock.close()

    async def while_it_runs(self, do: Callable[[], Awaitable[object]]) -> Run:
        async def act() -> None:
            await self.crew.begun("shop")
            await do()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(act)
            return await self.run("shop", "orders")
        raise AssertionError("it ends or raises")

    async def end(self) -> None:
        self.crew.end("shop")

    async def claim(self, name: str, holder: str, *dead: str, ttl: float = 60.0) -> None:
        state = await self.other.pipeline(name)
        candidate = Candidate(
            *(name, state.version, Trigger(TriggerKind.TICK, tick=1), "due"), ("shelf",)
        )
        (found,) = await self.other.claim(
            *(new_operation_id(), Holder(holder, "host", 2), [candidate]),
            ttl=ttl,
            limits={},
            dead=dead,
        )
        assert isinstance(found, Claimed)

    async def edit(self, action: Any, why: str = "") -> None:
        await self.other.edit(new_operation_id(), "bob", why, action)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[_Here]:
    async with open_catalog(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        yield _Here(tmp_path, catalog)


async def test_it_is_asked_for_and_answered(here: _Here) -> None:
    run = await here.while_it_runs(here.end)
    assert (run.outcome, run.holder) == (Outcome.NOTHING_NEW, here.holder.id)
    assert (run.trigger.kind, run.trigger.streams) == (TriggerKind.REQUEST, ("orders",))
    assert run.connections == ("shelf", "lake")
    assert (await here.other.pipeline("shop")).request is None
    (edit,) = await here.other.edits()
    assert (edit.by, edit.action) == ("ann", "request_run")


async def test_a_paused_pipeline_is_not_run(here: _Here) -> None:
    await here.edit(Pause("shop"), "it moves tonight")
    with pytest.raises(IsPaused, match=r"shop is paused by bob: it moves tonight\.") as said:
        await here.run()
    assert not said.value.renamed
    assert (await here.other.pipeline("shop")).request is None
    await here.claim("pond", "daemon-elsewhere", ttl=0.001)
    await anyio.sleep(0.05)
    await here.edit(Rename("lake", "pond"))
    here.project = replace(here.project, pipelines={"pond": pipeline("pond")})
    with pytest.raises(IsPaused) as said:
        await here.run("pond")
    assert said.value.renamed, "there is nothing to resume"


async def test_it_makes_way_for_a_holder_that_may_live_and_its_request_stays(here: _Here) -> None:
    await here.claim("shop", "daemon-elsewhere")
    with pytest.raises(Leased, match=r"daemon-elsewhere holds its lease; the request stays"):
        await here.run("shop", "orders")
    request = (await here.other.pipeline("shop")).request
    assert request is not None
    assert request.streams == ("orders",)


async def test_it_takes_over_from_a_holder_that_died_here(here: _Here) -> None:
    HolderLock(here.folder, Holder("cli-dead", "host", 1)).close()
    await here.claim("shop", "cli-dead")
    assert (await here.while_it_runs(here.end)).outcome is Outcome.NOTHING_NEW
    outcomes = [run.outcome for run in await here.other.runs(RunQuery("shop"))]
    assert outcomes == [Outcome.NOTHING_NEW, Outcome.INTERRUPTED]


async def test_a_connections_limit_holds_for_it_too(here: _Here) -> None:
    await here.claim("another", "daemon-elsewhere")
    with pytest.raises(Leased, match="connection 'shelf' has as many runs as it allows"):
        await here.run()


async def test_a_run_of_the_old_name_is_waited_for(here: _Here) -> None:
    await here.claim("pond", "daemon-elsewhere")
    with pytest.raises(Leased, match="a run of 'pond' is under way"):
        await here.run("lake")


async def test_a_person_may_cancel_it(here: _Here) -> None:
    async def cancel() -> None:
        run = (await here.other.runs(RunQuery("shop")))[0]
        await here.edit(CancelRun("shop", run.epoch))

    run = await here.while_it_runs(cancel)
    assert (run.outcome, run.reason) == (Outcome.CANCELLED, "a person asked for it to end")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_as_cancelled_and_closed(
    here: _Here, number: signal.Signals
) -> None:
    async def signalled() -> None:
        os.kill(os.getpid(), number)

    with pytest.raises(BaseExceptionGroup) as raised:
        await here.while_it_runs(signalled)
    assert raised.group_contains(KeyboardInterrupt)
    (run,) = await here.other.runs(RunQuery("shop"))
    assert (run.outcome, number.name in run.reason) == (Outcome.CANCELLED, True)


async def test_a_run_that_another_took_over_is_not_said_to_have_ended(here: _Here) -> None:
    async def take_over() -> None:
        await here.claim("shop", "daemon-elsewhere", here.holder.id)
        here.crew.end("shop")

    with pytest.raises(BaseExceptionGroup) as raised:
        await here.while_it_runs(take_over)
    assert raised.group_contains(NotFound, match="taken over by another holder")


async def test_its_lease_is_renewed_as_long_as_it_runs(here: _Here) -> None:
    here.project = replace(here.project, daemon=Daemon(lease_ttl=3.0))

    async def look() -> None:
        first = last = (await here.other.pipeline("shop")).lease_expires_at
        while first == last:
            await anyio.sleep(0.05)
            last = (await here.other.pipeline("shop")).lease_expires_at
        await here.end()

    assert (await here.while_it_runs(look)).outcome is Outcome.NOTHING_NEW


async def test_a_catalog_that_is_away_for_a_moment_ends_no_run(
    here: _Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = anyio.Event()

    async def away(*_: object) -> PipelineState:
        looks.set()
        raise Unavailable("away")

    async def look() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(type(here.other), "pipeline", away)
            await looks.wait()
        await here.end()

    assert (await here.while_it_runs(look)).outcome is Outcome.NOTHING_NEW


async def test_it_ends_what_others_left_open(here: _Here) -> None:
    await here.claim("gone", "cli-killed", ttl=0.001)
    await here.while_it_runs(here.end)
    (left,) = await here.other.runs(RunQuery("gone"))
    assert left.outcome is Outcome.INTERRUPTED


async def test_upkeep_that_fails_is_no_failure_of_the_run(
    here: _Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> int:
        raise CatalogError("full")

    monkeypatch.setattr("reconciler.daemon.once.retain", fail)
    assert (await here.while_it_runs(here.end)).outcome is Outcome.NOTHING_NEW
