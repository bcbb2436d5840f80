"""One simulated day: a project, its sources, its daemons, and all that befalls them.

Quiet times alternate with bad ones. Which kinds of trouble a seed has, and how often, is part of
the seed. In a quiet time persons answer what waits for them; at its end everything must be settled
and every row in its place.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import anyio
import msgspec

from catalog.errors import CatalogError, Refused
from catalog.memory import MemoryStore
from catalog.port import Catalog, new_operation_id
from catalog.records import (
    Adopt,
    AnswerSchema,
    CancelRun,
    Cursor,
    EditAction,
    ErrorClass,
    Hold,
    HoldKind,
    Pause,
    Refresh,
    Release,
    RequestRun,
    Resume,
    SetCursor,
)
from reconciler.config.desired import (
    Connection,
    Cron,
    Daemon,
    Every,
    FileFormat,
    Mode,
    Pipeline,
    Project,
    RetentionSettings,
    Schedule,
    StreamSettings,
)
from reconciler.connectors.ports import ConnectorError, Destination, Source
from reconciler.plan.schedule import next_after
from reconciler.run import mismatch
from tests.replacing import replace
from tests.simulation import daemon as daemons
from tests.simulation.catalog import Around, SimCatalog, Weather
from tests.simulation.daemon import SimDaemon
from tests.simulation.destination import SimDestination, Warehouse
from tests.simulation.folder import Clerk, Folder, Inbox
from tests.simulation.history import History
from tests.simulation.restoring import copy_of, put_back
from tests.simulation.source import Database, Row, SimSource, Table
from tests.simulation.vtime import START_US, Machine, Node, World
from tests.simulation.workers import Places, SimWorker
from tests.simulation.wrong import Rule, Wrong

HOUR = 3600.0
QUIET = 0.5 * HOUR
TTL = 30.0
ANSWERED_WITHIN = 400.0
"""Seconds within which a tick is answered once nothing fails: runs may wait for a connection."""

_A_MOMENT, _A_WHILE = 1.0, 5.0
"""Seconds in which polling alone may be put off, while a write or a run is under way."""

_TROUBLES = (
    *("daemon_crash", "daemon_stop", "daemon_pause", "suspend", "reboot"),
    *("worker_crash", "worker_freeze", "worker_start", "connector_fails"),
    *("slow_catalog", "lost_answers", "catalog_restored"),
    *("catalog_away", "catalog_crash", "wall_jump", "skew", "reload", "schema", "persons"),
    *("destination_busy", "destination_emptied", "destination_restored", "source_down"),
)


_PACES = (1.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0)
"""How many times rarer runs, troubles and writes are than in a crowded world. What befalls
a run is the same; many worlds with few runs see more of what can be drawn than few with many."""

_WITH_FILES = 0.25
"""Share of the worlds in which a pipeline reads files."""

_JSON_LINES = FileFormat(type="jsonl")

_EDITS = ("pause", "resume", "run", "run", "cancel", "refresh", "rewind", "release")


@dataclass(slots=True)
class Trouble:
    """What may happen in bad times."""

    kinds: tuple[str, ...]
    every: float
    """Mean seconds between two events."""
    worker_crash: float = 0.0
    worker_freeze: float = 0.0
    worker_start: float = 0.0
    connector_fails: float = 0.0
    calm: bool = True


@dataclass(slots=True)
class Keys:
    """Numbers for rows."""

    v: int = 0
    id: int = 0
    transaction: int = 0
    backups: list[tuple[Any, Any]] = field(default_factory=list)
    copies: list[MemoryStore] = field(default_factory=list)
    lost: tuple[Any, Any] | None = None
    """The destination as it was when a catalog was lost."""


class Story(Places):
    """A world from a seed; ``run`` lets its day pass and raises ``Wrong`` for what must not be."""

    def __init__(self, seed: int, days: float = 1.0) -> None:
        self.world = World(seed)
        self.chance = self.world.random
        self.days = days
        self.pace = self.chance.choice(_PACES)
        self.machine = Machine(self.world)
        self.store = MemoryStore(id="c" * 8)
        self.database, self.warehouse = Database(), Warehouse()
        self.around = Around(self.store, Weather(), self._told, self._crash)
        self.daemons: list[SimDaemon] = []
        self.wanted_daemons = self.chance.choice((1, 2, 2, 3))
        self.keys = Keys()
        self.clerk = Clerk(self.chance, itertools.count(1).__next__)
        self.trouble = self._draw_trouble()
        self.project = self.full = self._draw_project()
        self.history = History(
            self.world,
            self.store,
            self.database,
            self.warehouse,
            lambda: self.project,
            self.is_dead,
            self.machine.clock,
        )
        self.person = Node(self.world, "person")
        self.cli = self._handle()
        self._busy_until, self._awaited = 0.0, math.inf
        self._names = 0
        self._pasts = random.Random(f"pasts of {seed}")
        self._retains = self.chance.random() < 0.3
        self._holders: dict[str, SimDaemon] = {}
        self._edits: list[asyncio.Task[None]] = []
        self._ticks: dict[tuple[str, Schedule | None], tuple[int, int]] = {}
        self.world.idle = self._idle_until

    # -- drawing the world ----------------------------------------------------------------------

    def _draw_trouble(self) -> Trouble:
        count = self.chance.randint(1, len(_TROUBLES))
        kinds = tuple(self.chance.sample(_TROUBLES, count))
        trouble = Trouble(kinds, self.pace * self.chance.choice((300.0, 600.0, 1200.0)))
        if "worker_crash" in kinds:
            trouble.worker_crash = self.chance.choice((0.002, 0.01, 0.05))
        if "worker_freeze" in kinds:
            trouble.worker_freeze = self.chance.choice((0.002, 0.01))
        if "connector_fails" in kinds:
            trouble.connector_fails = self.chance.choice((0.002, 0.01, 0.05))
        if "worker_start" in kinds:
            trouble.worker_start = 0.1
        return trouble

    def _draw_schedule(self) -> Schedule:
        seconds = self.pace * self.chance.choice((1800.0, 3600.0, 5400.0))
        crons = (
            ("*/45 * * * *", "7 * * * *")
            if self.pace == 1.0
            else ("7 */4 * * *", "50 5-20/3 * * *")
        )
        return self.chance.choice((Every(seconds), Cron(self.chance.choice(crons))))

    def _draw_project(self) -> Project:
        modes = (Mode.MERGE, Mode.APPEND, Mode.REPLACE)
        pipelines: dict[str, Pipeline] = {}
        names = ["p0", "p1", "p2"][: self.chance.choice((1, 2, 2, 3))]
        self.chance.shuffle(names)  # what is equal elsewhere goes by name
        for number, name in enumerate(names):
            streams = {}
            for i in range(self.chance.choice((1, 1, 2))):
                stream = f"t{number}{i}"
                mode = self.chance.choice(modes)
                streams[stream] = StreamSettings(mode=mode, cursor=("at",), key=("id",))
                self.database.tables[stream] = Table(stream)
            after = (names[0],) if number and self.chance.random() < 0.3 else ()
            pipelines[name] = Pipeline(
                name,
                source=f"source{self.chance.randint(0, 1)}",
                destination="here",
                schedule=None if after else self._draw_schedule(),
                catch_up=self.chance.random() < 0.8,
                after=after,
                stall_timeout=120.0,
                timeout=self.chance.choice((None, None, 600.0)),
                retries=self.chance.choice((0, 2, 5)),
                parallel=self.chance.choice((1, len(streams))),
                streams=streams,
            )
        one = self.chance.random() < 0.3
        connections = {
            name: Connection(name, "simulated", max_runs=1 if one else None)
            for name in ("source0", "source1", "here")
        }
        connections |= self._draw_files(pipelines)
        return Project(
            "simulated",
            daemons.NOWHERE,
            "memory:",
            daemon=Daemon(max_runs=self.chance.choice((1, 4)), lease_ttl=TTL, grace=20.0),
            retention=RetentionSettings(self.chance.choice((HOUR, 90 * 86400.0))),
            connections=connections,
            pipelines=pipelines,
        )

    def _draw_files(self, pipelines: dict[str, Pipeline]) -> dict[str, Connection]:
        """In some worlds one of the pipelines reads files; by a chance of their own, so that all
        other worlds are what they were."""
        chance = random.Random(f"files of {self.world.seed}")
        if chance.random() >= _WITH_FILES:
            return {}
        name = chance.choice(tuple(pipelines))
        streams = {}
        for stream, was in pipelines[name].streams.items():
            self.database.tables[stream] = Folder(
                stream, mode=was.mode, now_ns=lambda: self.now()[1] * 1000
            )
            merges = was.mode is Mode.MERGE
            streams[stream] = StreamSettings(
                mode=was.mode,
                key=("id",),
                path=f"{stream}/*",
                format=_JSON_LINES,
                changed=chance.choice(("hold", "reread")) if merges else "hold",
            )
        pipelines[name] = replace(pipelines[name], source="inbox", streams=streams)
        # A ledger comes with the order, or is asked for.
        connector = chance.choice(("files", "simulated"))
        return {"inbox": Connection("inbox", connector)}

    # -- the ports' ends ------------------------------------------------------------------------

    @property
    def start_fails(self) -> float:
        return 0.0 if self.trouble.calm else self.trouble.worker_start

    def now(self) -> tuple[float, int]:
        """The world's time, and the source's clock."""
        return self.world.now, START_US + round(self.world.now * 1e6)

    def source(self, worker: SimWorker, name: str) -> Source:
        if not self._quiet_writers and self.chance.random() < 0.2:  # rows of the very second
            table = self.chance.choice(tuple(self.database.tables.values()))
            pause = self.chance.uniform(0.0, 0.5)
            self.world.after(pause, partial(self._write, table), unseen=True)
        if name == "inbox":
            tables = self.database.tables
            return Inbox(tables, worker, lambda: self.world.now < self.database.down_until).source()
        return SimSource(self.database, worker, self.now, self.chance.choice((3, 8, 50)))

    def destination(self, worker: SimWorker, name: str) -> Destination:
        return SimDestination(self.warehouse, worker, self.now)

    def destination_free(self, worker: SimWorker) -> None:
        """A worker ended: what it had locked is free."""
        self.warehouse.free(worker)

    def begins(self, worker: SimWorker) -> None:
        """A worker takes up a run: no more of its daemon's are at work than may be."""
        for one in self.daemons:
            at_work = [w for w in one.pool.workers if w.is_at_work]
            if worker in at_work and len(at_work) > self.project.daemon.max_runs:
                raise Wrong(Rule.LIMITS, f"{one.name} has {len(at_work)} runs at once")

    def fate(self, worker: SimWorker, step: str) -> None:
        trouble = self.trouble
        if trouble.calm:
            return
        dice = self.chance.random()
        if dice < trouble.worker_crash:
            self.world.say(f"the worker of run {worker.epoch} ends at {step}")
            worker.end("the worker was killed by SIGSEGV")
        elif dice < trouble.worker_crash + trouble.worker_freeze:
            seconds = self.chance.choice((5.0, 40.0, 200.0))
            self.world.say(f"the worker of run {worker.epoch} stands still at {step}: {seconds}")
            worker.freeze(seconds)
            worker.sleep(seconds)
        elif dice > 1.0 - trouble.connector_fails and step.startswith(("source.", "destination.")):
            self.world.say(f"run {worker.epoch} meets an error at {step}")
            raise ConnectorError(ErrorClass.TRANSIENT, f"nothing answers at {step}")
        elif dice > 0.98 - trouble.connector_fails:
            worker.sleep(self.chance.choice((0.1, 3.0, 20.0)))

    def point(self, name: str) -> None:
        """A named point of the code, at which worker or daemon may end."""
        if self.trouble.calm:
            return
        worker = SimWorker.current
        if worker is not None:
            worker.step(name)

    # -- daemons --------------------------------------------------------------------------------

    def is_dead(self, holder: str) -> bool:
        """All processes of this holder ended."""
        found = self._holders.get(holder)
        if found is None or found.node.alive:
            return False
        return not any(worker.alive for worker in found.pool.workers)

    def _start_daemon(self) -> None:
        if len(self.daemons) >= self.wanted_daemons:
            return
        if self._asleep_until > self.world.now:  # nothing starts on a machine that sleeps
            self.world.at(self._asleep_until, self._start_daemon)
            return
        self._names += 1
        name = f"d{self._names}"
        one = SimDaemon(self.world, self.machine, name, self.around, self, self.is_dead)
        if "skew" in self.trouble.kinds and not self.trouble.calm:
            one.clock.skew = self.chance.uniform(-20, 20)
        self._holders[one.holder.id] = one
        self.daemons.append(one)
        self.world.say(f"{name} starts")
        one.retains = self._retains
        one.on_end = lambda: self.world.after(0.0, lambda: self._ended(one))
        one.start(lambda: self.project)
        self._stir()

    def _crash(self, node: Node) -> None:
        """A daemon ends at once; its workers soon after it."""
        for one in tuple(self.daemons):
            if one.node is node:
                self._end_daemon(one)
                return
        self._new_person()

    def _new_person(self) -> None:
        """The command line ended; somebody opens another."""
        self._edits.clear()
        self.person.bury()
        self.person = Node(self.world, "person")
        self.cli = self._handle()

    def _handle(self) -> Catalog:
        return cast(Catalog, SimCatalog(self.person, self.machine.clock(), self.around))

    def _end_daemon(self, one: SimDaemon, orphans: bool = True) -> None:
        self.world.say(f"{one.name} ends")
        self.daemons.remove(one)
        one.node.bury()
        one.catalog.forget()  # type: ignore[attr-defined]
        for worker in one.pool.workers:
            delay = self.chance.choice((0.0, 0.0, 0.05, 1.0)) if orphans else 0.0
            self.world.after(delay, partial(worker.end, "its daemon ended"))
        self.world.after(self.chance.choice((0.5, 5.0, 60.0)), self._start_daemon)
        self._stir()

    def _ended(self, one: SimDaemon) -> None:
        """A daemon ended by itself, and the service manager will start another."""
        if one.node.alive:
            if one.ready and isinstance(one.ended, BaseException):
                text = f"{one.name} ended by itself: {daemons.words(one.ended)}"
                raise Wrong(Rule.ALIVE, text) from one.ended
            self._end_daemon(one, orphans=False)

    # -- what the catalog tells -----------------------------------------------------------------

    def _told(self, node: Node, verb: str, args: tuple[Any, ...], answer: Any) -> None:
        self._stir(0.1)
        if verb == "claim" and self._ambush:
            self._ambush -= 1
            self.world.after(self.chance.choice((0.01, 0.3, 3.0)), self._strike)
        self.history.after(node.name, verb, args, answer)

    # -- fast forward ---------------------------------------------------------------------------

    def _stir(self, seconds: float = 0.4) -> None:
        self._busy_until = max(self._busy_until, self.world.now + seconds)

    def _idle_until(self) -> float | None:
        """Nothing but polling happens until then; None: something is under way."""
        now = self.world.now
        if now >= self._awaited:
            self._awaited = math.inf
            self._stir()
        if now < self._busy_until:
            return None
        if self.around.under_way:
            return now + _A_MOMENT
        clock = self.machine.clock()
        wall, boot = clock.wall_us(), clock.boot_ns()
        following = now + HOUR
        for name, state in self.store.pipelines.items():
            if state.holder:
                if not self.is_dead(state.holder):
                    return now + _A_WHILE
                beat = self.store.holders[state.holder]
                following = min(following, now + (beat.expires_ns - boot) / 1e9)
            if name not in self.project.pipelines or state.paused or state.parked:
                continue
            if state.request is not None:
                return now + _A_MOMENT
            if state.retry_at is not None:
                following = min(following, now + (state.retry_at - wall) / 1e6)
        for pipeline in self.project.pipelines.values():
            if pipeline.schedule is not None:
                following = min(following, now + (self._next_tick(pipeline, wall) - wall) / 1e6)
        if following <= now:
            return None
        self._awaited = following
        return following

    def _next_tick(self, pipeline: Pipeline, wall: int) -> int:
        known = self._ticks.get((pipeline.name, pipeline.schedule))
        if known is None or not known[0] <= wall < known[1]:
            assert pipeline.schedule is not None
            following = next_after(pipeline.schedule, pipeline.name, wall)
            known = self._ticks[(pipeline.name, pipeline.schedule)] = (wall, following)
        return known[1]

    # -- the day --------------------------------------------------------------------------------

    def run(self) -> None:
        """Let the day pass. Raises ``Wrong``, or whatever a process raised."""
        self.world.say(f"trouble: {self.trouble.kinds}")
        self.world.say(f"{len(self.project.pipelines)} pipelines, {self.wanted_daemons} daemons")
        for table in self.database.tables.values():
            self._write(table)
            self._write_later(table)
        for _ in range(self.wanted_daemons):
            self._start_daemon()
        end = self.days * 24 * HOUR
        while self.world.now < end - 5 * HOUR:
            bad = self.chance.uniform(1.5, 3.5) * min(self.pace, 3.0) * HOUR
            self._bad_time(min(bad, end - self.world.now - 3 * HOUR))
            self._quiet_time()
        self._calm_time(end - self.world.now - QUIET)
        self._quiet_time()

    def close(self) -> None:
        """End whatever still lives."""
        for one in self._holders.values():
            for worker in tuple(one.pool.workers):
                worker.end("the world is over")
        for node in tuple(self.world.nodes):
            node.bury()
        self.world.bury()

    def _bad_time(self, seconds: float) -> None:
        self.trouble.calm = False
        until = self.world.now + seconds
        self.world.say("bad times begin")
        self._lost_past()
        if self.chance.random() < 0.1:
            self._storm()
        while self.world.now < until:
            pause = self.chance.expovariate(1 / self.trouble.every)
            self.world.run(min(self.world.now + pause, until))
            if self.chance.random() * self.pace < 0.5:
                self._strike()
            else:
                self._ambush += 1

    def _storm(self) -> None:
        """All at once: runs asked for again and again, and a trouble to each."""
        self.world.say("a storm begins")
        for _ in range(20):
            name = self.chance.choice(tuple(self.project.pipelines))
            self._edit(RequestRun(name, f"storm-{self.world.count()}"))
            self._strike()
            self.world.run(self.world.now + self.chance.expovariate(1 / 20.0))

    def _strike(self) -> None:
        if self.trouble.calm:
            return
        kind = self.chance.choice(self.trouble.kinds)
        event: Callable[[], None] | None = getattr(self, f"_{kind}", None)
        if event is not None:
            self.world.say(f"-- {kind}")
            event()
            self._stir()

    def _calm_time(self, seconds: float) -> None:
        """Nothing fails, and rows come: every tick is answered in time."""
        self._make_peace()
        began = self.world.now + 900.0
        self._attend_until(began)
        self.world.run(began + seconds - 900.0)
        for pipeline in self.project.pipelines.values():
            for upstream in pipeline.after:
                self.history.check_followed(upstream, pipeline.name, began, ANSWERED_WITHIN)
            if pipeline.schedule is None:
                continue
            tick = next_after(pipeline.schedule, pipeline.name, _us(began))
            while tick < _us(self.world.now - ANSWERED_WITHIN):
                self.history.check_answered(pipeline.name, tick, ANSWERED_WITHIN)
                tick = next_after(pipeline.schedule, pipeline.name, tick)

    def _quiet_time(self) -> None:
        """Nothing fails and nothing is written: all is settled at its end."""
        self._make_peace()
        self._quiet_writers = True
        for table in self.database.tables.values():
            for transaction in tuple(table.opened):
                table.commit(transaction, ())
        began = self.world.now
        self.world.run(began + 30.0)
        self._ask_all()
        self._attend_until(began + QUIET - 400.0)
        asked = self.world.now
        self._ask_all()
        self.world.run(began + QUIET)
        for _ in range(5):
            if self.history.just_began():
                self.world.run(self.world.now + 60.0)
        self.history.check_settled(asked)
        self.history.check_open_runs()
        self.history.check_data()
        self._quiet_writers = False

    _quiet_writers = False
    _asleep_until = 0.0
    _ambush = 0
    """Troubles that wait for a run to begin."""

    def _ask_all(self) -> None:
        for name in self.project.pipelines:
            self._edit(RequestRun(name, f"all-{self.world.count()}"))

    def _make_peace(self) -> None:
        self.world.say("peace")
        self.trouble.calm = True
        weather = self.around.weather
        weather.slow = weather.unknown = weather.crash = weather.away_until = 0.0
        self.machine.wall_off = 0.0
        self.database.down_until = self.warehouse.busy_until = 0.0
        self._wake()
        for node in self.world.nodes:
            node.thaw()
        for one in self.daemons:
            one.clock.skew = 0.0
            for worker in one.pool.workers:
                worker.frozen_until = min(worker.frozen_until, self.world.now)
        if self.project is not self.full:
            self._adopt_project(self.full)
        self._stir()

    def _attend_until(self, until: float) -> None:
        """Persons look every other minute and answer all that waits for them."""
        while self.world.now + 120.0 < until:
            self._attend()
            self.world.run(self.world.now + 120.0)
        self.world.run(until)

    def _attend(self) -> None:
        for name in self.project.pipelines:
            state = self.store.pipelines.get(name)
            if state is None:
                continue
            if state.paused or state.parked:
                self._edit(Resume(name))
            held = [s for s in self.store.streams.values() if s.pipeline == name and s.hold]
            for stream in held:
                assert stream.hold is not None
                self._answer(name, stream.stream, stream.hold)
            if held:
                self._edit(RequestRun(name, f"again-{self.world.count()}"))

    # -- persons --------------------------------------------------------------------------------

    def _edit(self, action: EditAction) -> None:
        edit = self.person.spawn(self._carry_out(action))
        self._edits = [other for other in self._edits if not other.done()] + [edit]
        self._stir()

    async def _carry_out(self, action: EditAction) -> None:
        op = new_operation_id()
        for _ in range(20):
            try:
                await self.cli.edit(op, "a person", "", action)
            except Refused as error:
                self.world.say(f"refused {action}: {error}")
            except CatalogError:
                await anyio.sleep(1.0)
                continue
            else:
                self.world.say(f"a person: {action}")
            return

    def _answer(self, pipeline: str, stream: str, hold: Hold) -> None:
        table = self.database.tables[stream]
        match hold.kind:
            case HoldKind.SCHEMA:
                if not hold.fingerprint or hold.choices == ("retry",):
                    self._edit(Release(pipeline, stream))
                    return
                answer = self.chance.choice(("approved", "rejected"))
                self._edit(AnswerSchema(pipeline, stream, hold.fingerprint, answer))  # type: ignore[arg-type]
            case HoldKind.DESTINATION:
                self._edit(self._about_destination(pipeline, stream, hold))
            case HoldKind.EMPTY_REPLACE if isinstance(table, Folder):
                self.clerk.plain(table)
                self._edit(Release(pipeline, stream))
            case HoldKind.LOST_BATCH:
                self._edit(Refresh(pipeline, stream))
            case HoldKind.EMPTY_REPLACE:  # no row fits a type that was rejected
                table.text = False
                self._edit(Release(pipeline, stream))
            case HoldKind.FILES_CHANGED if isinstance(table, Folder) and self.chance.random() < 0.3:
                for path, entry in self.store.files[(pipeline, stream)].items():
                    if path in table.files and table.files[path].hash != entry.hash:
                        del table.files[path]
                self._edit(Release(pipeline, stream))
            case _:
                self._edit(self.chance.choice((Refresh, Release))(pipeline, stream))

    def _about_destination(self, pipeline: str, stream: str, hold: Hold) -> EditAction:
        if hold.choices[0] == "retry" and mismatch.ADOPT not in hold.choices:
            return Release(pipeline, stream)
        row = self.store.streams[(pipeline, stream)]
        if row.published < row.seq or "refresh" not in hold.choices:
            return Refresh(pipeline, stream)
        detail = json.loads(hold.detail)
        cursor = msgspec.convert(detail["cursor"], type=Cursor | None) if detail["cursor"] else None
        choices = [mismatch.REFRESH, mismatch.REWIND]
        if isinstance(self.database.tables[stream], Folder):
            choices = list(hold.choices)
        elif cursor is None or (row.cursor and cursor.position.data <= row.cursor.position.data):
            choices.append(mismatch.ADOPT)  # else it has rows that would be read again
        match self.chance.choice(choices):
            case mismatch.REFRESH:
                return Refresh(pipeline, stream)
            case mismatch.ADOPT:
                return Adopt(pipeline, stream, hold.detail)
            case _:
                seq, epoch = detail["seq"], detail["epoch"]
                return SetCursor(
                    *(pipeline, stream, cursor, seq),
                    adopt=True,
                    seen=hold.detail,
                    forget_after=seq,
                    forget_later=epoch,
                )

    def _persons(self) -> None:
        name = self.chance.choice(tuple(self.full.pipelines))
        pipeline = self.full.pipelines[name]
        stream = self.chance.choice(tuple(pipeline.streams))
        what = self.chance.choice(_EDITS)
        match what:
            case "pause":
                self._edit(Pause(name))
                self.world.after(self.chance.uniform(60, 7200), lambda: self._edit(Resume(name)))
            case "resume":
                self._edit(Resume(name))
            case "run":
                only = (stream,) if self.chance.random() < 0.3 else ()
                self._edit(RequestRun(name, f"run-{self.world.count()}", only))
            case "cancel":
                self._edit(CancelRun(name))
                self._edit(RequestRun(name, f"run-{self.world.count()}"))
                self.world.after(self.chance.uniform(0.1, 3), lambda: self._edit(CancelRun(name)))
            case "refresh":
                self._edit(Refresh(name, stream))
            case "release":
                self._edit(Release(name, stream))
            case "rewind" if pipeline.streams[stream].mode is Mode.MERGE:
                self._rewind(name, stream)
        if self.chance.random() < 0.5:
            self._attend()

    def _rewind(self, pipeline: str, stream: str) -> None:
        row = self.store.streams.get((pipeline, stream))
        if row is None or row.cursor is None or row.hold or row.directive:
            return
        commits = [c for c in self.store.commits.values() if c.stream == stream]
        if isinstance(self.database.tables[stream], Folder):
            earlier = [c for c in commits if c.seq >= row.ledger_from]
        else:
            at = row.cursor.position.data
            earlier = [c for c in commits if c.cursor and c.cursor.position.data <= at]
        if earlier:
            to = self.chance.choice(earlier)
            self._edit(SetCursor(pipeline, stream, to.cursor, forget_after=to.seq))

    # -- writers --------------------------------------------------------------------------------

    def _writer(self, table: Table) -> None:
        self._write(table)
        self._write_later(table)

    def _write_later(self, table: Table) -> None:
        pause = self.chance.expovariate(1 / (1200.0 * self.pace))
        self.world.after(pause, lambda: self._writer(table), unseen=True)

    def _write(self, table: Table) -> None:
        """A transaction: rows stamped now, shown now or later."""
        if self._quiet_writers:
            return
        self.keys.transaction += 1
        number, (_, now) = self.keys.transaction, self.now()
        if isinstance(table, Folder):
            self._work_in(table, number)
            return
        stamp = now // 10**6 * 10**6
        rows = []
        for _ in range(self.chance.choice((1, 1, 2, 5, 20))):
            self.keys.v += 1
            append = self._mode(table.name) is Mode.APPEND
            if append or not table.rows or self.chance.random() < 0.3:
                self.keys.id += 1
                id_ = self.keys.id
            else:
                id_ = self.chance.choice(tuple(table.rows))
            rows.append(Row(id_, stamp, self.keys.v))
        table.opened[number] = stamp
        delay = self.chance.choice((0.0, 0.0, 1.0, 60.0, 600.0))
        written = list({row.id: row for row in rows}.values())
        if delay:
            self.world.after(delay, lambda: self._show(table, number, written), unseen=True)
        else:
            table.commit(number, written)

    def _work_in(self, folder: Folder, number: int) -> None:
        self.clerk.deed(folder)
        if self.chance.random() < 0.2:
            self.clerk.begin(folder, number)
            delay = self.chance.choice((1.0, 60.0, 600.0))
            self.world.after(delay, lambda: self._show(folder, number, []), unseen=True)

    def _show(self, table: Table, number: int, rows: list[Row]) -> None:
        if number in table.opened:
            known = {id_: row.at for id_, row in table.rows.items()}
            table.commit(number, [r for r in rows if known.get(r.id, 0) <= r.at])

    def _mode(self, stream: str) -> Mode:
        for pipeline in self.full.pipelines.values():
            if stream in pipeline.streams:
                return pipeline.streams[stream].mode
        raise AssertionError(stream)

    # -- trouble --------------------------------------------------------------------------------

    def _one(self) -> SimDaemon | None:
        return self.chance.choice(self.daemons) if self.daemons else None

    def _daemon_crash(self) -> None:
        if one := self._one():
            self._end_daemon(one)

    def _daemon_stop(self) -> None:
        if one := self._one():
            one.stop()

    def _daemon_pause(self) -> None:
        if one := self._one():
            one.node.freeze(self.chance.choice((3.0, 29.0, 31.0, 120.0)))

    def _suspend(self) -> None:
        seconds = self.chance.choice((10.0, 60.0, 3600.0))
        self._asleep_until = max(self._asleep_until, self.world.now + seconds)
        for node in self.world.nodes:
            node.suspend(seconds)
        for one in self.daemons:
            for worker in one.pool.workers:
                worker.freeze(seconds)

    def _wake(self) -> None:
        """The machine is up: what could not start while it slept does."""
        self._asleep_until = self.world.now
        for _ in range(self.wanted_daemons - len(self.daemons)):
            self.world.after(self.chance.choice((0.5, 5.0, 60.0)), self._start_daemon)

    def _reboot(self) -> None:
        """Power is lost: every process ends, and what nobody flushed."""
        self._end_all("power was lost")
        self.warehouse.lose_power()
        self.machine.reboot()
        self._wake()

    def _end_all(self, why: str) -> None:
        for one in self._holders.values():
            for worker in tuple(one.pool.workers):
                worker.end(why)
        for one in tuple(self.daemons):
            self._end_daemon(one, orphans=False)
        self._new_person()

    def _for_a_while(self, what: str, value: float, seconds: float) -> None:
        weather = self.around.weather
        setattr(weather, what, value)
        self.world.after(seconds, lambda: setattr(weather, what, 0.0))

    def _slow_catalog(self) -> None:
        self._for_a_while("slow", self.chance.choice((0.5, 5.0, 20.0)), 300.0)

    def _lost_answers(self) -> None:
        self._for_a_while("unknown", self.chance.choice((0.1, 0.5)), 300.0)

    def _catalog_crash(self) -> None:
        self._for_a_while("crash", 0.1, 300.0)

    def _catalog_away(self) -> None:
        weather = self.around.weather
        weather.away_until = self.world.now + self.chance.choice((2.0, 20.0, 90.0))

    def _catalog_restored(self) -> None:
        """The catalog is backed up; or nobody has it open any more and a copy takes its place."""
        copies = self.keys.copies
        if not copies or self.chance.random() < 0.5:
            copies.append(copy_of(self.store))
            return
        self._end_all("the catalog is restored")
        self.keys.lost = self.warehouse.copy()
        put_back(self.store, self.chance.choice(copies), _us(self.world.now))
        self.around.by_the_dead = 0
        self.history.restored()

    def _lost_past(self) -> None:
        """What the catalog that was lost had published comes back, when persons have answered and
        another one has gone on: two batches have one number now."""
        if (lost := self.keys.lost) is None:
            return
        self.keys.lost = None
        wait = self._pasts.uniform(0.0, HOUR * self.pace)
        self.world.after(wait, lambda: self.trouble.calm or self._put_back(lost))

    def _wall_jump(self) -> None:
        self.machine.wall_off = self.chance.choice((0.0, 0.0, -1.5, -300.0, -4000.0, 300.0, 9000.0))

    def _skew(self) -> None:
        if one := self._one():
            one.clock.skew = self.chance.uniform(-20, 20)

    def _reload(self) -> None:
        """An edit of the config: another schedule, a name, a pipeline away or back."""
        if self.chance.random() < 0.2:
            self._rename(self.chance.choice(tuple(self.full.pipelines)))
        pipelines = dict(self.full.pipelines)
        name = self.chance.choice(tuple(pipelines))
        if self.chance.random() < 0.4 and len(pipelines) > 1 and not self._is_upstream(name):
            del pipelines[name]
        elif pipelines[name].schedule is not None:
            pipelines[name] = replace(pipelines[name], schedule=self._draw_schedule())
        self._adopt_project(replace(self.full, pipelines=pipelines))

    def _is_upstream(self, name: str) -> bool:
        return any(name in other.after for other in self.full.pipelines.values())

    def _rename(self, was: str) -> None:
        """For good; what it was before is said until the next rename, which waits for this one."""
        known = self.store.pipelines.get(was)
        if known is None or not known.epoch:
            return
        self._names += 1
        name = f"r{self._names}"
        self.world.say(f"{was} becomes {name}")
        pipelines = {}
        for pipeline in self.full.pipelines.values():
            after = tuple(name if up == was else up for up in pipeline.after)
            now = replace(pipeline, after=after)
            if pipeline.name == was:
                now = replace(now, name=name, renamed_from=was)
            pipelines[now.name] = now
        self.full = replace(self.full, pipelines=pipelines)
        self.keys.copies.clear()  # a config knows one earlier name, not all that a copy may have

    def _adopt_project(self, project: Project) -> None:
        self.project = project
        for one in self.daemons:
            delay = self.chance.uniform(0, 2)
            self.world.after(delay, lambda o=one: o.reload(self.project))  # type: ignore[misc]

    def _schema(self) -> None:
        table = self.chance.choice(tuple(self.database.tables.values()))
        if self.chance.random() < 0.5:
            table.text = not table.text
        else:
            table.extra = not table.extra

    def _destination_busy(self) -> None:
        self.warehouse.busy_until = self.world.now + self.chance.choice((5.0, 120.0, 1800.0))

    def _destination_emptied(self) -> None:
        tables = tuple(self.warehouse.tables)
        if not tables or self._decided():
            return
        table = self.chance.choice(tables)
        self.world.say(f"{table} is emptied")
        self.warehouse.tables.pop(table, None)
        self.warehouse.durable.pop(table, None)
        self.history.shaken.add(table)

    def _destination_restored(self) -> None:
        """A backup is made; or the last one is put back."""
        backups = self.keys.backups
        if not backups or self.chance.random() < 0.5:
            backups.append(self.warehouse.copy())
            return
        if not self._decided():
            self._put_back(self.chance.choice(backups))

    def _put_back(self, backup: tuple[Any, Any]) -> None:
        if self._decided():
            return
        self.world.say("an older copy of the destination is put back")
        tables, staged = backup
        self.warehouse.durable, self.warehouse.tables = dict(tables), dict(tables)
        if self.chance.random() < 0.5:
            self.warehouse.staged = dict(staged)
        self.history.shaken.update(self.database.tables)

    def _decided(self) -> bool:
        """A person says what is to become of a table, whatever it is: nobody moves it then. What is
        said of a table as a run saw it may be overtaken."""
        under_way = any(not edit.done() for edit in self._edits)
        streams = self.store.streams.values()
        return under_way or any(stream.directive and not stream.seen for stream in streams)

    def _source_down(self) -> None:
        self.database.down_until = self.world.now + self.chance.choice((5.0, 300.0, 1800.0))


def _us(seconds: float) -> int:
    return START_US + round(seconds * 1e6)
