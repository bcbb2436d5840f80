"""A daemon's month in one process: real loop, keeper, runs, metrics and SQLite catalog.

Only the workers are played (a run costs no process here) and the two clocks: boot time is that of
an event loop that never waits, the wall clock runs ``speed`` times faster. So the daemon lives
``days / speed`` days of its own time, at 200 runs a minute of it, while schedules and retention
pass through all the days. Most runs find nothing new and fold; every so often one brings rows, one
fails, and a command line holds a lease of its own for a moment.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anyio
import apsw
import structlog

from catalog.open import open_catalog
from catalog.port import Catalog, new_operation_id
from catalog.position import encode
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    Cursor,
    CursorKind,
    ErrorClass,
    Finish,
    Outcome,
    Pause,
    Resume,
    SchemaVersion,
    StreamResult,
    Trigger,
    TriggerKind,
)
from reconciler.config import load
from reconciler.daemon import upkeep
from reconciler.daemon.loop import Loop
from reconciler.daemon.loud import Loud
from reconciler.daemon.runs import Runs
from reconciler.daemon.session import Session
from reconciler.lease.keeper import Keeper
from reconciler.lease.locks import HolderLock, new_holder
from reconciler.run import messages as m
from reconciler.run.pool import WorkerPool
from reconciler.schema.model import Field, Schema, dump, fingerprint
from reconciler.telemetry.measured import measured
from reconciler.telemetry.metrics import Metrics
from tests.soak.idle import IdleLoop, InFlight, LoopClock
from tests.soak.samples import Holds, Sample, take

DAY = 86_400.0
_RUN_SECONDS = 0.2
_SCHEMA = Schema((Field("id", "int64", nullable=False), Field("name", "text")), ("id",))


@dataclass(frozen=True, slots=True)
class Plan:
    """What month it is."""

    pipelines: int = 200
    days: float = 30.0
    speed: float = 20.0
    keep_days: float = 10.0
    news: float = 0.02
    """The share of runs that bring rows."""
    samples: int = 60
    plant: str = ""
    """A leak to be found, by its name: see ``PLANTS``."""

    def config(self, folder: Path) -> str:
        """Each pipeline is due once in a minute of the daemon's own time."""
        head = (
            f'project = "soak"\nstate_dir = "{folder}/state"\n'
            f'[retention]\nruns = "{round(self.keep_days * DAY)}s"\n'
            f'[connections.src]\nconnector = "sql"\nurl = "sqlite:///{folder}/none.db"\n'
            f'[connections.duck]\nconnector = "duckdb"\npath = "{folder}/none.duckdb"\n'
            '[defaults]\nmode = "append"\ncursor = ["id"]\n'
        )
        every = round(60 * self.speed)
        return head + "".join(
            f'[pipelines.p{n:03}]\nsource = "src"\ndestination = "duck"\n'
            f'schedule = "every {every}s"\n'
            f'[pipelines.p{n:03}.streams.orders]\ntable = "orders_{n}"\n'
            for n in range(self.pipelines)
        )


class PlayedWorker:
    """Answers a run's order as a worker does, after a while."""

    pid = 0
    alive = True

    def __init__(self, chance: random.Random, news: float) -> None:
        self._chance, self._news = chance, news
        self._order: m.RunOrder | None = None
        self._committed = False

    async def send(self, message: m.ToWorker) -> None:
        message = m.for_worker(m.frame(message)[4:])
        if isinstance(message, m.RunOrder):
            self._order, self._committed = message, False
            self._dice = self._chance.random()
        elif isinstance(message, m.Committed):
            self._committed = True

    async def receive(self) -> m.ToDaemon:
        assert self._order is not None
        await anyio.sleep(self._chance.uniform(0.2, 1.8) * _RUN_SECONDS)
        return m.for_daemon(m.frame(self._says(self._order))[4:])

    def _says(self, order: m.RunOrder) -> m.ToDaemon:
        seq = order.streams[0].seq if order.streams else 0
        if self._committed:
            result = StreamResult("orders", Outcome.SUCCEEDED, "brought rows", rows=7, bytes=700)
            return m.Done((result,), {"orders": seq + 1}, epoch=order.epoch)
        if self._dice < self._news:
            return m.AskCommit(1, (_batch(seq),), {}, order.epoch)
        if self._dice < self._news * 1.1:
            lost = StreamResult(
                "orders", Outcome.FAILED, "the source is away", ErrorClass.TRANSIENT
            )
            return m.Done((lost,), {}, epoch=order.epoch)
        nothing = StreamResult("orders", Outcome.NOTHING_NEW, "nothing new")
        return m.Done((nothing,), {}, epoch=order.epoch)

    def begin(self) -> None:
        """Nothing is printed."""

    def printed(self) -> bytes:
        return b""


def _batch(seq: int) -> Batch:
    position = encode("int", seq + 1)
    return Batch(
        "orders",
        seq,
        '{"files": ["orders/part-0.parquet"], "note": "' + "x" * 300 + '"}',
        cursor=Cursor(CursorKind.MONOTONIC, "id int64", position),
        rows=7,
        bytes=700,
        schema=SchemaVersion(1, fingerprint(_SCHEMA), dump(_SCHEMA)),
    )


