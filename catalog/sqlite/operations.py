"""What each mutating verb does inside its transaction: read records, call the rules, write back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from catalog import rules
from catalog.clock import Clock
from catalog.edits import Standing, apply_edit
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    Commit,
    Edit,
    EditAction,
    Finish,
    Holder,
    Lease,
    NotClaimed,
    PipelineState,
    Renewal,
    Retention,
    Run,
    StreamState,
)
from catalog.rules import Heartbeat
from catalog.sqlite.tables import Tables

ClaimPairs: TypeAlias = tuple[tuple[Claimed | None, NotClaimed | None], ...]
"""Each answer of a claim as one of two, since its JSON must say which it is."""


class Operations:
    """The verbs, over the tables of one open transaction."""

    def __init__(self, tables: Tables, clock: Clock) -> None:
        self._tables, self._clock = tables, clock

    # -- claim and renew --------------------------------------------------------------------------

    def claim(
        self,
        holder: Holder,
        candidates: Sequence[Candidate],
        ttl: float,
        limits: Mapping[str, int],
        dead: Collection[str],
    ) -> ClaimPairs:
        rules.check_candidates(candidates)
        tables = self._tables
        tables.write_heartbeat(rules.heartbeat(holder, self._clock, ttl))
        beats = {beat.holder.id: beat for beat in tables.heartbeats()}
        in_use = self._in_use(beats, dead) if limits else Counter[str]()
        answers: list[tuple[Claimed | None, NotClaimed | None]] = []
        for candidate in candidates:
            state = tables.pipeline(candidate.pipeline)
            takeable = rules.is_takeable(state, beats.get(state.holder), dead, self._clock)
            refusal = rules.refuse_claim(
                candidate, state, takeable=takeable, in_use=in_use, limits=limits
            )
            if refusal is not None:
                answers.append((None, refusal))
                continue
            in_use.update(candidate.connections)
            answers.append((self._acquire(candidate, state, holder, beats[holder.id]), None))
        return tuple(answers)

    def _in_use(self, beats: Mapping[str, Heartbeat], dead: Collection[str]) -> Counter[str]:
        """Open runs by connection, those left out whose lease may be taken."""
        return Counter(
            connection
            for run in self._tables.open_runs()
            if run.holder not in dead and not rules.is_lapsed(beats.get(run.holder), self._clock)
            for connection in run.connections
        )

    def _acquire(
        self, candidate: Candidate, state: PipelineState, holder: Holder, beat: Heartbeat
    ) -> Claimed:
        tables, now = self._tables, self._clock.wall_us()
        if state.holder:
            old = tables.run(state.epoch)
            assert old is not None
            state, closed = rules.interrupt(state, old, rules.taken_over(old, holder), now)
            tables.write_run(closed)
        epoch = tables.take_epochs(1)
        state, run = rules.open_run(candidate, state, holder, epoch, now)
        tables.write_run(run)
        state = self._write(state)
        return Claimed(
            Lease(state.name, epoch, holder.id),
            run,
            rules.seen(state, beat, self._clock),
            tuple(tables.streams(state.name).values()),
        )

    def renew(self, holder: Holder, held: Collection[Lease], ttl: float) -> Renewal:
        tables = self._tables
        states = {state.name: state for state in tables.held_by(holder.id)}
        lost, released = rules.reconcile(holder, held, states)
        tables.write_heartbeat(rules.heartbeat(holder, self._clock, ttl))
        for lease in released:
            run = tables.run(lease.epoch)
            assert run is not None
            state, closed = rules.interrupt(
                states[lease.pipeline], run, rules.UNKNOWN_TO_HOLDER, self._clock.wall_us()
            )
            tables.write_run(closed)
            self._write(state)
        return Renewal(lost, released)

    # -- commit and finish ------------------------------------------------------------------------

    def commit(
        self, lease: Lease, batches: Sequence[Batch], published: Mapping[str, int]
    ) -> tuple[Commit, ...]:
        tables, now = self._tables, self._clock.wall_us()
        state = tables.pipeline(lease.pipeline)
        rules.check_fence(lease, state)
        streams = self._published(lease.pipeline, published)
        commits = []
        for batch in batches:
            stream = self._stream(streams, lease.pipeline, batch.stream)
            last = tables.last_schema(lease.pipeline, batch.stream)
            done = rules.record_batch(lease, stream, last, batch, now)
            streams[batch.stream] = done.stream
            tables.write_commit(done.commit)
            if done.schema:
                tables.write_schema(lease.pipeline, batch.stream, done.schema)
            for decision in done.decisions:
                tables.write_decision(lease.pipeline, decision)
            if batch.replaces or batch.forgotten or done.files:
                tables.change_files(
                    lease.pipeline,
                    batch.stream,
                    clear=batch.replaces,
                    drop=batch.forgotten,
                    put=done.files,
                )
            commits.append(done.commit)
        for stream in streams.values():
            tables.write_stream(stream)
        run = tables.run(lease.epoch)
        assert run is not None
        state, run = rules.after_commit(state, run, batches)
        tables.write_run(run)
        self._write(state)
        return tuple(commits)

    def finish(self, lease: Lease, finish: Finish) -> Run:
        tables = self._tables
        state = tables.pipeline(lease.pipeline)
        rules.check_fence(lease, state)
        streams = self._published(lease.pipeline, dict(finish.published))
        for result in finish.streams:
            stream = self._stream(streams, lease.pipeline, result.stream)
            streams[result.stream] = rules.after_result(stream, result)
        for stream in streams.values():
            tables.write_stream(stream)
        previous = tables.previous_run(lease.pipeline, lease.epoch)
        opened = tables.run(lease.epoch)
        assert opened is not None
        run = rules.finished_run(opened, finish, previous, self._clock.wall_us())
        tables.write_run(run)
        if previous is not None and rules.folds(previous, finish):
            tables.drop_run(previous.epoch)
        self._write(rules.after_finish(state, run, finish))
        return run

    def _published(self, pipeline: str, marks: Mapping[str, int]) -> dict[str, StreamState]:
        """The known streams among ``marks``, their marks moved forward; not yet written."""
        found = {}
        for name, seq in marks.items():
            stream = self._tables.stream(pipeline, name)
            if stream is not None:
                found[name] = rules.mark_published(stream, seq)
        return found

    def _stream(self, streams: Mapping[str, StreamState], pipeline: str, name: str) -> StreamState:
        known = streams.get(name) or self._tables.stream(pipeline, name)
        return known or StreamState(pipeline, name)

    def _write(self, state: PipelineState) -> PipelineState:
        state = rules.touch(state, self._tables.take_change())
        self._tables.write_pipeline(state)
        return state

    # -- persons ----------------------------------------------------------------------------------

    def edit(self, by: str, why: str, action: EditAction) -> Edit:
        tables = self._tables
        state = tables.pipeline(action.pipeline)
        beat = tables.heartbeat(state.holder) if state.holder else None
        standing = Standing(
            rules.seen(state, beat, self._clock),
            tables.streams(state.name),
            tables.run(state.epoch) if state.holder else None,
        )
        done = apply_edit(by, why, action, standing, self._clock.wall_us())
        if done.stream:
            tables.write_stream(done.stream)
        if done.interrupted:
            tables.write_run(done.interrupted)
        if done.decision:
            tables.write_decision(state.name, done.decision)
        self._write(done.pipeline)
        return tables.write_edit(done.edit)

    # -- upkeep -----------------------------------------------------------------------------------

    def retain(self, keep: Retention) -> int:
        """Delete oldest first, at most ``limit`` rows in all; each step an indexed range."""
        tables, left = self._tables, keep.limit
        for sql, bound in (
            (_OLD_RUNS, keep.runs_before),
            (_OLD_COMMITS, keep.runs_before),
            (_OLD_EDITS, keep.runs_before),
            (_OLD_OPERATIONS, keep.operations_before),
        ):
            left -= tables.delete(sql, bound, left)
        leases = tables.leases()
        for beat in tables.heartbeats():
            if left and beat.holder.id not in leases and rules.is_lapsed(beat, self._clock):
                tables.drop_holder(beat.holder.id)
                left -= 1
        return keep.limit - left


_OLD_RUNS = """
delete from runs where epoch in (
    select r.epoch from runs r
    where r.outcome is not null and r.finished_at < ?1
      and exists (select 1 from runs n where n.pipeline = r.pipeline and n.epoch > r.epoch
                  and n.outcome is not null)
    order by r.finished_at limit ?2)
"""
_OLD_COMMITS = """
delete from commits where (pipeline, stream, seq) in (
    select c.pipeline, c.stream, c.seq from commits c
    join streams s on s.pipeline = c.pipeline and s.stream = c.stream
    where c.committed_at < ?1
      and c.seq <= s.body ->> '$.published'
      and exists (select 1 from commits n where n.pipeline = c.pipeline and n.stream = c.stream
                  and n.seq > c.seq)
      and not exists (select 1 from runs r where r.epoch = c.epoch)
    limit ?2)
"""
_OLD_EDITS = (
    "delete from edits where id in (select id from edits where at < ?1 order by at limit ?2)"
)
_OLD_OPERATIONS = """
delete from operations where id in (select id from operations where at < ?1 order by at limit ?2)
"""
