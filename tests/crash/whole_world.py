"""A catalog, a lake and the code of whole runs in one process, under one power switch.

The catalog is the real SQLite backend over a disk that loses what was not synced, the lake the real
Parquet destination over another such disk; what is between them is the daemon's and the worker's
own code: ``Keeper``, ``Conduct``, the worker's ``_run``, ``conclude``. The worker is a thread in
place of a process. Every write, sync, rename or removal on either disk is a step; at one of them
the power fails: both disks keep what a machine may find at the next boot, and every call after it
fails.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest import mock

import anyio

from catalog.clock import ManualClock
from catalog.errors import CatalogError
from catalog.port import Catalog, new_operation_id
from catalog.records import (
    Candidate,
    Claimed,
    Holder,
    Outcome,
    Refresh,
    Retention,
    Run,
    Trigger,
    TriggerKind,
)
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.database import Tuning
from reconciler.config.desired import Connection, Mode, Pipeline, Project, StreamSettings
from reconciler.connectors.destinations.parquet import ParquetDestination
from reconciler.connectors.ports import Destination, Source
from reconciler.daemon.runs import conclude
from reconciler.lease.keeper import Keeper
from reconciler.lease.locks import HolderLock
from reconciler.run import messages as m
from reconciler.run import stream
from reconciler.run.conduct import Conduct
from reconciler.run.connections import Connections
from reconciler.run.link import Link
from reconciler.run.pool import Worker, WorkerPool
from reconciler.run.worker import _run
from tests import power_loss
from tests.crash import sqlite_disk
from tests.crash.whole_books import LAKE, Books, Shelf, marker_in

LIMIT = 1 << 30
TTL = 30.0
CUTS = 12
"""Losses of power in one life."""
PIPELINE = Pipeline(
    "shop",
    "shelf",
    "lake",
    defaults=StreamSettings(mode=Mode.APPEND),
    streams={
        "orders": StreamSettings(mode=Mode.APPEND, cursor=("id",), partition_by=("kind",)),
        "country": StreamSettings(mode=Mode.REPLACE),
    },
)
PROJECT = Project(
    "story",
    Path("/nowhere"),
    "sqlite:///nowhere",
    connections={
        "shelf": Connection("shelf", "shelf"),
        "lake": Connection("lake", "parquet"),
    },
    pipelines={"shop": PIPELINE},
)


class PowerCut(BaseException):
    """The power failed. Nothing on the way out may catch it and carry on."""


class Power:
    """One switch for both disks. ``left``: steps until it is thrown; None: it is not."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.off = False
        self.left: int | None = None
        self.steps = 0
        self.on_cut: Callable[[], None] = lambda: None

    def step(self) -> bool:
        """One thing is about to happen on a disk; False: not any more."""
        with self.lock:
            if self.off:
                return False
            self.steps += 1
            if self.left is not None:
                self.left -= 1
                if self.left <= 0:
                    self.off = True
                    self.on_cut()
            return not self.off

    def check(self) -> None:
        """Raise ``PowerCut`` once it is off."""
        if self.off:
            raise PowerCut


class Line(Link):
    """The worker's end of the line to the daemon, with a queue for a socket."""

    def __init__(self, power: Power, tell: Callable[[m.ToDaemon], None]) -> None:
        super().__init__(cast(Any, self))
        self._power, self._tell = power, tell

    def sendall(self, data: bytes) -> None:
        """As a socket's."""
        self._power.check()
        self._tell(m.for_daemon(data[4:]))

    def hear(self, message: m.ToWorker) -> None:
        """What the daemon says."""
        self._take(m.for_worker(m.frame(message)[4:]))

    def hang_up(self) -> None:
        """Nobody answers any more."""
        for waiting in self._waiting.values():
            waiting.put(cast(m.ToWorker, None))

    def _ask(self, build: Callable[[int], m.ToDaemon]) -> m.ToWorker:
        answer = super()._ask(build)
        if cast(Any, answer) is None:
            raise PowerCut
        return answer

    def check_lease(self) -> None:
        self._power.check()


