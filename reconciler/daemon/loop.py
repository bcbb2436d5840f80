"""The plan-and-dispatch loop.

Level-triggered: an event says only *look at this pipeline*; what to do follows from the config and
the catalog as they are then. One pass is a tick: observe, decide, claim, dispatch. Its cost follows
the pipelines that are due or changed, never all that exist.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from msgspec.structs import replace

from catalog.clock import Clock
from catalog.errors import CatalogError, Stale
from catalog.port import Catalog
from catalog.records import (
    Candidate,
    Claimed,
    Micros,
    NotClaimed,
    Outcome,
    PipelineState,
    TriggerKind,
)
from reconciler.config.desired import Pipeline, Project
from reconciler.connectors.killpoints import point
from reconciler.daemon.agenda import Agenda
from reconciler.daemon.backlog import Backlog
from reconciler.daemon.renaming import take_over
from reconciler.daemon.runs import Runs, limits
from reconciler.daemon.views import Views
from reconciler.lease.keeper import Keeper
from reconciler.plan.plan import CancelRun, Dispatch, Wait, decide
from reconciler.plan.schedule import SECOND
from reconciler.run.conduct import Conduct
from reconciler.telemetry import logs
from reconciler.telemetry.events import Event
from reconciler.telemetry.metrics import Metrics

_LOOKS_A_TICK = 500
_TROUBLE_SECONDS = 1.0
_RIVAL_SECONDS = 0.5
_PAGE = 1_000
_AWAKE_SECONDS = 1.0
"""The loop comes round at least so often: the wall clock may be moved under it."""


class Loop:
    """Decides and dispatches for one project until it is told to drain."""

    def __init__(
        self,
        project: Project,
        catalog: Catalog,
        keeper: Keeper,
        runs: Runs,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.project = project
        self.draining = False
        self.views = Views()
        self.beat_at = time.monotonic()
        """When the loop last came round, for the watchdog and /healthz."""
        self.last_trouble = ""
        """Why the catalog did not do as asked; empty: it does."""
        self._catalog, self._keeper, self._runs = catalog, keeper, runs
        self._clock, self._metrics = clock, metrics
        self._agenda = Agenda()
        self._wake = asyncio.Event()
        self._backlog = Backlog()
        self._news: dict[str, int] = {}
        self._downstream: Mapping[str, Collection[str]] = {}
        self._rivals: dict[str, str] = {}
        """By pipeline, who else held it when it was last decided on; maybe dead by now."""
        self._in_trouble, self._has_rivals = asyncio.Event(), asyncio.Event()
        self._seen_change = 0
        self._started_at = clock.wall_us()
        self._first_seen: dict[str, Micros] = {}
        """When a reload brought a pipeline or it was last paused; others: as old as the daemon."""
        self._limits = limits(project)
        self._not_renamed: set[str] = set()
        """Told since the config was read that they cannot take over what they are renamed from."""
        self._room_made = False
        runs.on_room = self._room
        self._log = logs.get_logger()

    # -- what others call -----------------------------------------------------------------------

    def look(self, names: Iterable[str]) -> None:
        """Something happened to these pipelines."""
        now = self._clock.wall_us()
        for name in names:
            self._agenda.look(name, now)
        self._wake.set()

    def _room(self) -> None:
        """What is next in the backlog is claimed while the end of the run before is written: to
        the catalog the end comes first, and both share a flush."""
        self._room_made = True
        self._wake.set()

    def drain(self) -> None:
        """Start nothing new from now on."""
        self.draining = True
        self._wake.set()

    def trouble(self, error: CatalogError) -> None:
        """The catalog did not do as asked; said once, until it does again."""
        if self.last_trouble != str(error):
            self.last_trouble = str(error)
            self._in_trouble.set()
            self._log.error(Event.CATALOG_UNAVAILABLE, reason=self.last_trouble)

    def _recovered(self) -> None:
        if self.last_trouble:
            self.last_trouble = ""
            self._in_trouble.clear()
            self._log.info(Event.CATALOG_RECOVERED)

    async def adopt(self, project: Project) -> None:
        """Serve this project from now on; every pipeline is looked at, once the catalog is there.

        A catalog that is away is waited for: a config edited meanwhile ends no daemon.
        """
        now = self._clock.wall_us()
        for gone in self.project.pipelines.keys() - project.pipelines:
            self._metrics.forget(gone)
            self._rivals.pop(gone, None)
        self._first_seen |= dict.fromkeys(project.pipelines.keys() - self.project.pipelines, now)
        self.project = project
        self._limits = limits(project)
        self._backlog.clear()
        self._not_renamed.clear()
        self.views.keep_only(project.pipelines)
        while True:
            try:
                await self.observe_all()
            except CatalogError as error:
                self.trouble(error)
                await anyio.sleep(_TROUBLE_SECONDS)
            else:
                return

    async def observe_all(self) -> None:
        """Read the whole catalog once, page by page, and put every pipeline on the agenda."""
        self._downstream = downstream(self.project)
        after = 0
        while page := await self._catalog.changed(after, _PAGE):
            after = page[-1].change
            for state in page:
                self._note(state)
            await anyio.lowlevel.checkpoint()
        self._seen_change = after
        self.look(self.project.pipelines)

    def _note(self, state: PipelineState) -> None:
        """News of a pipeline is for those after it, which may have been decided on without it."""
        downstream = self._downstream.get(state.name, ())
        if downstream and self._news.get(state.name) != state.news:
            self._news[state.name] = state.news
            self.look(downstream)

    # -- the tasks ------------------------------------------------------------------------------

    async def run(self, tasks: TaskGroup) -> None:
        """Tick when something is due or happened, until draining."""
        before, here = 0, asyncio.get_running_loop()
        while not self.draining:
            now = self._clock.wall_us()
            if now < before - SECOND:
                # The clock was set back: what was agreed by the old one is too late by as much.
                self.look(self.project.pipelines)
            before = now
            names = self._agenda.take_due(now, _LOOKS_A_TICK)
            self.beat_at = time.monotonic()
            if names or self._room_made:
                self._room_made = False
                await self._tick(names, tasks)
                await anyio.lowlevel.checkpoint()
                continue
            following = self._agenda.next()
            until = _AWAKE_SECONDS if following is None else (following - now) / SECOND
            self._wake.clear()  # nothing could happen since the agenda was read
            alarm = here.call_later(max(min(until, _AWAKE_SECONDS), 0), self._wake.set)
            await self._wake.wait()
            alarm.cancel()

    async def follow(self) -> None:
        """Look at what other processes change: the command line, other daemons."""
        while True:
            try:
                if not await self._catalog.wait_changed(self._seen_change, 60):
                    continue
                while page := await self._catalog.changed(self._seen_change, _PAGE):
                    self._seen_change = page[-1].change
                    for state in page:
                        self._note(state)
                        self.look((state.name,))
            except CatalogError as error:
                self.trouble(error)
                await anyio.sleep(_TROUBLE_SECONDS)

    async def mend(self) -> None:
        """While the catalog is in trouble ask it to write, for nothing else may want to for long:
        what is well again is to be seen as ready."""
        while True:
            await self._in_trouble.wait()
            await anyio.sleep(_TROUBLE_SECONDS)
            if self.last_trouble:
                try:
                    await self._keeper.claim((), {}, ())
                except CatalogError as error:
                    self.trouble(error)
                else:
                    self._recovered()

    async def watch_rivals(self) -> None:
        """Take over at once from holders on this machine that died (A7)."""
        looked: set[str] = set()
        while True:
            if not self._rivals:
                looked = set()
                self._has_rivals.clear()
                await self._has_rivals.wait()
            await anyio.sleep(_RIVAL_SECONDS)
            dead = self._keeper.lock.dead(set(self._rivals.values()))
            if new := dead - looked:
                self.look([name for name, holder in self._rivals.items() if holder in new])
            looked = dead

    # -- one tick ---------------------------------------------------------------------------------

    async def _tick(self, names: list[str], tasks: TaskGroup) -> None:
        started = time.perf_counter()
        try:
            for name in names:
                if not await self._has_its_name(name):
                    continue
                state = await self._catalog.pipeline(name)
                # Only now: a reload while we waited may have changed or removed it.
                if (pipeline := self.project.pipelines.get(name)) is not None:
                    self._decide(pipeline, state)
                elif state.cancel and state.cancel == state.epoch:
                    # Its run goes on, which the config was without, or with by another name.
                    self._runs.stop(name, Outcome.CANCELLED, "a person asked for it to end")
            if await self._claim(tasks):
                self._recovered()
        except CatalogError as error:
            self.trouble(error)
            later = self._clock.wall_us() + round(_TROUBLE_SECONDS * SECOND)
            for name in names:
                self._agenda.look(name, later)
        self._metrics.ticked(time.perf_counter() - started)

    async def _has_its_name(self, name: str) -> bool:
        """False: what its old name has is still to be taken over; it is looked at again soon."""
        pipeline = self.project.pipelines.get(name)
        try:
            if pipeline is None or await take_over(self._catalog, pipeline):
                return True
        except Stale as error:
            if name not in self._not_renamed:
                self._not_renamed.add(name)
                self._log.warning(Event.RENAME_REFUSED, pipeline=name, reason=str(error))
            return True
        self._agenda.look(name, self._clock.wall_us() + SECOND)
        return False

    def _decide(self, pipeline: Pipeline, state: PipelineState) -> None:
        name = pipeline.name
        self._note(state)
        now = self._clock.wall_us()
        state = self._with_dead_rival(state)
        running = name in self._runs.conducting
        if state.paused is not None:
            self._first_seen[name] = now  # ticks of a pause are no missed ones
        action = decide(
            pipeline,
            state,
            {up: self._news.get(up, 0) for up in pipeline.after},
            now,
            running=running,
            since=self._first_seen.get(name, self._started_at),
        )
        self._backlog.drop(name)
        match action:
            case Dispatch(candidate, due):
                self._backlog.put(candidate, due)
            case CancelRun():
                self._runs.stop(name, Outcome.CANCELLED, action.reason.text)
            case Wait(until):
                if until is not None:
                    self._agenda.look(name, until)
        self.views.update(pipeline, state, action, running=running)

    def _with_dead_rival(self, state: PipelineState) -> PipelineState:
        holder = state.holder
        if not holder or holder == self._keeper.holder.id or state.lapsed:
            self._rivals.pop(state.name, None)
            return state
        self._rivals[state.name] = holder
        self._has_rivals.set()
        return replace(state, lapsed=True) if self._keeper.lock.dead((holder,)) else state

    # -- claiming and dispatching ----------------------------------------------------------------

    async def _claim(self, tasks: TaskGroup) -> bool:
        """Claim and dispatch as many as there is room for; True: the catalog took a write."""
        if not self._backlog:
            return False
        room = self.project.daemon.max_runs - sum(1 for _ in self._working())
        if room <= 0 or self.draining:
            return False
        busy = self._busy_connections()
        chosen = self._backlog.take(room, lambda candidate: self._fits(candidate, busy))
        if not chosen:
            return False
        project = self.project
        try:
            answers = await self._keeper.claim(
                [candidate for candidate, _ in chosen], self._limits, set(self._rivals.values())
            )
        except CatalogError:
            for candidate, due in chosen:
                self._put_back(candidate, due)
            raise
        point("daemon.claimed")
        for (candidate, due), answer in zip(chosen, answers, strict=True):
            if isinstance(answer, Claimed):
                self._dispatch(answer, candidate, due, project, tasks)
            else:
                self._not_claimed(candidate, due, answer)
        return True

    def _put_back(self, candidate: Candidate, due: Micros) -> None:
        """It waits on, unless a reload removed it while it was being claimed."""
        if candidate.pipeline in self.project.pipelines:
            self._backlog.put(candidate, due)

    def _busy_connections(self) -> Counter[str]:
        return Counter(name for c in self._working() for name in c.claimed.run.connections)

    def _working(self) -> Iterator[Conduct]:
        """Runs that have a worker or wait for one."""
        return (c for c in self._runs.conducting.values() if not c.over)

    def _fits(self, candidate: Candidate, busy: Counter[str]) -> bool:
        """Leave out what this process itself knows to be at its limit; ``claim`` has the word."""
        limits_ = self._limits
        if any(busy[c] >= limits_[c] for c in candidate.connections if c in limits_):
            return False
        busy.update(candidate.connections)
        return True

    def _not_claimed(self, candidate: Candidate, due: Micros, answer: NotClaimed) -> None:
        if answer.why == "connection_full":  # by runs of other processes: no event tells us
            self._put_back(candidate, due)
        later = self._clock.wall_us() + round(_RIVAL_SECONDS * SECOND)
        self._agenda.look(candidate.pipeline, 0 if answer.why == "changed" else later)

    def _dispatch(
        self,
        claimed: Claimed,
        candidate: Candidate,
        due: Micros,
        project: Project,
        tasks: TaskGroup,
    ) -> None:
        """``project``: as it was when the run was claimed; a reload may have come since."""
        asked = candidate.trigger.kind is TriggerKind.REQUEST
        delay = None if asked else max(claimed.run.started_at - due, 0) / SECOND
        self._runs.teller.began(claimed, delay)
        conduct = self._runs.begin(claimed, project)
        if self.draining:  # told to stop while the catalog was asked: its trigger stays
            conduct.stop(Outcome.INTERRUPTED, "the daemon was told to stop")
        tasks.start_soon(self._conduct, conduct, name=f"run {claimed.lease.epoch}")

    async def _conduct(self, conduct: Conduct) -> None:
        name = conduct.lease.pipeline
        await self._runs.carry_out(conduct)
        self.look((name,))


def downstream(project: Project) -> Mapping[str, Collection[str]]:
    """By pipeline, those that come after it."""
    found: dict[str, list[str]] = {}
    for pipeline in project.pipelines.values():
        for upstream in pipeline.after:
            found.setdefault(upstream, []).append(pipeline.name)
    return found
