"""The verb ``commit``, for one operation or for all that wait at the same moment.

It is what the whole daemon waits for, so it goes by rows: one statement reads what each commit is
judged by, the rules' records are made only where there is something to decide, and each table is
written once for the whole group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from catalog import rules
from catalog.records import (
    MAX_UNPUBLISHED,
    PIPELINE_SCOPE,
    Batch,
    Commit,
    CursorKind,
    Lease,
    PipelineState,
    SchemaVersion,
    StreamState,
)
from catalog.sqlite.rows import Row, commit_row, cursor_columns, stream_of, stream_row
from catalog.sqlite.tables import Tables

_pack = msgspec.msgpack.Encoder().encode

Schema: TypeAlias = tuple[str, str]
"""Fingerprint and body of a stream's last version."""
Committed: TypeAlias = tuple[tuple[Commit, ...], bytes]
"""The answer, and what it takes to give it again: the numbers of the rows."""


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of ``Catalog.commit``."""

    lease: Lease
    batches: Sequence[Batch]
    published: Mapping[str, int]


# A stream's row is as ``rows.stream_row`` makes it, with the number of its last commit at its end:
# 2 is its seq, 3 the seq published, 4 to 8 the cursor, 9 the schema's version, 10 the hold, 14 and
# 15 the runs that committed and published last, 16 data_at, 17 the rows, 20 that number.


class _Changes:
    """What one request changes, before it is known to be without fault."""

    __slots__ = ("answer", "commits", "more", "schemas", "streams")

    def __init__(self) -> None:
        self.streams: dict[str, Row] = {}
        self.schemas: dict[str, Schema] = {}
        self.commits: list[Row] = []
        self.answer: list[Commit] = []
        self.more: list[Callable[[], None]] = []


class Commits:
    """The commits of one transaction: ``load``, then ``record`` in order, then ``write``."""

    def __init__(
        self,
        tables: Tables,
        next_change: Callable[[], int],
        next_commit: Callable[[], int],
        now: int,
    ) -> None:
        self._tables, self._now = tables, now
        self._next_change, self._next_commit = next_change, next_commit
        self._leases: dict[str, tuple[int, str]] = {}
        self._streams: dict[tuple[str, str], Row] = {}
        self._schemas: dict[tuple[str, str], Schema] = {}
        self._counts: dict[str, list[Any]] = {}
        self._changed: dict[tuple[str, str], Row] = {}
        self._commits: list[Row] = []
        self._more: list[Callable[[], None]] = []

    def load(self, requests: Iterable[Request]) -> None:
        """Read all that the requests are judged by."""
        keys: dict[tuple[str, str], None] = {}
        for request in requests:
            named = [*(batch.stream for batch in request.batches), *request.published]
            for stream in named or [""]:  # none: the lease alone
                keys[request.lease.pipeline, stream] = None
        for row in self._tables.standings(keys):
            pipeline, stream, epoch, holder, fingerprint, body = row[:6]
            self._leases[pipeline] = epoch, holder
            if row[6] is not None:
                self._streams[pipeline, stream] = row[6:]
            if fingerprint is not None:
                self._schemas[pipeline, stream] = fingerprint, body

    def record(self, request: Request) -> Committed:
        """Judge one request after those before it. One that is refused changes nothing."""
        lease = request.lease
        pipeline = lease.pipeline
        epoch, holder = self._leases.get(pipeline, (0, ""))
        if epoch != lease.epoch or holder != lease.holder or not holder:
            rules.check_fence(lease, PipelineState(pipeline, epoch=epoch, holder=holder))
        changes = _Changes()
        for name, seq in request.published.items():
            row = self._streams.get((pipeline, name))
            # As ``rules.mark_published``.
            if row is not None and row[3] < (mark := min(seq, row[2])):
                by = row[14]
                if mark != row[2]:
                    by = self._committed_by(pipeline, name, mark)
                changes.streams[name] = (*row[:3], mark, *row[4:15], max(row[15], by), *row[16:])
        for batch in request.batches:
            self._judge(lease, batch, changes)
        self._accept(request, changes)
        return tuple(changes.answer), _pack([row[0] for row in changes.commits])

    def _committed_by(self, pipeline: str, stream: str, seq: int) -> int:
        """The run of a batch that is committed, perhaps by this transaction."""
        key = (pipeline, stream, seq)
        for row in self._commits:
            if row[2:5] == key:
                return int(row[5])
        return self._tables.committed_by(*key)

    def _judge(self, lease: Lease, batch: Batch, changes: _Changes) -> None:
        pipeline, name = lease.pipeline, batch.stream
        row = changes.streams.get(name) or self._streams.get((pipeline, name))
        schema = changes.schemas.get(name) or self._schemas.get((pipeline, name))
        if row is None or not _fits(row, schema, batch):
            self._decide(lease, row, schema, batch, changes)
            return
        seq, cursor = row[2] + 1, batch.cursor
        columns = row[4:9] if cursor is None else cursor_columns(cursor)
        data_at = row[16] if batch.data_at is None else max(batch.data_at, row[16] or batch.data_at)
        number = self._next_commit()
        changes.streams[name] = (
            *(pipeline, name, seq, row[3], *columns, *row[9:14], lease.epoch, row[15], data_at),
            *(row[17] + batch.rows, row[18], row[19], number),
        )
        commit = Commit(
            pipeline,
            name,
            seq,
            lease.epoch,
            batch.receipt,
            batch.rows,
            batch.bytes,
            batch.rejected,
            row[9],
            self._now,
            cursor,
        )
        changes.answer.append(commit)
        changes.commits.append(commit_row(number, row[20], commit))

    def _decide(
        self,
        lease: Lease,
        row: Row | None,
        schema: Schema | None,
        batch: Batch,
        changes: _Changes,
    ) -> None:
        """A batch that is more than the next one: the rules decide."""
        tables, pipeline, name = self._tables, lease.pipeline, batch.stream
        stream = stream_of(row) if row else StreamState(pipeline, name)
        last = SchemaVersion(stream.schema_version, *schema) if schema else None
        done = rules.record_batch(lease, stream, last, batch, self._now)
        number = self._next_commit()
        changes.streams[name] = (*stream_row(done.stream), number)
        changes.answer.append(done.commit)
        changes.commits.append(commit_row(number, row[20] if row else None, done.commit))
        if done.schema:
            changes.schemas[name] = done.schema.fingerprint, done.schema.body

        def write() -> None:
            if done.schema:
                tables.write_schema(pipeline, name, done.schema)
            for decision in done.decisions:
                tables.write_decision(pipeline, decision)
            if batch.replaces:
                tables.clear_files(pipeline, name)
            tables.change_files(pipeline, name, batch.forgotten, done.files)

        changes.more.append(write)

    def _accept(self, request: Request, changes: _Changes) -> None:
        pipeline = request.lease.pipeline
        for name, row in changes.streams.items():
            self._streams[pipeline, name] = self._changed[pipeline, name] = row
        for name, schema in changes.schemas.items():
            self._schemas[pipeline, name] = schema
        self._commits += changes.commits
        self._more += changes.more
        # As ``rules.after_commit``, and a version and a place in the order of changes for each.
        counts = self._counts.setdefault(pipeline, [pipeline, 0, 0, 0, 0, 0, None])
        counts[1] += 1
        counts[2] = self._next_change()
        for batch in request.batches:
            counts[3] += batch.rows
            counts[4] += batch.bytes
            counts[5] += batch.rejected
            if batch.data_at is not None and (counts[6] is None or counts[6] < batch.data_at):
                counts[6] = batch.data_at

    def write(self) -> None:
        """Write what was recorded."""
        self._tables.many("count_committed", map(tuple, self._counts.values()))
        self._tables.many("put_stream", self._changed.values())
        self._tables.many("add_commit", self._commits)
        for write in self._more:
            write()


def _fits(row: Row, schema: Schema | None, batch: Batch) -> bool:
    """Whether a batch is plainly its stream's next one: no rule of ``rules.check_batch`` objects,
    and it changes nothing but the cursor and counts. Where this is False the rules decide."""
    seq = row[2]
    if (
        batch.follows != seq
        or seq - row[3] >= MAX_UNPUBLISHED
        or row[10] is not None  # held
        or not batch.receipt
        or batch.stream == PIPELINE_SCOPE
        or batch.replaces
        or batch.decisions
        or batch.files
        or batch.forgotten
    ):
        return False
    new = batch.schema
    if new is not None and (new.version != row[9] or (new.fingerprint, new.body) != schema):
        return False
    cursor = batch.cursor
    if cursor is None or row[4] is None:
        return True
    at = cursor.position
    return (
        cursor.kind == row[4]
        and cursor.definition == row[5]
        and at.tag == row[6]
        and (cursor.kind is not CursorKind.MONOTONIC or bool(at.data >= row[7]))
    )
