"""The catalog's rules as pure functions over records, shared by every backend.

A backend reads records, calls a rule, and writes the changed records back, all in one transaction.
Every rule validates before it answers: one that raises has changed nothing. What a person's edit
does is in ``catalog.edits``.

Stored and seen: a backend stores a ``PipelineState`` with ``lease_expires_at`` and ``lapsed`` at
their defaults; ``seen`` fills them in from the holder's heartbeat when it is read. Every verb that
changes anything of a pipeline passes its record through ``touch`` once before it is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from msgspec.structs import replace

from catalog.clock import Clock
from catalog.errors import (
    BadRequest,
    Conflict,
    DefinitionChanged,
    Fenced,
    SchemaConflict,
    StreamHeld,
    Unpublished,
    WentBack,
)
from catalog.records import (
    MAX_UNPUBLISHED,
    PIPELINE_SCOPE,
    Batch,
    Candidate,
    Commit,
    Cursor,
    CursorKind,
    Decision,
    FileEntry,
    Finish,
    Holder,
    Lease,
    Mark,
    Micros,
    NotClaimed,
    Outcome,
    PipelineState,
    Run,
    SchemaVersion,
    StreamResult,
    StreamState,
    TriggerKind,
)

UNCONSUMED = frozenset({Outcome.INTERRUPTED, Outcome.FENCED})
"""Outcomes that leave the run's trigger standing, so that it is run again (A3)."""
WAKES_NO_OTHERS = UNCONSUMED | {Outcome.FAILED}
"""Outcomes after which ``after`` pipelines are not woken."""

# -- time and holders ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A holder's stored row: its leases live until ``expires_ns`` of boot ``boot_id`` (A6)."""

    holder: Holder
    boot_id: str
    expires_ns: int
    expires_at: Micros
    """The same moment by the wall clock, for display."""


def heartbeat(holder: Holder, clock: Clock, ttl: float) -> Heartbeat:
    """The row that ``claim`` and ``renew`` write: alive for ``ttl`` seconds from now."""
    return Heartbeat(
        holder,
        clock.boot_id,
        clock.boot_ns() + round(ttl * 1e9),
        clock.wall_us() + round(ttl * 1e6),
    )


def is_lapsed(beat: Heartbeat | None, clock: Clock) -> bool:
    """Whether a holder's time is over: by boot time, or because its boot is gone (A6)."""
    return beat is None or beat.boot_id != clock.boot_id or beat.expires_ns <= clock.boot_ns()


def is_takeable(
    state: PipelineState, beat: Heartbeat | None, dead: Collection[str], clock: Clock
) -> bool:
    """Whether ``claim`` may take the lease: free, its holder dead (A7), or lapsed (A6)."""
    return not state.holder or state.holder in dead or is_lapsed(beat, clock)


def seen(state: PipelineState, beat: Heartbeat | None, clock: Clock) -> PipelineState:
    """A stored record as a reader sees it; ``beat`` is of ``state.holder``."""
    if not state.holder:
        return state
    expires_at = beat.expires_at if beat else None
    return replace(state, lease_expires_at=expires_at, lapsed=is_lapsed(beat, clock))


def touch(state: PipelineState, change: int) -> PipelineState:
    """The record as it is to be written: one version on, at ``change`` in the catalog's order."""
    return replace(state, version=state.version + 1, change=change)


# -- claim and renew -----------------------------------------------------------------------------


def check_candidates(candidates: Sequence[Candidate]) -> None:
    """Refuse a claim that names one pipeline twice: ``BadRequest``."""
    names = Counter(candidate.pipeline for candidate in candidates)
    if doubles := sorted(name for name, times in names.items() if times > 1):
        raise BadRequest(
            f"claim names {', '.join(map(repr, doubles))} more than once; "
            "name each pipeline once, since it has only one lease"
        )


def refuse_claim(
    candidate: Candidate,
    state: PipelineState,
    *,
    takeable: bool,
    in_use: Mapping[str, int],
    limits: Mapping[str, int],
) -> NotClaimed | None:
    """Why a candidate gets no lease; None: it does (A3).

    ``in_use`` counts, by connection, the open runs whose lease is not takeable, those claimed
    earlier in the same call included. A run whose holder is gone does not count: nothing would ever
    close it if its pipeline is paused, and its connection would be blocked for good.
    """
    if candidate.version != state.version:
        return NotClaimed(candidate.pipeline, "changed")
    if not takeable:
        return NotClaimed(candidate.pipeline, "leased", holder=state.holder)
    for connection in candidate.connections:
        if connection in limits and in_use.get(connection, 0) >= limits[connection]:
            return NotClaimed(candidate.pipeline, "connection_full", connection=connection)
    return None


