"""The in-memory catalog: the reference model of the port.

Simple above all: plain dicts, one transaction at a time, every rule out of ``catalog.rules`` and
``catalog.edits``. Each verb decides first and writes last, so that a refusal changes nothing.
Nothing survives the process; a restart is played by another handle on the same ``MemoryStore``.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import anyio
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from catalog import rules
from catalog.clock import Clock
from catalog.edits import Standing, apply_edit, told_of_rename
from catalog.errors import BadRequest
from catalog.records import (
    Batch,
    Candidate,
    CatalogStats,
    Check,
    ClaimAnswer,
    Claimed,
    Commit,
    Cursor,
    Decision,
    Edit,
    EditAction,
    FileEntry,
    Finish,
    Holder,
    HolderState,
    Lease,
    Micros,
    PipelineState,
    Rename,
    Renewal,
    Retention,
    Run,
    RunQuery,
    SchemaVersion,
    StreamState,
)

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
StreamKey = tuple[str, str]
"""Pipeline and stream."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What a carried out operation id answered (A5)."""

    verb: str
    answer: object
    at: Micros


@dataclass(slots=True, eq=False)
class MemoryStore:
    """The rows of one catalog, shared by the handles that are open on it."""

    id: str = field(default_factory=lambda: secrets.token_hex(16))
    epoch: int = 0
    """The one counter of the catalog (A1)."""
    change: int = 0
    edit: int = 0
    pipelines: dict[str, PipelineState] = field(default_factory=dict)
    streams: dict[StreamKey, StreamState] = field(default_factory=dict)
    runs: dict[int, Run] = field(default_factory=dict)
    commits: dict[tuple[str, str, int], Commit] = field(default_factory=dict)
    schemas: dict[StreamKey, tuple[SchemaVersion, ...]] = field(default_factory=dict)
    decisions: dict[StreamKey, tuple[Decision, ...]] = field(default_factory=dict)
    files: dict[StreamKey, dict[str, FileEntry]] = field(default_factory=dict)
    edits: dict[int, Edit] = field(default_factory=dict)
    holders: dict[str, rules.Heartbeat] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    changed_by: dict[MemoryCatalog, int] = field(default_factory=dict)
    """The last change that each handle made."""
    news: anyio.Event = field(default_factory=anyio.Event)
    """Set, and replaced, after each change."""


