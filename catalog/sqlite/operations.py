"""What each mutating verb does inside its transaction: read records, call the rules, write back.

Each verb returns its answer and the same answer encoded, to be given again to the same operation
id (A5). What is dispatched and committed most often goes by rows and counts where the rules'
records would only be read to be written back; what is decided, the rules decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgspec

from catalog import rules
from catalog.clock import Clock
from catalog.edits import Standing, apply_edit, told_of_rename
from catalog.records import (
    Candidate,
    ClaimAnswer,
    Claimed,
    Commit,
    Edit,
    EditAction,
    Finish,
    Holder,
    Lease,
    NotClaimed,
    Outcome,
    PipelineState,
    Rename,
    Renewal,
    Retention,
    Run,
    StreamState,
)
from catalog.sqlite.committing import Commits, Committed, Request
from catalog.sqlite.retaining import Old
from catalog.sqlite.rows import (
    EPOCH,
    HOLDER,
    NAME,
    VERSION,
    Row,
    pipeline_of,
    pipeline_row,
    run_of,
    run_row,
    stream_of,
)
from catalog.sqlite.tables import Tables

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode

ClaimedRows: TypeAlias = tuple[Row, Row, int, list[Row]]
"""Run, pipeline, the lease's end, streams."""


class Operations:
    """The verbs, over the tables of one open transaction."""

    def __init__(self, tables: Tables, clock: Clock) -> None:
        self._tables, self._clock = tables, clock

    def begin(self) -> None:
        """A new transaction has begun: what was known of the last one may be another's now."""
        self._change: int | None = None
        self._commit: int | None = None

    def _next_change(self) -> int:
        # Asked once a transaction. A number taken by an operation that was rolled back is left out.
        if self._change is None:
            self._change = self._tables.last_change()
        self._change += 1
        return self._change

    def _next_commit(self) -> int:
        if self._commit is None:
            self._commit = self._tables.last_commit()
        self._commit += 1
        return self._commit

    def _write(self, state: PipelineState) -> None:
        self._tables.write_pipeline(rules.touch(state, self._next_change()))

    # -- claim and renew --------------------------------------------------------------------------

    def claim(
        self,
        holder: Holder,
        candidates: Sequence[Candidate],
        ttl: float,
        limits: Mapping[str, int],
        dead: Collection[str],
    ) -> tuple[tuple[ClaimAnswer, ...], bytes]:
        rules.check_candidates(candidates)
        tables, now = self._tables, self._clock.wall_us()
        beat = rules.heartbeat(holder, self._clock, ttl)
        tables.write_heartbeat(beat)
        beats = {beat.holder.id: beat for beat in tables.heartbeats()}
        lapsed = {name for name, b in beats.items() if rules.is_lapsed(b, self._clock)}
        alive = beats.keys() - lapsed - set(dead)
        in_use = self._in_use(alive) if limits else Counter[str]()
        names = [candidate.pipeline for candidate in candidates]
        rows, streams = tables.pipeline_rows(names), tables.stream_rows_of(names)
        epoch = tables.last_epoch() + 1
        is_lapsed = rules.is_lapsed(beat, self._clock)
        answers: list[ClaimAnswer] = []
        opened: list[ClaimedRows] = []
        coded: list[Row] = []
        for candidate in candidates:
            row = rows.get(candidate.pipeline) or pipeline_row(PipelineState(candidate.pipeline))
            refusal = _refusal(candidate, row, alive, in_use, limits)
            if refusal is not None:
                answers.append(refusal)
                coded.append((refusal.pipeline, refusal.why, refusal.holder, refusal.connection))
                continue
            in_use.update(candidate.connections)
            if row[HOLDER]:
                row = self._interrupted(row, holder, now)
            run = rules.new_run(candidate, holder, epoch, now)
            # As ``rules.open_run`` and ``rules.touch``.
            changed = (row[VERSION] + 1, self._next_change(), epoch, holder.id)
            row = (row[NAME], *changed, *row[HOLDER + 1 :])
            opened.append((run_row(run), row, beat.expires_at, streams.get(run.pipeline, [])))
            coded.append(opened[-1])
            answers.append(_claimed(run, *opened[-1][1:], lapsed=is_lapsed))
            epoch += 1
        if opened:
            tables.set_epoch(epoch - 1)
            tables.many("add_run", [each[0] for each in opened])
            tables.write_pipelines([each[1] for each in opened])
        return tuple(answers), _pack([is_lapsed, coded])

    def _interrupted(self, row: Row, by: Holder, now: int) -> Row:
        """Close the open run of a pipeline whose lease is taken."""
        old = self._tables.open_run(row[EPOCH])
        state, ended = rules.interrupt(pipeline_of(row), old, rules.taken_over(old, by), now)
        self._tables.end_run(ended)
        return pipeline_row(state)

    def _in_use(self, alive: Collection[str]) -> Counter[str]:
        """Open runs by connection, those left out whose lease may be taken."""
        in_use = Counter[str]()
        for holder, connections, runs in self._tables.open_connections():
            if holder in alive:
                for connection in connections:
                    in_use[connection] += runs
        return in_use

    def renew(self, holder: Holder, held: Collection[Lease], ttl: float) -> tuple[Renewal, bytes]:
        tables = self._tables
        states = {state.name: state for state in tables.held_by(holder.id)}
        lost, released = rules.reconcile(holder, held, states)
        tables.write_heartbeat(rules.heartbeat(holder, self._clock, ttl))
        for lease in released:
            state, ended = rules.interrupt(
                states[lease.pipeline],
                tables.open_run(lease.epoch),
                rules.UNKNOWN_TO_HOLDER,
                self._clock.wall_us(),
            )
            tables.end_run(ended)
            self._write(state)
        answer = Renewal(lost, released)
        return answer, _pack(answer)

    # -- commit and finish ------------------------------------------------------------------------

    def commit(self, request: Request) -> Committed:
        (done,) = self.commit_all([request])
        if isinstance(done, Exception):
            raise done
        return done

    def commit_all(self, requests: Sequence[Request]) -> list[Committed | Exception]:
        """Each one's answer, or its refusal; those refused have written nothing."""
        numbers = self._next_change, self._next_commit
        commits = Commits(self._tables, *numbers, self._clock.wall_us())
        commits.load(requests)
        found: list[Committed | Exception] = []
        for request in requests:
            try:
                found.append(commits.record(request))
            except Exception as error:
                found.append(error)
        commits.write()
        return found

    def finish(self, lease: Lease, finish: Finish) -> tuple[Run, bytes]:
        tables = self._tables
        state = tables.pipeline(lease.pipeline)
        rules.check_fence(lease, state)
        streams = self._published(lease.pipeline, dict(finish.published))
        for result in finish.streams:
            stream = self._stream(streams, lease.pipeline, result.stream)
            streams[result.stream] = rules.after_result(stream, result)
        for stream in streams.values():
            tables.write_stream(stream)
        previous = None
        if finish.outcome is Outcome.NOTHING_NEW:  # no other one is folded (A9)
            previous = tables.previous_run(lease.pipeline, lease.epoch)
        now = self._clock.wall_us()
        run = rules.finished_run(tables.open_run(lease.epoch), finish, previous, now)
        tables.end_run(run)
        if rules.folds(previous, finish):
            tables.drop_run(previous.epoch)
        self._write(rules.after_finish(state, run, finish))
        return run, _pack(run_row(run))

    def _published(self, pipeline: str, marks: Mapping[str, int]) -> dict[str, StreamState]:
        """The known streams among ``marks``, their marks moved forward; not yet written."""
        found = {}
        for name, seq in marks.items():
            stream = self._tables.stream(pipeline, name)
            if stream is not None:
                by = partial(self._tables.committed_by, pipeline, name)
                found[name] = rules.mark_published(stream, seq, by)
        return found

    def _stream(self, streams: Mapping[str, StreamState], pipeline: str, name: str) -> StreamState:
        known = streams.get(name) or self._tables.stream(pipeline, name)
        return known or StreamState(pipeline, name)

    # -- persons ----------------------------------------------------------------------------------

    def edit(self, by: str, why: str, action: EditAction) -> tuple[Edit, bytes]:
        tables = self._tables
        former = self._standing(action.was) if isinstance(action, Rename) else None
        standing = self._standing(action.pipeline, former)
        done = apply_edit(by, why, action, standing, self._clock.wall_us())
        if done.stream:
            tables.write_stream(done.stream)
            if done.forget is not None:
                tables.forget_files(action.pipeline, done.stream.stream, *done.forget)
        if done.interrupted:
            tables.end_run(done.interrupted)
        if done.decision:
            tables.write_decision(action.pipeline, done.decision)
        if done.vacated and isinstance(action, Rename):
            for other in tables.pipelines_that_saw(action.was):
                if told := told_of_rename(other, action):
                    self._write(told)
            tables.hand_over(done.vacated.name, done.pipeline.name)
            for state in (done.vacated, done.pipeline):
                tables.replace_pipeline(rules.touch(state, self._next_change()))
        else:
            self._write(done.pipeline)
        edit = tables.write_edit(done.edit)
        return edit, _pack(edit)

    def _standing(self, pipeline: str, former: Standing | None = None) -> Standing:
        tables = self._tables
        state = tables.pipeline(pipeline)
        return Standing(
            rules.seen(state, tables.heartbeat(state.holder), self._clock),
            tables.streams(pipeline),
            tables.open_run(state.epoch) if state.holder else None,
            former,
        )

    # -- upkeep -----------------------------------------------------------------------------------

    def retain(self, keep: Retention, old: Old) -> tuple[int, bytes]:
        tables = self._tables
        left = keep.limit  # not above it: ``Portions`` hands out no more
        for epoch in old.runs:
            left -= tables.drop("drop_run", epoch)
        for number in old.commits:
            left -= tables.drop("drop_old_commit", number)
        left -= tables.drop("drop_old_edits", keep.runs_before, left)
        left -= tables.drop("drop_old_operations", keep.operations_before, left)
        busy = tables.lease_counts()
        for beat in tables.heartbeats():
            if left and beat.holder.id not in busy and rules.is_lapsed(beat, self._clock):
                tables.drop_holder(beat.holder.id)
                left -= 1
        return keep.limit - left, _pack(keep.limit - left)