def open_run(
    candidate: Candidate, state: PipelineState, holder: Holder, epoch: int, now: Micros
) -> tuple[PipelineState, Run]:
    """Acquire the lease and open its run. An older open run was passed to ``interrupt`` before."""
    return replace(state, epoch=epoch, holder=holder.id), new_run(candidate, holder, epoch, now)


def new_run(candidate: Candidate, holder: Holder, epoch: int, now: Micros) -> Run:
    """The run that a claim opens."""
    return Run(
        epoch,
        candidate.pipeline,
        holder.id,
        candidate.trigger,
        candidate.reason,
        now,
        candidate.connections,
    )


def interrupt(state: PipelineState, run: Run, why: str, now: Micros) -> tuple[PipelineState, Run]:
    """Close an open run as ``interrupted`` and free its lease; its trigger stays (A2, A3)."""
    closed = replace(run, outcome=Outcome.INTERRUPTED, reason=why, finished_at=now)
    return _ended(replace(state, holder=""), closed), closed


def taken_over(run: Run, by: Holder) -> str:
    """The reason of a run that ``claim`` interrupts."""
    return (
        f"holder {run.holder} stopped renewing its lease; holder {by.id} on {by.host} "
        f"(pid {by.pid}) took over"
    )


UNKNOWN_TO_HOLDER = "its holder did not know of this run: the answer to its claim was lost"
"""The reason of a run that ``renew`` interrupts (A4)."""


def reconcile(
    holder: Holder, named: Collection[Lease], states: Mapping[str, PipelineState]
) -> tuple[tuple[Lease, ...], tuple[Lease, ...]]:
    """What ``renew`` finds: leases named but lost, leases held but not named (A4), sorted.

    ``states`` holds at least the pipelines named and those that ``holder`` holds.
    """
    held = {
        Lease(state.name, state.epoch, state.holder)
        for state in states.values()
        if state.holder == holder.id
    }

    def by_name(lease: Lease) -> tuple[str, int, str]:
        return lease.pipeline, lease.epoch, lease.holder

    lost = sorted(set(named) - held, key=by_name)
    released = sorted(held - set(named), key=by_name)
    return tuple(lost), tuple(released)


# -- commit --------------------------------------------------------------------------------------


def check_fence(lease: Lease, state: PipelineState) -> None:
    """Raise ``Fenced`` unless the lease is the pipeline's current one (rule 1)."""
    if state.epoch != lease.epoch or state.holder != lease.holder or not state.holder:
        raise Fenced(lease.pipeline, lease.epoch, state.epoch if state.holder else None)


def mark_published(
    stream: StreamState, seq: int, committed_by: Callable[[int], int]
) -> StreamState:
    """Move the published mark forward: never back, never above the last commit (B5).

    ``committed_by``: which run committed a batch that was not published yet.
    """
    mark = min(seq, stream.seq)
    if mark <= stream.published:
        return stream
    by = stream.committed_by if mark == stream.seq else committed_by(mark)
    return replace(stream, published=mark, published_by=max(stream.published_by, by))


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one batch changes: the rows to write."""

    stream: StreamState
    commit: Commit
    schema: SchemaVersion | None
    """A version to add; None: the stream's last is still the one."""
    decisions: tuple[Decision, ...]
    files: tuple[FileEntry, ...]
    """Ledger entries to set, after ``replaces`` emptied it and ``forgotten`` was dropped."""


def check_batch(stream: StreamState, last_schema: SchemaVersion | None, batch: Batch) -> None:
    """Every refusal of ``Catalog.commit`` but ``Fenced`` and ``Full`` (B1, B6, C4, F, rule 4)."""
    where = f"{stream.pipeline}.{stream.stream}"
    if (batch.receipt == "") != (batch.stream == PIPELINE_SCOPE):
        raise BadRequest(
            f"{where}: a batch has a receipt unless it moves the pipeline's cursor alone "
            f"(stream {PIPELINE_SCOPE!r}), which has none"
        )
    for decision in batch.decisions:
        if decision.stream != batch.stream:
            raise BadRequest(f"{where}: a decision of stream {decision.stream!r} came with it")
    if stream.hold:
        raise StreamHeld(f"{where} waits for an answer: {stream.hold.reason}")
    if batch.follows != stream.seq:
        raise Conflict(
            f"{where}: the batch follows seq {batch.follows}, "
            f"but the last committed one is {stream.seq}"
        )
    if stream.seq - stream.published >= MAX_UNPUBLISHED:
        raise Unpublished(
            f"{where}: {MAX_UNPUBLISHED} committed batches wait to be published; publish first"
        )
    _check_schema(where, stream, last_schema, batch.schema)
    if batch.cursor and stream.cursor and not batch.replaces:
        _check_cursor(where, stream.cursor, batch.cursor)


