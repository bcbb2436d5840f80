"""The daemon's side of one run: hand it to a worker, answer the worker, learn how it ended.

The worker asks; this module is the only place from which a run's commits reach the catalog, always
with the run's lease (rule 1).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import anyio
from msgspec.structs import replace

from catalog.clock import Clock
from catalog.errors import Fenced, Refused, Unavailable, Unknown
from catalog.port import Catalog, new_operation_id
from catalog.records import (
    MAX_UNPUBLISHED,
    Claimed,
    Commit,
    FileEntry,
    Lease,
    Outcome,
)
from reconciler.config.desired import Pipeline, Project
from reconciler.connectors.killpoints import point
from reconciler.run import messages as m
from reconciler.run.orders import Secrets, connection_order
from reconciler.run.pool import LeaseRanOut, Worker, WorkerGone, WorkerPool
from reconciler.schema.decide import HoldOn, decide

CANCEL_WITHIN = 3.0
"""Seconds a worker gets to stop by itself before its process group is killed (A8)."""
_COMMIT_TRIES = 8
_LEDGER_PAGE = 10_000
_SHORT_LEDGER = 50
_MAX_COUNT = 2**63


@dataclass(frozen=True, slots=True)
class Ended:
    """How the worker's part of a run ended."""

    done: m.Done
    outcome: Outcome | None = None
    """Set where it is not the streams' to say: cancelled, interrupted, fenced."""
    printed: bytes = b""