def _refusal(
    candidate: Candidate,
    row: Row,
    alive: Collection[str],
    in_use: Mapping[str, int],
    limits: Mapping[str, int],
) -> NotClaimed | None:
    state = PipelineState(candidate.pipeline, version=row[VERSION], holder=row[HOLDER])
    takeable = state.holder not in alive
    return rules.refuse_claim(candidate, state, takeable=takeable, in_use=in_use, limits=limits)


def _claimed(
    run: Run, pipeline: Row, expires_at: int, streams: Sequence[Row], *, lapsed: bool
) -> Claimed:
    return Claimed(
        Lease(run.pipeline, run.epoch, run.holder),
        run,
        pipeline_of(pipeline, expires_at, lapsed=lapsed),
        tuple(map(stream_of, streams)),
    )


# -- answers given again -------------------------------------------------------------------------


def _claim_answer(coded: Any) -> tuple[ClaimAnswer, ...]:
    is_lapsed, answers = coded
    found: list[ClaimAnswer] = []
    for answer in answers:
        if isinstance(answer[0], str):
            found.append(NotClaimed(*answer))
            continue
        run, pipeline, expires_at, streams = answer
        found.append(_claimed(run_of(run), pipeline, expires_at, streams, lapsed=is_lapsed))
    return tuple(found)


def _commit_answer(tables: Tables, coded: bytes) -> tuple[Commit, ...]:
    return tuple(map(tables.commit, _unpack(coded)))


_renewal = msgspec.msgpack.Decoder(Renewal).decode
_edit = msgspec.msgpack.Decoder(Edit).decode
ANSWERS: Mapping[str, Callable[[Tables, bytes], Any]] = {
    "claim": lambda _, coded: _claim_answer(_unpack(coded)),
    "renew": lambda _, coded: _renewal(coded),
    "commit": _commit_answer,
    "finish": lambda _, coded: run_of(_unpack(coded)),
    "edit": lambda _, coded: _edit(coded),
    "retain": lambda _, coded: _unpack(coded),
}
"""By verb, how its answer is read back."""