def record_batch(
    lease: Lease,
    stream: StreamState,
    last_schema: SchemaVersion | None,
    batch: Batch,
    now: Micros,
) -> Recorded:
    """Check one batch and say what it changes. Batches of one stream are recorded in order."""
    check_batch(stream, last_schema, batch)
    seq = stream.seq + 1
    version = batch.schema.version if batch.schema else stream.schema_version
    is_new = batch.schema is not None and version > stream.schema_version
    after = replace(
        stream,
        seq=seq,
        # A batch without a receipt has nothing to publish, so nothing waits for it.
        published=stream.published if batch.receipt else seq,
        committed_by=lease.epoch,
        published_by=stream.published_by if batch.receipt else lease.epoch,
        cursor=batch.cursor or stream.cursor,
        schema_version=version,
        directive="" if batch.replaces and stream.directive == "refresh" else stream.directive,
        ledger_from=seq if batch.replaces else stream.ledger_from,
        data_at=batch.data_at if batch.replaces else later(stream.data_at, batch.data_at),
        rows=stream.rows + batch.rows,
    )
    commit = Commit(
        pipeline=lease.pipeline,
        stream=batch.stream,
        seq=seq,
        epoch=lease.epoch,
        receipt=batch.receipt,
        rows=batch.rows,
        bytes=batch.bytes,
        rejected=batch.rejected,
        schema_version=version,
        committed_at=now,
        cursor=batch.cursor,
        published=after.published >= seq,
    )
    schema = (
        replace(batch.schema, created_at=now, epoch=lease.epoch)
        if batch.schema and is_new
        else None
    )
    decisions = tuple(replace(decision, at=now) for decision in batch.decisions)
    files = tuple(
        entry
        if 0 < entry.seq <= stream.seq and not batch.replaces
        else replace(entry, seq=seq, epoch=lease.epoch)
        for entry in batch.files
    )
    return Recorded(after, commit, schema, decisions, files)


def after_commit(
    state: PipelineState, run: Run, batches: Sequence[Batch]
) -> tuple[PipelineState, Run]:
    """Count what was committed on the pipeline and on its open run."""
    rows = sum(batch.rows for batch in batches)
    rejected = sum(batch.rejected for batch in batches)
    data_at = state.data_at
    for batch in batches:
        data_at = later(data_at, batch.data_at)
    return (
        replace(state, rows=state.rows + rows, rejected=state.rejected + rejected, data_at=data_at),
        replace(
            run,
            rows=run.rows + rows,
            bytes=run.bytes + sum(batch.bytes for batch in batches),
            rejected=run.rejected + rejected,
        ),
    )


def _check_schema(
    where: str, stream: StreamState, last: SchemaVersion | None, schema: SchemaVersion | None
) -> None:
    if schema is None or schema.version == stream.schema_version + 1:
        return
    if schema.version != stream.schema_version or last is None:
        raise SchemaConflict(
            f"{where}: schema version {schema.version} does not follow the last one, "
            f"{stream.schema_version}"
        )
    if (schema.fingerprint, schema.body) != (last.fingerprint, last.body):
        raise SchemaConflict(
            f"{where}: schema version {schema.version} is recorded with fingerprint "
            f"{last.fingerprint}, the batch shows {schema.fingerprint} or another body"
        )


def _check_cursor(where: str, old: Cursor, new: Cursor) -> None:
    for what, before, after in (
        ("kind", old.kind.value, new.kind.value),
        ("definition", old.definition, new.definition),
        ("tag", old.position.tag, new.position.tag),
    ):
        if before != after:
            raise DefinitionChanged(
                f"{where}: the cursor's {what} is {before!r}, the batch shows {after!r}"
            )
    if new.kind is CursorKind.MONOTONIC and new.position.data < old.position.data:
        raise WentBack(
            f"{where}: the cursor stands at {old.position.text}, "
            f"the batch would move it back to {new.position.text}"
        )


# -- finish --------------------------------------------------------------------------------------


