"""A daemon of the simulated world: the real loop, keeper, runs, conduct, wired as ``serve`` does.

What ``serve`` adds (signals, the web, the config's files) is left out; starting, reloading and the
stop in two steps are told again here, in the same order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, cast

import anyio

from catalog.port import Catalog
from catalog.records import Holder, Outcome
from reconciler.config.desired import Project
from reconciler.daemon import upkeep
from reconciler.daemon.loop import Loop
from reconciler.daemon.runs import Runs
from reconciler.daemon.session import Session
from reconciler.daemon.teller import Quiet
from reconciler.lease.keeper import Keeper
from reconciler.lease.locks import HolderLock
from reconciler.run.pool import WorkerPool
from reconciler.telemetry.metrics import Metrics
from tests.simulation.catalog import Around, SimCatalog
from tests.simulation.vtime import Machine, Node, World
from tests.simulation.workers import Places, SimPool

NOWHERE = Path(tempfile.gettempdir()) / "reconciler-simulation"
"""Only what goes wrong prints anything."""


class NoMetrics:
    """Takes what the loop tells."""

    def forget(self, pipeline: str) -> None:
        """Nothing is kept."""

    def ticked(self, seconds: float) -> None:
        """Nothing is kept."""


class SimLock:
    """As ``HolderLock``: who can take the lock of a holder knows that all its processes ended."""

    fd = -1

    def __init__(self, is_dead: Callable[[str], bool]) -> None:
        self._is_dead = is_dead

    def dead(self, holders: Collection[str]) -> set[str]:
        return {holder for holder in holders if self._is_dead(holder)}

    def forget(self, known: Collection[str]) -> None:
        """There are no files."""


class SimDaemon:
    """One daemon process."""

    def __init__(
        self,
        world: World,
        machine: Machine,
        name: str,
        around: Around,
        places: Places,
        is_dead: Callable[[str], bool],
    ) -> None:
        self.world, self.name = world, name
        self.node = Node(world, name)
        self.clock = machine.clock()
        self.holder = Holder(f"daemon-{name}", "host", world.count())
        self.catalog = cast(Catalog, SimCatalog(self.node, self.clock, around))
        self.pool = SimPool(self.node, machine, places)
        self._lock = cast(HolderLock, SimLock(is_dead))
        self.loop: Loop | None = None
        self.runs: Runs | None = None
        self.ready = False
        self.retains = True
        self._stop = self.node.loop.create_future()
        self.ended: BaseException | str | None = None
        """Why the process ended by itself; None: it has not."""
        self.on_end: Callable[[], None] = lambda: None

    def start(self, project: Callable[[], Project]) -> None:
        """Begin; ``ended`` is set when it ends by itself. ``project``: the config as it is then."""
        self.node.spawn(self._main(project), self.name)

    def stop(self) -> None:
        """SIGTERM."""
        if not self._stop.done():
            self._stop.set_result(None)

    async def _main(self, project: Callable[[], Project]) -> None:
        try:
            await self._run(project(), project)
            self._ends("told to stop")
        except BaseException as error:
            if not self.node.alive:
                raise
            self._ends(error)

    async def _run(self, project: Project, now: Callable[[], Project]) -> None:
        clock, catalog = self.clock, self.catalog
        keeper = Keeper(catalog, self.holder, self._lock, clock, project.daemon.lease_ttl)
        pool = cast(WorkerPool, self.pool)
        self.runs = runs = Runs(catalog, keeper, pool, clock, Quiet(), NOWHERE)
        keeper.on_lost, keeper.on_renewed = runs.lost, runs.extend
        metrics = cast(Metrics, NoMetrics())
        self.loop = loop = Loop(project, catalog, keeper, runs, clock, metrics)
        keeper.on_trouble = loop.trouble
        session = Session(catalog, keeper, pool, runs, clock)
        async with anyio.create_task_group() as background:
            await loop.observe_all()
            eternal: tuple[Callable[[], Awaitable[None]], ...] = (
                keeper.keep,
                loop.follow,
                loop.mend,
                loop.watch_rivals,
                lambda: upkeep.retain(session, loop),
            )
            for task in eternal if self.retains else eternal[:-1]:
                background.start_soon(_guard, task)
            self.ready = True
            if now() is not project:
                self.reload(now())
            await self._serve(loop, runs)
            background.cancel_scope.cancel()

    async def _serve(self, loop: Loop, runs: Runs) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(loop.run, tasks)
            await self._stop
            loop.drain()
            with anyio.move_on_after(loop.project.daemon.grace):
                await runs.wait_idle()
            for name in tuple(runs.conducting):
                runs.stop(name, Outcome.INTERRUPTED, "the daemon was told to stop")

    def reload(self, project: Project) -> None:
        """A new config was found."""
        if self.node.alive and self.loop is not None and self.ready:
            self.node.spawn(self._adopt(self.loop, project))

    async def _adopt(self, loop: Loop, project: Project) -> None:
        try:
            await loop.adopt(project)
        except Exception as error:
            self._ends(error)

    def _ends(self, why: BaseException | str) -> None:
        self.ended = why
        self.on_end()


async def _guard(task: Callable[[], Awaitable[None]]) -> None:
    await task()
    raise RuntimeError("a task ended that must not")


def words(error: Any) -> str:
    """An error and those in it, in a line."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(words(inner) for inner in error.exceptions)
    return f"{type(error).__name__}: {error}"