class MemoryCatalog:
    """One handle, that is, one process, on a ``MemoryStore``; implements ``catalog.port.Catalog``.

    Args:
        clock: Decides which leases have lapsed and stamps what is recorded.
        store: The rows; a handle without one makes its own.
    """

    def __init__(self, clock: Clock, store: MemoryStore | None = None) -> None:
        self._clock = clock
        self._store = store or MemoryStore()
        self._writes = 0

    @property
    def id(self) -> str:
        return self._store.id

    # -- reading -------------------------------------------------------------------------------

    async def pipeline(self, name: str) -> PipelineState:
        return self._seen(self._state(name))

    async def changed(self, after: int, limit: int = 1000) -> tuple[PipelineState, ...]:
        newer = (state for state in self._store.pipelines.values() if state.change > after)
        ordered = sorted(newer, key=lambda state: state.change)
        return tuple(self._seen(state) for state in ordered[:limit])

    async def wait_changed(self, after: int, timeout: float) -> bool:
        with anyio.move_on_after(timeout):
            while not self._others_changed(after):
                await self._store.news.wait()
        return self._others_changed(after)

    async def cursor(self, pipeline: str, stream: str) -> Cursor | None:
        return self._stream(pipeline, stream).cursor

    async def streams(self, pipeline: str) -> tuple[StreamState, ...]:
        return tuple(self._streams(pipeline).values())

    async def run(self, epoch: int) -> Run | None:
        return self._store.runs.get(epoch)

    async def runs(self, query: RunQuery) -> tuple[Run, ...]:
        found = [
            run
            for _, run in sorted(self._store.runs.items(), reverse=True)
            if query.pipeline in ("", run.pipeline)
            and query.outcome in (None, run.outcome)
            and (run.outcome is None or not query.open_only)
            and (query.below_epoch is None or run.epoch < query.below_epoch)
        ]
        return tuple(found[: query.limit])

    async def commits(
        self, pipeline: str, stream: str = "", *, unpublished: bool = False, limit: int = 100
    ) -> tuple[Commit, ...]:
        found = [
            replace(commit, published=self._is_published(commit))
            for commit in self._store.commits.values()
            if commit.pipeline == pipeline and stream in ("", commit.stream)
        ]
        found.sort(key=lambda commit: (-commit.epoch, -commit.seq, commit.stream))
        if unpublished:
            found = [commit for commit in found if not commit.published]
            found.sort(key=lambda commit: (commit.stream, commit.seq))
        return tuple(found[:limit])

    async def schemas(self, pipeline: str, stream: str) -> tuple[SchemaVersion, ...]:
        return self._store.schemas.get((pipeline, stream), ())

    async def decisions(self, pipeline: str, stream: str) -> tuple[Decision, ...]:
        return self._store.decisions.get((pipeline, stream), ())

    async def files(
        self, pipeline: str, stream: str, *, after: str = "", limit: int = 10_000
    ) -> tuple[FileEntry, ...]:
        ledger = self._store.files.get((pipeline, stream), {})
        return tuple(ledger[path] for path in sorted(ledger) if path > after)[:limit]

    async def edits(self, pipeline: str = "", *, limit: int = 100) -> tuple[Edit, ...]:
        newest_first = reversed(self._store.edits.values())
        found = [edit for edit in newest_first if pipeline in ("", edit.pipeline)]
        return tuple(found[:limit])

    async def holders(self) -> tuple[HolderState, ...]:
        leases = Counter(state.holder for state in self._store.pipelines.values())
        return tuple(
            HolderState(
                beat.holder,
                beat.boot_id,
                beat.expires_at,
                lapsed=rules.is_lapsed(beat, self._clock),
                leases=leases[holder],
            )
            for holder, beat in sorted(self._store.holders.items())
        )

    async def stats(self) -> CatalogStats:
        return CatalogStats(
            backend="memory",
            size_bytes=0,
            limit_bytes=0,
            pipelines=len(self._store.pipelines),
            open_runs=sum(1 for run in self._store.runs.values() if run.outcome is None),
            writes=self._writes,
            groups=self._writes,
        )

    # -- under a lease --------------------------------------------------------------------------

    async def claim(
        self,
        op: str,
        holder: Holder,
        candidates: Sequence[Candidate],
        *,
        ttl: float,
        limits: Mapping[str, int],
        dead: Collection[str] = (),
    ) -> tuple[ClaimAnswer, ...]:
        def transaction() -> tuple[ClaimAnswer, ...]:
            rules.check_candidates(candidates)
            self._store.holders[holder.id] = rules.heartbeat(holder, self._clock, ttl)
            in_use = self._connections_in_use(dead)
            answers: list[ClaimAnswer] = []
            for candidate in candidates:
                state = self._state(candidate.pipeline)
                takeable = self._is_takeable(state, dead)
                refusal = rules.refuse_claim(
                    candidate, state, takeable=takeable, in_use=in_use, limits=limits
                )
                if refusal is None:
                    in_use.update(candidate.connections)
                answers.append(refusal or self._claim(holder, candidate, state))
            return tuple(answers)

        return await self._once(op, "claim", transaction)

    def _claim(self, holder: Holder, candidate: Candidate, state: PipelineState) -> Claimed:
        now = self._clock.wall_us()
        if open_run := self._open_run(state):
            why = rules.taken_over(open_run, holder)
            state = self._interrupt(state, open_run, why)
        self._store.epoch += 1
        state, run = rules.open_run(candidate, state, holder, self._store.epoch, now)
        self._store.runs[run.epoch] = run
        return Claimed(
            Lease(state.name, run.epoch, holder.id),
            run,
            self._seen(self._write(state)),
            tuple(self._streams(state.name).values()),
        )

    async def renew(
        self, op: str, holder: Holder, held: Collection[Lease], *, ttl: float
    ) -> Renewal:
        def transaction() -> Renewal:
            lost, released = rules.reconcile(holder, held, self._store.pipelines)
            self._store.holders[holder.id] = rules.heartbeat(holder, self._clock, ttl)
            for lease in released:
                state = self._state(lease.pipeline)
                run = self._store.runs[lease.epoch]
                self._write(self._interrupt(state, run, rules.UNKNOWN_TO_HOLDER))
            return Renewal(lost, released)

        return await self._once(op, "renew", transaction)

    async def commit(
        self, op: str, lease: Lease, batches: Sequence[Batch], published: Mapping[str, int]
    ) -> tuple[Commit, ...]:
        def transaction() -> tuple[Commit, ...]:
            state = self._state(lease.pipeline)
            rules.check_fence(lease, state)
            streams = self._published(lease.pipeline, published)
            schemas: dict[str, SchemaVersion] = {}
            recorded = []
            for batch in batches:
                name = batch.stream
                stream = streams.get(name) or self._stream(lease.pipeline, name)
                last = schemas.get(name) or self._last_schema(lease.pipeline, name)
                one = rules.record_batch(lease, stream, last, batch, self._clock.wall_us())
                streams[name] = one.stream
                if one.schema:
                    schemas[name] = one.schema
                recorded.append(one)
            # All is checked: from here on nothing can fail.
            self._write_streams(streams.values())
            for batch, one in zip(batches, recorded, strict=True):
                self._write_batch(batch, one)
            run = self._store.runs[lease.epoch]
            state, self._store.runs[lease.epoch] = rules.after_commit(state, run, batches)
            self._write(state)
            return tuple(one.commit for one in recorded)

        return await self._once(op, "commit", transaction)

    def _write_batch(self, batch: Batch, one: rules.Recorded) -> None:
        store, commit = self._store, one.commit
        key = (commit.pipeline, commit.stream)
        store.commits[(*key, commit.seq)] = commit
        if one.schema:
            store.schemas[key] = (*store.schemas.get(key, ()), one.schema)
        store.decisions[key] = (*store.decisions.get(key, ()), *one.decisions)
        ledger = {} if batch.replaces else store.files.setdefault(key, {})
        for path in batch.forgotten:
            ledger.pop(path, None)
        ledger.update({entry.path: entry for entry in one.files})
        store.files[key] = ledger

    async def finish(self, op: str, lease: Lease, finish: Finish) -> Run:
        def transaction() -> Run:
            state = self._state(lease.pipeline)
            rules.check_fence(lease, state)
            streams = self._published(lease.pipeline, dict(finish.published))
            for result in finish.streams:
                stream = streams.get(result.stream) or self._stream(state.name, result.stream)
                streams[result.stream] = rules.after_result(stream, result)
            self._write_streams(streams.values())
            previous = self._previous_run(lease)
            open_run, now = self._store.runs[lease.epoch], self._clock.wall_us()
            run = rules.finished_run(open_run, finish, previous, now)
            self._store.runs[lease.epoch] = run
            if rules.folds(previous, finish):
                del self._store.runs[previous.epoch]
            self._write(rules.after_finish(state, run, finish))
            return run

        return await self._once(op, "finish", transaction)

    # -- persons --------------------------------------------------------------------------------

    async def edit(self, op: str, by: str, why: str, action: EditAction) -> Edit:
        def transaction() -> Edit:
            state = self._state(action.pipeline)
            was = action.was if isinstance(action, Rename) else ""
            standing = self._standing(state, self._standing(self._state(was)) if was else None)
            done = apply_edit(by, why, action, standing, self._clock.wall_us())
            if done.stream:
                self._write_streams([done.stream])
                if done.forget is not None:
                    self._forget_files(done.stream, *done.forget)
            if done.interrupted:
                self._store.runs[done.interrupted.epoch] = done.interrupted
            if done.decision:
                key = (state.name, done.decision.stream)
                earlier = self._store.decisions.get(key, ())
                self._store.decisions[key] = (*earlier, done.decision)
            if done.vacated and isinstance(action, Rename):
                for _, other in sorted(self._store.pipelines.items()):
                    if told := told_of_rename(other, action):
                        self._write(told)
                self._hand_over(done.vacated, done.pipeline.name)
            self._write(done.pipeline)
            self._store.edit += 1
            edit = replace(done.edit, id=self._store.edit)
            self._store.edits[edit.id] = edit
            return edit

        return await self._once(op, "edit", transaction)

    def _forget_files(self, stream: StreamState, after: int, later: int) -> None:
        key = (stream.pipeline, stream.stream)
        self._store.files[key] = {
            path: entry
            for path, entry in self._store.files.get(key, {}).items()
            if entry.seq <= after and entry.epoch <= later
        }

    def _standing(self, state: PipelineState, former: Standing | None = None) -> Standing:
        return Standing(self._seen(state), self._streams(state.name), self._open_run(state), former)

    def _hand_over(self, vacated: PipelineState, name: str) -> None:
        """What is recorded by the vacated name is recorded by ``name``."""
        store, was = self._store, vacated.name
        self._write(vacated)
        for epoch, run in store.runs.items():
            if run.pipeline == was:
                store.runs[epoch] = replace(run, pipeline=name)
        for key in [key for key in store.streams if key[0] == name]:
            del store.streams[key]
        rows: Any
        for rows in (store.streams, store.commits, store.schemas, store.decisions, store.files):
            for key in [key for key in rows if key[0] == was]:
                row = rows.pop(key)
                is_record = isinstance(row, StreamState | Commit)
                rows[name, *key[1:]] = replace(row, pipeline=name) if is_record else row

    # -- upkeep ---------------------------------------------------------------------------------

    async def retain(self, op: str, keep: Retention) -> int:
        def transaction() -> int:
            store, left = self._store, keep.limit

            def drop(table: dict[K, V], keys: list[K]) -> None:
                nonlocal left
                for key in keys[:left]:
                    del table[key]
                    left -= 1

            drop(store.runs, self._old_runs(keep))
            # Asked once the runs are gone: a commit may go when its run has gone.
            drop(store.commits, self._old_commits(keep))
            drop(store.edits, self._old_edits(keep))
            drop(store.operations, self._old_operations(keep))
            drop(store.holders, self._gone_holders())
            return keep.limit - left

        return await self._once(op, "retain", transaction)

    def _old_runs(self, keep: Retention) -> list[int]:
        finished = sorted(run.epoch for run in self._store.runs.values() if run.outcome)
        last = {self._store.runs[epoch].pipeline: epoch for epoch in finished}
        return [
            epoch
            for epoch in finished
            if epoch not in last.values()
            and (self._store.runs[epoch].finished_at or 0) < keep.runs_before
        ]

    def _old_commits(self, keep: Retention) -> list[tuple[str, str, int]]:
        before = min(keep.runs_before, keep.operations_before)
        last = {commit[:2]: commit for commit in self._store.commits}
        stays: set[tuple[str, str]] = set()
        found = []
        for key, commit in self._store.commits.items():
            if commit.committed_at >= before:
                break
            if (
                key[:2] in stays
                or key == last[key[:2]]
                or not self._is_published(commit)
                or commit.epoch in self._store.runs
            ):
                stays.add(key[:2])
            else:
                found.append(key)
        return found

    def _old_edits(self, keep: Retention) -> list[int]:
        return [edit.id for edit in self._store.edits.values() if edit.at < keep.runs_before]

    def _old_operations(self, keep: Retention) -> list[str]:
        done = self._store.operations.items()
        return [op for op, operation in done if operation.at < keep.operations_before]

    def _gone_holders(self) -> list[str]:
        busy = {state.holder for state in self._store.pipelines.values()}
        beats = self._store.holders.items()
        return [
            holder
            for holder, beat in beats
            if holder not in busy and rules.is_lapsed(beat, self._clock)
        ]

    async def check(self) -> Check:
        problems = []
        for state in self._store.pipelines.values():
            run = self._store.runs.get(state.epoch)
            is_open = run is not None and run.outcome is None
            if bool(state.holder) != is_open:
                problems.append(f"pipeline {state.name!r}: its lease and its run do not agree")
            if state.epoch > self._store.epoch:
                problems.append(f"pipeline {state.name!r}: epoch {state.epoch} was never issued")
            held = tuple(s.stream for s in self._streams(state.name).values() if s.hold)
            if held != state.held:
                problems.append(f"pipeline {state.name!r}: held is {state.held}, not {held}")
        for stream in self._store.streams.values():
            if stream.published > stream.seq:
                problems.append(f"{stream.pipeline}.{stream.stream}: published past its last batch")
        return Check(tuple(problems))

    async def aclose(self) -> None:
        """Nothing is queued and nothing is open."""

    # -- rows -----------------------------------------------------------------------------------

    async def _once(self, op: str, verb: str, transaction: Callable[[], T]) -> T:
        """Carry out ``transaction`` unless ``op`` was carried out before (A5)."""
        await checkpoint()
        store, before = self._store, self._store.change
        if done := store.operations.get(op):
            if done.verb != verb:
                raise BadRequest(f"operation {op} was a {done.verb}; a {verb} needs its own id")
            return cast(T, done.answer)
        answer = transaction()
        store.operations[op] = Operation(verb, answer, self._clock.wall_us())
        self._writes += 1
        if store.change > before:
            store.changed_by[self] = store.change
            store.news.set()
            store.news = anyio.Event()
        return answer

    def _others_changed(self, after: int) -> bool:
        others = (at for handle, at in self._store.changed_by.items() if handle is not self)
        return max(others, default=0) > after

    def _state(self, name: str) -> PipelineState:
        return self._store.pipelines.get(name) or PipelineState(name)

    def _seen(self, state: PipelineState) -> PipelineState:
        return rules.seen(state, self._store.holders.get(state.holder), self._clock)

    def _write(self, state: PipelineState) -> PipelineState:
        self._store.change += 1
        written = rules.touch(state, self._store.change)
        self._store.pipelines[state.name] = written
        return written

    def _stream(self, pipeline: str, stream: str) -> StreamState:
        return self._store.streams.get((pipeline, stream)) or StreamState(pipeline, stream)

    def _streams(self, pipeline: str) -> dict[str, StreamState]:
        """By name, in its order."""
        known = sorted(self._store.streams.items())
        return {name: state for (of, name), state in known if of == pipeline}

    def _write_streams(self, streams: Iterable[StreamState]) -> None:
        for stream in streams:
            self._store.streams[(stream.pipeline, stream.stream)] = stream

    def _published(self, pipeline: str, marks: Mapping[str, int]) -> dict[str, StreamState]:
        """The known streams among ``marks``, their marks moved forward; not yet written."""
        known = self._streams(pipeline)
        return {
            name: rules.mark_published(known[name], seq, partial(self._committed_by, known[name]))
            for name, seq in marks.items()
            if name in known
        }

    def _committed_by(self, stream: StreamState, seq: int) -> int:
        return self._store.commits[stream.pipeline, stream.stream, seq].epoch

    def _is_published(self, commit: Commit) -> bool:
        return commit.seq <= self._stream(commit.pipeline, commit.stream).published

    def _last_schema(self, pipeline: str, stream: str) -> SchemaVersion | None:
        versions = self._store.schemas.get((pipeline, stream), ())
        return versions[-1] if versions else None

    def _open_run(self, state: PipelineState) -> Run | None:
        """A pipeline has an open run exactly while its lease is held (A2)."""
        return self._store.runs[state.epoch] if state.holder else None

    def _previous_run(self, lease: Lease) -> Run | None:
        epochs = [
            run.epoch
            for run in self._store.runs.values()
            if run.pipeline == lease.pipeline and run.epoch < lease.epoch
        ]
        return self._store.runs[max(epochs)] if epochs else None

    def _interrupt(self, state: PipelineState, run: Run, why: str) -> PipelineState:
        state, self._store.runs[run.epoch] = rules.interrupt(state, run, why, self._clock.wall_us())
        return state

    def _is_takeable(self, state: PipelineState, dead: Collection[str]) -> bool:
        return rules.is_takeable(state, self._store.holders.get(state.holder), dead, self._clock)

    def _connections_in_use(self, dead: Collection[str]) -> Counter[str]:
        """Open runs by connection, those left out whose lease may be taken."""
        return Counter(
            connection
            for state in self._store.pipelines.values()
            if not self._is_takeable(state, dead)
            for connection in self._store.runs[state.epoch].connections
        )
