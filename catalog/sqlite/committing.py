"""The verb ``commit``, for one operation or for all that wait at the same moment.

It is what the whole daemon waits for, so it goes by rows: one statement reads what each commit is
judged by, the rules' records are made only where there is something to decide, and each table is
written once for the whole group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from catalog import rules
from catalog.records import (
    MAX_UNPUBLISHED,
    PIPELINE_SCOPE,
    Batch,
    Commit,
    CursorKind,
    Lease,
    Micros,
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


# Where they stand in a stream's row, which is as ``rows.stream_row`` makes it, with the number of
# its last commit at its end.
_SEQ, _PUBLISHED, _CURSOR, _SCHEMA_VERSION, _HOLD = 2, 3, slice(4, 9), 9, 10
_COMMITTED_BY, _PUBLISHED_BY, _DATA_AT, _ROWS, _LAST_COMMIT = 14, 15, 16, 17, 20


@dataclass(slots=True)
class _Counts:
    """What commits add to their pipeline and its open run, and how many they are."""

    commits: int = 0
    change: int = 0
    rows: int = 0
    bytes: int = 0
    rejected: int = 0
    data_at: Micros | None = None


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
        self._counts: dict[str, _Counts] = {}
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
            if row is not None and row[_PUBLISHED] < (mark := min(seq, row[_SEQ])):
                by = row[_COMMITTED_BY]
                if mark != row[_SEQ]:
                    by = self._committed_by(pipeline, name, mark)
                moved = list(row)
                moved[_PUBLISHED] = mark
                moved[_PUBLISHED_BY] = max(row[_PUBLISHED_BY], by)
                changes.streams[name] = tuple(moved)
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
        seq, number = row[_SEQ] + 1, self._next_commit()
        after = list(row)
        after[_SEQ], after[_COMMITTED_BY], after[_LAST_COMMIT] = seq, lease.epoch, number
        after[_ROWS] += batch.rows
        if batch.cursor is not None:
            after[_CURSOR] = cursor_columns(batch.cursor)
        after[_DATA_AT] = rules.later(row[_DATA_AT], batch.data_at)
        changes.streams[name] = tuple(after)
        commit = Commit(
            pipeline,
            name,
            seq,
            lease.epoch,
            batch.receipt,
            batch.rows,
            batch.bytes,
            batch.rejected,
            row[_SCHEMA_VERSION],
            self._now,
            batch.cursor,
        )
        changes.answer.append(commit)
        changes.commits.append(commit_row(number, row[_LAST_COMMIT], commit))

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
        changes.commits.append(commit_row(number, row[_LAST_COMMIT] if row else None, done.commit))
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
        counts = self._counts.setdefault(pipeline, _Counts())
        counts.commits += 1
        counts.change = self._next_change()
        for batch in request.batches:
            counts.rows += batch.rows
            counts.bytes += batch.bytes
            counts.rejected += batch.rejected
            counts.data_at = rules.later(counts.data_at, batch.data_at)

    def write(self) -> None:
        """Write what was recorded."""
        self._tables.many(
            "count_committed",
            [
                (pipeline, c.commits, c.change, c.rows, c.bytes, c.rejected, c.data_at)
                for pipeline, c in self._counts.items()
            ],
        )
        self._tables.many("put_stream", self._changed.values())
        self._tables.many("add_commit", self._commits)
        for write in self._more:
            write()


def _fits(row: Row, schema: Schema | None, batch: Batch) -> bool:
    """Whether a batch is plainly its stream's next one: no rule of ``rules.check_batch`` objects,
    and it changes nothing but the cursor and counts. Where this is False the rules decide."""
    seq = row[_SEQ]
    if (
        batch.follows != seq
        or seq - row[_PUBLISHED] >= MAX_UNPUBLISHED
        or row[_HOLD] is not None
        or not batch.receipt
        or batch.stream == PIPELINE_SCOPE
        or batch.replaces
        or batch.decisions
        or batch.files
        or batch.forgotten
    ):
        return False
    new = batch.schema
    if new is not None and (
        new.version != row[_SCHEMA_VERSION] or (new.fingerprint, new.body) != schema
    ):
        return False
    cursor, (kind, definition, tag, data, _) = batch.cursor, row[_CURSOR]
    if cursor is None or kind is None:
        return True
    at = cursor.position
    return (
        cursor.kind == kind
        and cursor.definition == definition
        and at.tag == tag
        and (cursor.kind is not CursorKind.MONOTONIC or bool(at.data >= data))
    )