class PlayedPool:
    """As many workers as are asked for."""

    idle = busy = 0

    def __init__(self, plan: Plan) -> None:
        self._chance, self._plan = random.Random(0), plan

    async def acquire(self) -> PlayedWorker:
        return PlayedWorker(self._chance, self._plan.news)

    async def release(self, worker: PlayedWorker, *, healthy: bool) -> None:
        """It is gone."""

    async def trim(self) -> None:
        """There are none."""


@dataclass(slots=True)
class Month:
    """One month under way."""

    plan: Plan
    folder: Path
    loop: IdleLoop
    holds: Holds
    tell: Callable[[Sample], None] = lambda _: None
    waits: dict[str, list[float]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    planted: list[Any] = field(default_factory=list)

    async def run(self) -> None:
        (self.folder / "config.toml").write_text(self.plan.config(self.folder))
        project = load(self.folder / "config.toml", {})
        clock = LoopClock(self.loop, self.plan.speed)
        metrics = Metrics("soak")
        async with open_catalog(project.catalog, clock=clock) as opened:
            catalog = cast(Catalog, InFlight(measured(opened, metrics), self.loop, self.waits))
            holder = new_holder("daemon")
            lock = HolderLock(project.state_dir, holder)
            keeper = Keeper(catalog, holder, lock, clock, project.daemon.lease_ttl)
            pool = cast(WorkerPool, PlayedPool(self.plan))
            runs = Runs(catalog, keeper, pool, clock, Loud(metrics), project.state_dir)
            keeper.on_lost, keeper.on_renewed = runs.lost, runs.extend
            loop = Loop(project, catalog, keeper, runs, clock, metrics)
            metrics.observe_pipelines(lambda: loop.views)
            session = Session(catalog, keeper, pool, runs, clock)
            async with anyio.create_task_group() as tasks:
                await loop.observe_all()
                for task in (keeper.keep, loop.follow, loop.watch_rivals):
                    tasks.start_soon(task)
                if self.plan.plant != "no_retention":
                    tasks.start_soon(upkeep.retain, session, loop)
                tasks.start_soon(self._visits, project.state_dir, project.catalog, clock)
                tasks.start_soon(loop.run, tasks)
                await self._watch(clock, metrics, catalog)
                tasks.cancel_scope.cancel()
            lock.close()

    async def _watch(self, clock: LoopClock, metrics: Metrics, catalog: Catalog) -> None:
        pause = self.plan.days * DAY / self.plan.speed / self.plan.samples
        for _ in range(self.plan.samples):
            await anyio.sleep(pause)
            stats = await catalog.stats()
            metrics.catalog_stats(stats)
            days = clock.passed_s() / DAY
            state = self.folder / "state"
            sample = take(days, state, stats.size_bytes, metrics.render(), self.waits, self.holds)
            self.samples.append(sample)
            self.tell(sample)
            PLANTS.get(self.plan.plant, lambda _: None)(self)

    async def _visits(self, state_dir: Path, url: str, clock: LoopClock) -> None:
        """The command line comes by: a lease of its own, and an edit."""
        waits: dict[str, list[float]] = {}
        await anyio.sleep(1.7)  # never at the moment of a sample, which would count its files
        while True:
            await anyio.sleep(upkeep.RETAIN_EVERY)
            async with open_catalog(url, clock=clock) as opened:
                catalog = cast(Catalog, InFlight(opened, self.loop, waits))
                lock = HolderLock(state_dir, holder := new_holder("cli"))
                state = await catalog.pipeline("by_hand")
                trigger = Trigger(TriggerKind.TICK, tick=clock.wall_us())
                asked = Candidate("by_hand", state.version, trigger, "asked for", ())
                op = new_operation_id()
                (claimed,) = await catalog.claim(op, holder, [asked], ttl=30.0, limits={})
                assert isinstance(claimed, Claimed)
                finish = Finish(Outcome.SUCCEEDED, "brought rows")
                await catalog.finish(new_operation_id(), claimed.lease, finish)
                for action in (Pause("by_hand"), Resume("by_hand")):
                    await catalog.edit(new_operation_id(), "somebody", "", action)
                lock.close()


def _plant_descriptors(month: Month) -> None:
    month.planted.append((month.folder / "config.toml").open())


def _plant_memory(month: Month) -> None:
    month.planted.append(bytearray(b"x") * 8_000_000)  # the suite's process has room


PLANTS: Mapping[str, Callable[[Month], None]] = {
    "no_retention": lambda _: None,
    "descriptors": _plant_descriptors,
    "memory": _plant_memory,
}
"""Leaks that the judgement has to find."""


@contextmanager
def _hooked(holds: Holds) -> Iterator[None]:
    apsw.connection_hooks.append(holds.watch)
    try:
        yield
    finally:
        apsw.connection_hooks.remove(holds.watch)


def play(plan: Plan, folder: Path, tell: Callable[[Sample], None] = lambda _: None) -> list[Sample]:
    """Live through the month; what was seen."""
    loop, holds = IdleLoop(), Holds()
    month = Month(plan, folder, loop, holds, tell)
    options = {"loop_factory": lambda: loop}
    run: Callable[[], Awaitable[None]] = month.run
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        with _hooked(holds), suppress(KeyboardInterrupt):
            anyio.run(run, backend_options=options)
    finally:
        structlog.configure(**before)
        for each in month.planted:
            if hasattr(each, "close"):
                each.close()
    return month.samples
