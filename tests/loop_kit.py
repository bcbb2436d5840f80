"""One daemon's loop and runs, with a catalog that others use too and workers that end when told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import anyio
import msgspec

from catalog.clock import ManualClock
from catalog.memory import MemoryCatalog, MemoryStore
from catalog.port import new_operation_id
from catalog.records import (
    Candidate,
    Claimed,
    Holder,
    Outcome,
    Run,
    RunQuery,
    Trigger,
    TriggerKind,
)
from reconciler.config.desired import Daemon, Every, Pipeline, Project
from reconciler.daemon.loop import Loop
from reconciler.daemon.runs import Runs
from reconciler.daemon.teller import Quiet
from reconciler.lease.keeper import Keeper
from reconciler.lease.locks import HolderLock
from reconciler.run import messages as m
from reconciler.run.pool import WorkerPool
from reconciler.telemetry.metrics import Metrics
from tests.crash.whole_world import PROJECT
from tests.patience import PATIENCE

HOURLY = Every(3600)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what the loop does sets no event
        await anyio.sleep(0.001)


class Crew:
    """The pool and its workers. A run goes on until it is told to end."""

    def __init__(self) -> None:
        self.under_way: dict[str, anyio.Event] = {}
        self.most = 0
        self.says = m.Done((), {})
        """Each worker, at its end."""
        self.prints = b""

    async def acquire(self) -> Any:
        return _Worker(self)

    async def release(self, worker: Any, *, healthy: bool) -> None:
        del worker, healthy

    async def begun(self, *names: str) -> None:
        """Wait until exactly these run."""
        await until(lambda: self.under_way.keys() == set(names))

    def end(self, name: str) -> None:
        self.under_way[name].set()


class _Worker:
    alive = True

    def __init__(self, crew: Crew) -> None:
        self._crew, self._over = crew, anyio.Event()
        self._name, self._epoch = "", 0

    async def send(self, message: m.ToWorker) -> None:
        if isinstance(message, m.RunOrder):
            self._name, self._epoch = message.pipeline, message.epoch
            self._crew.under_way[self._name] = self._over
            self._crew.most = max(self._crew.most, len(self._crew.under_way))
        elif isinstance(message, m.Cancel):
            self._over.set()

    async def receive(self) -> m.ToDaemon:
        await self._over.wait()
        self._crew.under_way.pop(self._name, None)
        return msgspec.structs.replace(self._crew.says, epoch=self._epoch)

    def printed(self) -> bytes:
        return self._crew.prints

    def kill(self) -> None:
        self._over.set()


class Lock:
    """Of holders; who is in ``ended`` is known to be dead."""

    def __init__(self) -> None:
        self.ended: set[str] = set()
        self.asked_about: set[str] | None = None
        """The last time; None: never."""

    def dead(self, holders: Collection[str]) -> set[str]:
        self.asked_about = set(holders)
        return self.ended & set(holders)


class World:
    """One daemon's loop, and another process at the same catalog."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.clock, store = ManualClock(), MemoryStore()
        self.ours, self.other = (MemoryCatalog(self.clock, store) for _ in range(2))
        self.crew, self.lock = Crew(), Lock()
        lock, pool = cast(HolderLock, self.lock), cast(WorkerPool, self.crew)
        keeper = Keeper(self.ours, Holder("daemon-1", "host", 1), lock, self.clock, 30)
        self.runs = Runs(self.ours, keeper, pool, self.clock, Quiet(), folder)
        self.metrics = Mock(spec=Metrics)
        self.loop = Loop(project, self.ours, keeper, self.runs, self.clock, self.metrics)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        with anyio.fail_after(PATIENCE):
            await self.loop.observe_all()
            async with anyio.create_task_group() as background:
                for task in (self.loop.follow, self.loop.mend, self.loop.watch_rivals):
                    background.start_soon(task)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self.loop.run, tasks)
                    yield
                    self.loop.drain()
                    for name in tuple(self.runs.conducting):
                        self.runs.stop(name, Outcome.INTERRUPTED, "told to stop")
                background.cancel_scope.cancel()

    async def edit(self, action: Any) -> None:
        """A person's wish, by the command line."""
        await self.other.edit(new_operation_id(), "ann", "", action)

    async def claim(self, name: str, holder: str = "daemon-2") -> Claimed:
        """As another daemon does."""
        state = await self.other.pipeline(name)
        candidate = Candidate(name, state.version, Trigger(TriggerKind.TICK, tick=1), "due")
        by = Holder(holder, "host", 2)
        (found,) = await self.other.claim(new_operation_id(), by, [candidate], ttl=30, limits={})
        assert isinstance(found, Claimed)
        return found

    async def ended(self, name: str) -> Run:
        """Our run of the pipeline, once it is over and written down."""
        await until(lambda: name not in self.runs.conducting)
        return (await self.other.runs(RunQuery(name)))[0]

    async def shown(self, name: str, words: str) -> None:
        """Wait until that is why the pipeline is where it is."""
        await until(lambda: words in self.loop.views.reason(name))

    async def looks_after(self, *holders: str) -> None:
        """Wait until exactly these are looked at, whether they died."""
        await until(lambda: self.lock.asked_about == set(holders))

    async def one_of(self, *names: str) -> tuple[str, ...]:
        """Wait until one of them runs; it first, then the others."""
        await until(lambda: bool(self.crew.under_way))
        return (*self.crew.under_way, *(name for name in names if name not in self.crew.under_way))


def pipeline(name: str, **more: Any) -> Pipeline:
    return replace(PROJECT.pipelines["shop"], **{"name": name, "schedule": HOURLY, **more})


def project(*pipelines: Pipeline, max_runs: int = 8, on_shelf: int | None = None) -> Project:
    shelf = replace(PROJECT.connections["shelf"], max_runs=on_shelf)
    return replace(
        PROJECT,
        daemon=Daemon(max_runs=max_runs),
        connections={**PROJECT.connections, "shelf": shelf},
        pipelines={p.name: p for p in pipelines},
    )