class InThread:
    """What ``Conduct`` needs of a worker and of the pool that it comes from."""

    def __init__(self, power: Power, connections: Connections) -> None:
        self.power, self._connections = power, connections
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[m.ToDaemon | BaseException] = asyncio.Queue()
        self._line = Line(power, self._tell)
        self._thread = threading.Thread()
        self.alive = True

    async def acquire(self) -> Worker:
        return cast(Worker, self)

    async def release(self, worker: Worker, *, healthy: bool) -> None:
        self._line.hang_up()
        self._thread.join()

    def _tell(self, message: m.ToDaemon | BaseException) -> None:
        self._loop.call_soon_threadsafe(self._heard.put_nowait, message)

    async def send(self, message: m.ToWorker) -> None:
        self._line.hear(message)
        if isinstance(message, m.RunOrder):
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    async def receive(self) -> m.ToDaemon:
        message = await self._heard.get()
        if isinstance(message, BaseException):
            raise message
        return message

    def _work(self) -> None:
        try:
            order = cast(m.RunOrder, self._line.orders.get())
            self._tell(_run(order, self._line, self._connections))
        except BaseException as error:
            self._tell(error)

    def printed(self) -> bytes:
        return b""

    def kill(self) -> None: ...


class Witness:
    """The catalog, whose acknowledgements go into the books. Once the power is off nothing that
    it says is heard any more.
    """

    def __init__(self, catalog: Catalog, power: Power, books: Books) -> None:
        self._catalog, self._power, self._books = catalog, power, books

    @property
    def id(self) -> str:
        return self._catalog.id

    def __getattr__(self, verb: str) -> Any:
        async def ask(*args: Any, **more: Any) -> Any:
            self._books.asked(verb, args)
            try:
                answer = await getattr(self._catalog, verb)(*args, **more)
            except CatalogError:
                self._power.check()
                raise
            self._power.check()
            self._books.acknowledged(verb, args, answer)
            return answer

        return ask


class Lanes(Connections):
    """The connections of a worker that has one source and one lake."""

    def __init__(self, shelf: Shelf, lake: Destination) -> None:
        super().__init__()
        self._shelf, self._lake = shelf, lake

    def source(self, order: m.ConnectionOrder) -> Source:
        return self._shelf

    def destination(self, order: m.ConnectionOrder) -> Destination:
        return self._lake

    def forget(self, order: m.ConnectionOrder) -> None: ...


class NoLocks:
    """After a loss of power every other holder is of another boot; after a stop it is dead."""

    def __init__(self) -> None:
        self.gone: set[str] = set()

    def dead(self, holders: Any) -> set[str]:
        return self.gone


Forgets = Callable[[str, Path], bool]