@dataclass(slots=True)
class Conduct:
    """One run under way."""

    claimed: Claimed
    project: Project
    catalog: Catalog
    clock: Clock
    on_moved: Callable[[m.Moved], None] = lambda _: None
    fenced: Callable[[Lease], None] = lambda _: None
    """Told when the catalog refused a write of this run as fenced."""
    over: bool = field(default=False, init=False)
    """Its worker is free again: only its end is to be written down."""
    _stop: tuple[Outcome, str] | None = field(default=None, init=False)
    _scope: anyio.CancelScope = field(default_factory=anyio.CancelScope, init=False)
    _worker: Worker | None = field(default=None, init=False)
    _deadline_ns: int = field(default=0, init=False)
    """Of the newest renewal; 0: there was none since the order was written."""

    @property
    def lease(self) -> Lease:
        return self.claimed.lease

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline as the config said when the run was claimed."""
        return self.project.pipelines[self.claimed.lease.pipeline]

    def stop(self, outcome: Outcome, why: str) -> None:
        """End the run soon, with this outcome unless it ends by itself first."""
        if self._stop is None:
            self._stop = (outcome, why)
            self._scope.cancel()

    async def extend(self, deadline_ns: int) -> None:
        """Tell the worker that the lease was renewed (A8); if there is none yet, with its order."""
        self._deadline_ns = deadline_ns
        if self._worker is not None and self._worker.alive:
            try:
                await self._worker.send(m.Deadline(deadline_ns))
            except WorkerGone:
                return  # the conversation notices by itself

    async def order(self, secrets: Secrets, deadline_ns: int) -> m.RunOrder:
        """What the worker is told. Raises whatever ``secrets`` raises for a missing secret."""
        pipeline, streams = self.pipeline, self.claimed.streams
        unpublished: tuple[Commit, ...] = ()
        if any(stream.seq > stream.published for stream in streams):
            unpublished = await self.catalog.commits(
                pipeline.name, unpublished=True, limit=len(streams) * MAX_UNPUBLISHED
            )
        return m.RunOrder(
            catalog=self.catalog.id,
            pipeline=pipeline.name,
            origin=self.claimed.pipeline.origin or pipeline.name,
            epoch=self.lease.epoch,
            deadline_ns=deadline_ns,
            source=connection_order(self.project, pipeline.source, secrets),
            destination=connection_order(self.project, pipeline.destination, secrets),
            select=pipeline.select,
            defaults=pipeline.defaults,
            named=pipeline.streams,
            only=self.claimed.run.trigger.streams,
            parallel=pipeline.parallel,
            streams=streams,
            unpublished=unpublished,
            ledgers=await self._short_ledgers(),
        )

    async def _short_ledgers(self) -> Mapping[str, tuple[FileEntry, ...]]:
        """Saves a run over files with nothing new the round trip of asking."""
        if self.project.connections[self.pipeline.source].connector != "files":
            return {}
        found = {}
        for name in self.pipeline.streams:
            files = await self.catalog.files(self.pipeline.name, name, limit=_SHORT_LEDGER + 1)
            if len(files) <= _SHORT_LEDGER:
                found[name] = files
        return found

    async def run(self, pool: WorkerPool, order: m.RunOrder) -> Ended:
        """Carry the run out. Never raises for what a worker or connector does."""
        worker: Worker | None = None
        healthy = False
        try:
            with self._scope:
                try:
                    self._worker = worker = await pool.acquire()
                    await worker.send(self._as_renewed(order))
                    done = await self._with_limits(worker)
                    healthy = True
                    return Ended(done, printed=worker.printed())
                except WorkerGone as gone:
                    printed = worker.printed() if worker else b""
                    # Nothing failed that a later try would have to be spared.
                    outcome = Outcome.INTERRUPTED if isinstance(gone, LeaseRanOut) else None
                    return Ended(m.failed(str(gone)), outcome, printed)
                except (_Overdue, _OutOfTurn) as why:
                    assert worker is not None
                    worker.kill()
                    return Ended(m.failed(str(why)), printed=worker.printed())
            assert self._stop is not None
            if worker is None:  # stopped while it waited for one
                return Ended(m.Done((), {}, failure=self._stop[1]), self._stop[0])
            ended, healthy = await self._wind_down(worker, *self._stop)
            return ended
        finally:
            self._worker = None
            if worker is not None:
                await pool.release(worker, healthy=healthy)

    def _as_renewed(self, order: m.RunOrder) -> m.RunOrder:
        """It may have waited for a worker longer than the lease was for."""
        return replace(order, deadline_ns=max(order.deadline_ns, self._deadline_ns))

    async def _with_limits(self, worker: Worker) -> m.Done:
        timeout = self.pipeline.timeout
        if timeout is None:
            return await self._converse(worker)
        with anyio.move_on_after(timeout):
            return await self._converse(worker)
        raise _Overdue(f"not done after {timeout:g} s, the pipeline's `timeout`")

    async def _converse(self, worker: Worker) -> m.Done:
        stall = self.pipeline.stall_timeout
        while True:
            with anyio.move_on_after(stall) as scope:
                message = await worker.receive()
            if scope.cancelled_caught:
                raise _Overdue(f"no bytes moved for {stall:g} s, the pipeline's `stall_timeout`")
            if isinstance(message, m.Done):
                if message.epoch < self.lease.epoch:
                    continue  # said once more, of a run before this one: that was answered
                self._refuse_nonsense(message)
                return message
            # An answer once begun is given: the worker must not be left not knowing.
            with anyio.CancelScope(shield=True):
                await self._answer(worker, message)

    async def _wind_down(self, worker: Worker, outcome: Outcome, why: str) -> tuple[Ended, bool]:
        """Ask the worker to stop; kill it when it does not."""
        done = m.Done((), {}, failure=why)
        healthy = False
        with anyio.move_on_after(0 if outcome is Outcome.FENCED else CANCEL_WITHIN, shield=True):
            try:
                await worker.send(m.Cancel())
                done = await self._converse(worker)
                done = replace(done, failure=done.failure or why)  # which no stream knows
                healthy = True
            except (WorkerGone, _Overdue, _OutOfTurn):
                pass
        if not healthy:
            worker.kill()
        return Ended(done, outcome, worker.printed()), healthy

    # -- answering the worker ------------------------------------------------------------------

    async def _answer(self, worker: Worker, message: m.ToDaemon) -> None:
        match message:
            case m.Moved():
                self.on_moved(message)
            case m.Propose():
                await worker.send(await self._verdict(message))
            case m.AskCommit():
                self._refuse_other_run(message)
                await worker.send(await self._commit(message))
            case m.AskLedger():
                files = await self.catalog.files(
                    self.lease.pipeline, message.stream, after=message.after, limit=_LEDGER_PAGE
                )
                await worker.send(m.Ledger(message.id, files, len(files) == _LEDGER_PAGE))
            case _:
                raise _OutOfTurn(
                    f"the worker said {type(message).__name__!r} in the midst of a run"
                )

    def _refuse_other_run(self, message: m.AskCommit | m.Done) -> None:
        """What is left in the line of a run before this one is not recorded for this one."""
        if message.epoch != self.lease.epoch:
            raise _OutOfTurn(
                f"the worker answered for run {message.epoch} in the midst of run "
                f"{self.lease.epoch}"
            )

    def _refuse_nonsense(self, done: m.Done) -> None:
        self._refuse_other_run(done)
        for result in done.streams:
            counts = (result.rows, result.bytes, result.rejected)
            if not all(0 <= count < _MAX_COUNT for count in counts):
                raise _OutOfTurn(
                    f"the worker said that stream {result.stream!r} moved {counts[0]} rows, "
                    f"{counts[1]} bytes and set {counts[2]} aside, which cannot be"
                )

    async def _verdict(self, asked: m.Propose) -> m.Verdict:
        pipeline = self.lease.pipeline
        versions = await self.catalog.schemas(pipeline, asked.stream)
        verdict = decide(
            asked.stream,
            versions[-1] if versions else None,
            asked.schema,
            self.pipeline.settings(asked.stream).schema_changes,
            await self.catalog.decisions(pipeline, asked.stream) if versions else (),
            self.clock.wall_us(),
        )
        if isinstance(verdict, HoldOn):
            return m.Verdict(asked.id, hold=verdict.hold)
        return m.Verdict(
            asked.id, verdict.version, verdict.target, verdict.columns, verdict.decisions
        )

    async def _commit(self, asked: m.AskCommit) -> m.Committed | m.NotCommitted:
        op = new_operation_id()

        async def attempt() -> None:
            point("daemon.before_commit")
            await self.catalog.commit(op, self.lease, asked.batches, asked.published)
            point("daemon.committed")

        try:
            await until_known(attempt)
        except (Refused, Unavailable, Unknown) as error:
            if isinstance(error, Fenced):
                self.fenced(self.lease)
            definite = not isinstance(error, Unknown)
            return m.NotCommitted(asked.id, error.code, str(error), definite=definite)
        return m.Committed(asked.id)


class _OutOfTurn(Exception):
    """The worker said what makes no sense now: it is broken, and ended."""


class _Overdue(Exception):
    """The run moved nothing for too long, or took too long in all."""


async def until_known(attempt: Callable[[], Awaitable[object]], tries: int = _COMMIT_TRIES) -> None:
    """Send the same operation until it is known to have happened or not (A5).

    Raises what the last try raised: ``Unknown`` once seen stays unknown until an answer comes, so
    a later ``Unavailable`` does not make it definite. A refusal ends it at once: the operation's id
    tells one that was carried out from one that was not.
    """
    unknown: Unknown | None = None
    for number in range(tries):
        try:
            await attempt()
        except Unknown as error:
            unknown = error
        except Unavailable as error:
            if number == tries - 1:
                raise unknown or error from None
        else:
            return
        await anyio.sleep(min(0.05 * 2**number, 2.0))
    assert unknown is not None
    raise unknown