def finished_run(run: Run, finish: Finish, previous: Run | None, now: Micros) -> Run:
    """The run's final row. ``previous``: the pipeline's newest earlier run, if any.

    If ``folds(previous, finish)``, the row stands for the previous ones too, and the backend
    removes ``previous`` (A9).
    """
    closed = replace(
        run,
        outcome=finish.outcome,
        reason=finish.reason,
        error=finish.error,
        streams=finish.streams,
        finished_at=now,
    )
    if not folds(previous, finish):
        return closed
    first = previous.started_at if previous.first_started_at is None else previous.first_started_at
    return replace(closed, count=previous.count + 1, first_started_at=first)


def folds(previous: Run | None, finish: Finish) -> TypeGuard[Run]:
    """Whether the previous run's row goes into this one's: both brought nothing new (A9)."""
    nothing = Outcome.NOTHING_NEW
    return previous is not None and previous.outcome is nothing and finish.outcome is nothing


def after_finish(state: PipelineState, run: Run, finish: Finish) -> PipelineState:
    """The pipeline once ``run`` (from ``finished_run``) is closed and its lease released."""
    held = {*state.held, *(result.stream for result in finish.streams if result.hold)}
    state = _ended(replace(state, holder="", held=tuple(sorted(held))), run)
    if finish.park:
        state = replace(state, parked=Mark(by="daemon", at=run.finished_at or 0, why=finish.park))
    match finish.outcome:
        case Outcome.FAILED:
            state = replace(state, failures=state.failures + 1)
        case Outcome.SUCCEEDED | Outcome.NOTHING_NEW | Outcome.HELD:
            state = replace(state, failures=0)
        case _:
            pass
    if finish.outcome in (Outcome.SUCCEEDED, Outcome.NOTHING_NEW):
        state = replace(state, last_success_at=run.finished_at)
    if finish.outcome not in WAKES_NO_OTHERS:
        state = replace(state, news=state.rows)
    if finish.outcome in UNCONSUMED:
        return state
    retry_at, retry_streams = _retry(state, run, finish)
    return replace(
        _consume(state, run),
        cancel=0 if state.cancel == run.epoch else state.cancel,
        retry_at=retry_at,
        retry_streams=retry_streams,
    )


def _retry(state: PipelineState, run: Run, finish: Finish) -> tuple[Micros | None, tuple[str, ...]]:
    """When what is tried again, and which streams (none: all): those of this run, and those that
    waited for it before and were no part of it."""
    ran, waited = set(run.trigger.streams), set(state.retry_streams)
    if state.retry_at is None or not ran or (waited and waited <= ran):
        return finish.retry_at, finish.retry_streams
    if finish.retry_at is None:
        return state.retry_at, tuple(sorted(waited - ran))
    all_of_them = not waited or not finish.retry_streams
    streams = set() if all_of_them else {*finish.retry_streams, *(waited - ran)}
    return max(finish.retry_at, state.retry_at), tuple(sorted(streams))


def after_result(stream: StreamState, result: StreamResult) -> StreamState:
    """The stream once its part of the run is recorded."""
    adopted = result.adopted and stream.directive == "adopt"
    return replace(
        stream,
        last_outcome=result.outcome,
        last_reason=result.reason,
        hold=result.hold or stream.hold,
        directive="" if adopted else stream.directive,
        seen="" if adopted else stream.seen,
        published_by=max(stream.published_by, result.marked_by if adopted else 0),
    )


def _consume(state: PipelineState, run: Run) -> PipelineState:
    trigger = run.trigger
    match trigger.kind:
        case TriggerKind.TICK:
            return replace(state, tick=later(state.tick, trigger.tick))
        case TriggerKind.REQUEST:
            answered = state.request is not None and state.request.id == trigger.request
            return replace(state, request=None if answered else state.request)
        case TriggerKind.AFTER:
            known = dict(state.after_seen)
            for name, news in trigger.news:
                known[name] = max(news, known.get(name, news))
            return replace(state, after_seen=tuple(sorted(known.items())))
        case TriggerKind.RETRY:
            return state


def _ended(state: PipelineState, run: Run) -> PipelineState:
    return replace(
        state,
        last_outcome=run.outcome,
        last_reason=run.reason,
        last_epoch=run.epoch,
        last_started_at=run.started_at,
        last_finished_at=run.finished_at,
    )


def later(one: Micros | None, other: Micros | None) -> Micros | None:
    """Of two moments, either of which may not be there, the later one."""
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)
