"""Runs under way in this process: start them, stop them, and write down how they ended."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import anyio
import msgspec

from catalog.clock import Clock
from catalog.errors import CatalogError
from catalog.port import Catalog
from catalog.records import Claimed, ErrorClass, Finish, Lease, Micros, Outcome, Run
from reconciler.config import ConfigError
from reconciler.config.desired import Connection, Pipeline, Project
from reconciler.connectors.killpoints import point
from reconciler.daemon import runlogs
from reconciler.daemon.secrecy import named_openly, reveal, without_secrets
from reconciler.daemon.teller import Teller
from reconciler.lease.keeper import Keeper
from reconciler.plan.backoff import after_failure
from reconciler.plan.outcome import run_outcome
from reconciler.run import messages as m
from reconciler.run.conduct import Conduct, Ended
from reconciler.run.pool import WorkerPool


@dataclass(slots=True)
class Runs:
    """The runs that this process conducts, by pipeline."""

    catalog: Catalog
    keeper: Keeper
    pool: WorkerPool
    clock: Clock
    teller: Teller
    state_dir: Path
    on_moved: Callable[[m.Moved], None] = lambda _: None
    on_room: Callable[[], None] = lambda: None
    """Told when a worker is free again. The run's end goes to the catalog right after."""
    conducting: dict[str, Conduct] = field(default_factory=dict)
    _idle: anyio.Event = field(default_factory=anyio.Event)

    def stop(self, pipeline: str, outcome: Outcome, why: str) -> None:
        """End a pipeline's run soon, if one is under way."""
        conduct = self.conducting.get(pipeline)
        if conduct is not None:
            conduct.stop(outcome, why)

    async def wait_idle(self) -> None:
        """Return when no run is under way."""
        while self.conducting:
            self._idle = anyio.Event()
            await self._idle.wait()

    def lost(self, lease: Lease) -> None:
        """The catalog says that another holds the lease now: the worker ends at once."""
        self.teller.lost(lease)
        conduct = self.conducting.get(lease.pipeline)
        if conduct is not None and conduct.lease == lease:
            conduct.stop(Outcome.FENCED, "another holder took over")

    async def extend(self, deadline_ns: int) -> None:
        """Tell every worker that the leases were renewed (A8)."""
        for conduct in tuple(self.conducting.values()):
            await conduct.extend(deadline_ns)

    def begin(self, claimed: Claimed, project: Project) -> Conduct:
        """Take a claimed run under way; ``carry_out`` does the work."""
        conduct = Conduct(
            claimed,
            project,
            self.catalog,
            self.clock,
            on_moved=self.on_moved,
            fenced=self.teller.fenced,
        )
        self.conducting[claimed.lease.pipeline] = conduct
        return conduct

    async def carry_out(self, conduct: Conduct) -> Run | None:
        """Carry a run out to its end. None: the lease was no longer ours at the end."""
        claimed = conduct.claimed
        name = claimed.lease.pipeline
        try:
            ended = await self._work(conduct)
            openly = partial(named_openly, conduct)
            ended = replace(ended, done=without_secrets(ended.done, self.teller.redact, openly))
            conduct.over = True
            self.on_room()
            notes = ended.done.notes + self._keep(claimed, ended.printed)
            finish = conclude(claimed, conduct.pipeline, ended, self.clock.wall_us())
            point("daemon.before_finish")
            run = await self.keeper.finish(claimed.lease, finish)
        finally:
            del self.conducting[name]
            if not self.conducting:
                self._idle.set()
        self.teller.ended(claimed, run, finish, msgspec.structs.replace(ended.done, notes=notes))
        return run

    def _keep(self, claimed: Claimed, printed: bytes) -> tuple[tuple[str, str], ...]:
        """Keep what a run printed; a disk that does not take it costs that, and is noted."""
        if not printed:
            return ()
        lease = claimed.lease
        try:
            runlogs.keep(self.state_dir, lease.pipeline, lease.epoch, printed, self.teller.redact)
        except OSError as error:
            return (("", f"what the run printed is not kept: {error.filename}: {error.strerror}"),)
        return ()

    def _reveal(self, connection: Connection) -> Mapping[str, str]:
        revealed = reveal(connection)
        for value in revealed.values():
            self.teller.secret(value)
        return revealed

    async def _work(self, conduct: Conduct) -> Ended:
        try:
            order = await conduct.order(self._reveal, self.keeper.deadline_ns)
            return await conduct.run(self.pool, order)
        except (ConfigError, CatalogError) as error:
            # A secret that is not there at this moment is being renewed as it seems; nobody was
            # asked to let us in, so to try again locks no account.
            return Ended(m.failed(str(error)))
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            text = f"no worker process can be started: {error.strerror or error}{where}"
            return Ended(m.failed(text))
        except Exception as error:  # a fault of ours costs this run, not the daemon's others
            text = f"the daemon met a fault of its own: {type(error).__name__}: {error}"
            return Ended(m.failed(text), printed=traceback.format_exc().encode())


_GOOD = (Outcome.SUCCEEDED, Outcome.NOTHING_NEW)


def conclude(claimed: Claimed, pipeline: Pipeline, ended: Ended, now: Micros) -> Finish:
    """What the catalog is told of a run that ended, and what is to happen next."""
    done = ended.done
    outcome, reason, error = run_outcome(done.streams)
    if ended.outcome is not None:
        outcome, reason, error = ended.outcome, done.failure or reason, None
    elif done.failure:
        outcome, reason, error = Outcome.FAILED, done.failure, done.error
    retry_at: Micros | None = None
    park = ""
    if outcome is Outcome.FAILED:
        step = after_failure(
            pipeline,
            claimed.pipeline,
            error or ErrorClass.TRANSIENT,
            done.retry_after,
            now,
            random.random(),  # noqa: S311 - jitter
        )
        retry_at, park = step.retry_at, step.park
        if error is ErrorClass.PERMANENT and any(s.outcome in _GOOD for s in done.streams):
            park = ""  # the others are not to stand still: the next trigger tries this one again
    failed = tuple(s.stream for s in done.streams if s.outcome is Outcome.FAILED)
    return Finish(
        outcome=outcome,
        reason=reason,
        error=error,
        streams=done.streams,
        published=tuple(done.published.items()),
        retry_at=retry_at,
        retry_streams=failed if retry_at is not None and not done.failure else (),
        park=park,
    )


def limits(project: Project) -> Mapping[str, int]:
    """How many runs at once each connection allows, where it says so."""
    return {c.name: c.max_runs for c in project.connections.values() if c.max_runs is not None}