class World:
    """The machine, through many boots. ``synchronous`` and ``forgets`` take syncs out."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        synchronous: str = "FULL",
        forgets: Forgets = lambda kind, path: False,
    ) -> None:
        self.chance = random.Random(seed)
        self.power = Power()
        self.books = Books()
        self.shelf = Shelf(self.chance)
        self.cuts = 0
        self._folder, self._boots, self._forgets = folder, 0, forgets
        self._clock, self._locks = ManualClock(), NoLocks()
        self._store = sqlite_disk.LossyDisk()
        self._store.lock = self.power.lock
        self._store.on_event = self._on_event
        self._tuning = Tuning(
            synchronous=synchronous,
            vfs=self._store.name,
            checkpoint_pages=self.chance.choice((20, 100)),
            truncate_bytes=self.chance.choice((100_000, 400_000)),
        )
        self.lake = self._lake_of(power_loss.Node({"volume": power_loss.Node({})}))
        self.power.on_cut = self._cut
        (folder / "0").mkdir(parents=True)

    def _lake_of(self, root: power_loss.Node) -> power_loss.LossyDisk:
        return power_loss.LossyDisk(root, self._on_step, self._forgets)

    # -- the power --------------------------------------------------------------------------------

    def _on_event(self) -> None:
        if not self.power.step():
            raise sqlite_disk.struck("xWrite", sqlite_disk.Fault.EIO)

    def _on_step(self, disk: power_loss.LossyDisk) -> None:
        if not self.power.step():
            raise PowerCut

    def _cut(self) -> None:
        self.cuts += 1
        folder = self._folder / str(self._boots + 1)
        folder.mkdir()
        self._store.image(folder, self.chance)
        self._after = self.lake.after_loss(self.chance)

    # -- a life -----------------------------------------------------------------------------------

    async def live(self, cuts: int, between: int) -> None:
        """Work through so many losses of power, about ``between`` steps apart, and then in peace;
        what was promised is looked at after each of them. Raises ``AssertionError``.
        """
        while self.cuts < cuts:
            self.power.left = 1 + int(self.chance.expovariate(1 / between))
            await self._boot(self._work)
        self.power.left = None
        await self._boot(self._catch_up)
        self._store.unregister()

    async def _boot(self, work: Callable[[Session], Any]) -> None:
        path = self._folder / str(self._boots) / "catalog.db"
        catalog: SqliteCatalog | None = None
        try:
            try:
                catalog = await SqliteCatalog.open(path, self._clock, LIMIT, self._tuning)
            except CatalogError:
                self.power.check()
                raise
            await work(Session(self, catalog))
        except PowerCut:
            pass
        finally:
            if catalog is not None:
                await catalog.aclose()
        if self.power.off:
            self._store.files.clear()
            self._store.ghosts.clear()
            shutil.rmtree(path.parent)
            self._boots += 1
            self._clock.reboot(f"boot {self._boots}")
            self.lake = self._lake_of(self._after.root)
            self.power.off = False

    async def _work(self, session: Session) -> None:
        await session.look()
        while True:
            self.shelf.grow()
            await session.run()
            match self.chance.randrange(8):
                case 0:
                    await session.refresh()
                case 1 | 2:
                    await session.retain()
                case 3:
                    return  # stopped in peace, and started again

    async def _catch_up(self, session: Session) -> None:
        await session.look()
        await session.run()
        assert (await session.run()).outcome is Outcome.SUCCEEDED  # ``country`` is always read
        await session.look()
        self.books.check_rows(self.lake, self.shelf)


async def one_run(
    catalog: Catalog, keeper: Keeper, project: Project, worker: InThread
) -> tuple[Run, m.Done]:
    """Claim ``shop`` and carry one run of it out, as the daemon does."""
    clock = cast(ManualClock, keeper.clock)
    clock.advance(10)
    state = await catalog.pipeline("shop")
    trigger = Trigger(TriggerKind.TICK, tick=clock.wall_us())
    candidate = Candidate("shop", state.version, trigger, "due", ("shelf", "lake"))
    (answer,) = await keeper.claim([candidate], {}, ())
    assert isinstance(answer, Claimed), answer
    conduct = Conduct(answer, project, catalog, clock)
    order = await conduct.order(lambda connection: {}, keeper.deadline_ns)
    ended = await conduct.run(cast(WorkerPool, worker), order)
    worker.power.check()
    finish = conclude(answer, conduct.pipeline, ended, clock.wall_us())
    run = await keeper.finish(answer.lease, finish)
    assert run is not None
    return run, ended.done


class Session:
    """A daemon's time between two boots."""

    def __init__(self, world: World, catalog: SqliteCatalog) -> None:
        self._world = world
        self._catalog = cast(Catalog, Witness(catalog, world.power, world.books))
        world.books.holders += 1
        self._holder = Holder(f"daemon-{world.books.holders}", "host", 1)
        clock, locks = world._clock, cast(HolderLock, world._locks)
        self._keeper = Keeper(self._catalog, self._holder, locks, clock, TTL)
        self._lanes = Lanes(world.shelf, ParquetDestination(LAKE, world.lake))

    async def look(self) -> None:
        """Was anything lost that had been acknowledged? And is what was not whole or absent?"""
        world = self._world
        await world.books.check(self._catalog, lambda stream: marker_in(world.lake, stream))

    async def run(self) -> Run:
        """One whole run, which must end well."""
        world = self._world
        worker = InThread(world.power, self._lanes)
        run, done = await one_run(self._catalog, self._keeper, PROJECT, worker)
        world.books.published(done.published)
        assert run.outcome in (Outcome.SUCCEEDED, Outcome.NOTHING_NEW), run
        world._locks.gone.add(self._holder.id)
        return run

    async def refresh(self) -> None:
        wish = Refresh("shop", "orders")
        await self._catalog.edit(new_operation_id(), "ann", "because", wish)

    async def retain(self) -> None:
        before = self._world._clock.wall_us() - 60 * 10**6
        await self._catalog.retain(new_operation_id(), Retention(before, before, 50))


@dataclass
class Report:
    """What became of some lives."""

    cuts: int = 0
    steps: int = 0
    lost: list[str] = field(default_factory=list)


def live(
    folder: Path, seeds: Iterable[int], *, enough: int = 1_000, between: int = 200, **more: Any
) -> Report:
    """Lives of ``CUTS`` losses of power each, until so many losses of data were found.

    A seed decides what happens and where the power fails, but not how threads interleave.
    """
    report = Report()
    # A run is to have several commits, though its rows are few.
    with mock.patch.object(stream, "SEAL_BYTES", 1), sqlite_disk.passed_over(PowerCut):
        for seed in seeds:
            world = World(folder / str(seed), seed, **more)
            try:
                anyio.run(world.live, CUTS, between)
            except Exception as loss:
                report.lost.append(f"seed {seed}, cut {world.cuts}: {loss!r}")
            report.cuts += world.cuts
            report.steps += world.power.steps
            shutil.rmtree(folder / str(seed))
            if len(report.lost) >= enough:
                break
    return report
