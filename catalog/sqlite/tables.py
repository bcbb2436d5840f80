"""Rows and records: every statement of the SQLite backend, and how its rows become records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import apsw
import msgspec

from catalog.records import (
    Commit,
    Cursor,
    CursorKind,
    Decision,
    Edit,
    FileEntry,
    Holder,
    PipelineState,
    Position,
    Run,
    RunQuery,
    SchemaVersion,
    StreamState,
)
from catalog.rules import Heartbeat

R = TypeVar("R")
_encode = msgspec.json.Encoder().encode
_pipeline = msgspec.json.Decoder(PipelineState).decode
_stream = msgspec.json.Decoder(StreamState).decode
_run = msgspec.json.Decoder(Run).decode
_commit = msgspec.json.Decoder(Commit).decode
_schema = msgspec.json.Decoder(SchemaVersion).decode
_decision = msgspec.json.Decoder(Decision).decode
_edit = msgspec.json.Decoder(Edit).decode
_KINDS = {kind.value: kind for kind in CursorKind}

CURSOR = (
    "select cursor_kind, cursor_definition, cursor_tag, cursor_data, cursor_text"
    " from streams where pipeline = ? and stream = ?"
)


def _json(record: object) -> str:
    return _encode(record).decode()


def cursor_of(row: tuple[Any, ...] | None) -> Cursor | None:
    """The cursor in the five columns of ``CURSOR``."""
    if row is None or row[0] is None:
        return None
    return Cursor(_KINDS[row[0]], row[1], Position(row[2], row[3], row[4]))


class Tables:
    """Typed access to the rows, over one connection and inside whatever transaction it has."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db

    def _one(self, sql: str, *args: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self.db.execute(sql, args).fetchone()
        return row

    def _all(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        return self.db.execute(sql, args).fetchall()

    # -- counters ------------------------------------------------------------------------------

    def catalog_id(self) -> str:
        return str(self._value("select id from meta"))

    def _value(self, sql: str, *args: Any) -> Any:
        row = self._one(sql, *args)
        assert row is not None
        return row[0]

    def take_epochs(self, count: int) -> int:
        """Issue ``count`` epochs; the first of them."""
        last = self._value("update meta set epoch = epoch + ? returning epoch", count)
        return int(last) - count + 1

    def take_change(self) -> int:
        return int(self._value("update meta set change = change + 1 returning change"))

    def epoch(self) -> int:
        return int(self._value("select epoch from meta"))

    # -- pipelines -----------------------------------------------------------------------------

    def pipeline(self, name: str) -> PipelineState:
        row = self._one("select body from pipelines where name = ?", name)
        return _pipeline(row[0]) if row else PipelineState(name)

    def write_pipeline(self, state: PipelineState) -> None:
        self.db.execute(
            "insert into pipelines values (?, ?, ?, ?, ?) on conflict (name) do update set"
            " change = excluded.change, holder = excluded.holder, epoch = excluded.epoch,"
            " body = excluded.body",
            (state.name, state.change, state.holder, state.epoch, _json(state)),
        )

    def changed(self, after: int, limit: int) -> list[PipelineState]:
        rows = self._all(
            "select body from pipelines where change > ? order by change limit ?", after, limit
        )
        return [_pipeline(row[0]) for row in rows]

    def held_by(self, holder: str) -> list[PipelineState]:
        rows = self._all("select body from pipelines where holder = ? and holder <> ''", holder)
        return [_pipeline(row[0]) for row in rows]

    def leases(self) -> dict[str, int]:
        rows = self._all(
            "select holder, count(*) from pipelines where holder <> '' group by holder"
        )
        return dict(rows)

    def all_pipelines(self) -> Iterable[PipelineState]:
        for row in self.db.execute("select body from pipelines order by name"):
            yield _pipeline(row[0])

    # -- streams -------------------------------------------------------------------------------

    def cursor(self, pipeline: str, stream: str) -> Cursor | None:
        return cursor_of(self.db.execute(CURSOR, (pipeline, stream)).fetchone())

    def streams(self, pipeline: str) -> dict[str, StreamState]:
        rows = self._all(
            "select cursor_kind, cursor_definition, cursor_tag, cursor_data, cursor_text, body"
            " from streams where pipeline = ? order by stream",
            pipeline,
        )
        return {s.stream: s for s in map(_with_cursor, rows)}

    def stream(self, pipeline: str, stream: str) -> StreamState | None:
        row = self._one(
            "select cursor_kind, cursor_definition, cursor_tag, cursor_data, cursor_text, body"
            " from streams where pipeline = ? and stream = ?",
            pipeline,
            stream,
        )
        return _with_cursor(row) if row else None

    def write_stream(self, state: StreamState) -> None:
        cursor = state.cursor
        columns: tuple[Any, ...] = (None,) * 5
        if cursor is not None:
            at = cursor.position
            columns = (cursor.kind.value, cursor.definition, at.tag, at.data, at.text)
        body = _json(replace(state, cursor=None))
        self.db.execute(
            "insert into streams values (?, ?, ?, ?, ?, ?, ?, ?)"
            " on conflict (pipeline, stream) do update set cursor_kind = excluded.cursor_kind,"
            " cursor_definition = excluded.cursor_definition, cursor_tag = excluded.cursor_tag,"
            " cursor_data = excluded.cursor_data, cursor_text = excluded.cursor_text,"
            " body = excluded.body",
            (state.pipeline, state.stream, *columns, body),
        )

    # -- runs ----------------------------------------------------------------------------------

    def run(self, epoch: int) -> Run | None:
        row = self._one("select body from runs where epoch = ?", epoch)
        return _run(row[0]) if row else None

    def previous_run(self, pipeline: str, epoch: int) -> Run | None:
        row = self._one(
            "select body from runs where pipeline = ? and epoch < ? order by epoch desc limit 1",
            pipeline,
            epoch,
        )
        return _run(row[0]) if row else None

    def write_run(self, run: Run) -> None:
        outcome = run.outcome.value if run.outcome else None
        self.db.execute(
            "insert into runs values (?, ?, ?, ?, ?) on conflict (epoch) do update set"
            " outcome = excluded.outcome, finished_at = excluded.finished_at,"
            " body = excluded.body",
            (run.epoch, run.pipeline, outcome, run.finished_at, _json(run)),
        )

    def drop_run(self, epoch: int) -> None:
        self.db.execute("delete from runs where epoch = ?", (epoch,))

    def open_runs(self) -> list[Run]:
        rows = self._all("select body from runs where outcome is null order by epoch")
        return [_run(row[0]) for row in rows]

    def runs(self, query: RunQuery) -> list[Run]:
        where, args = ["true"], []
        if query.pipeline:
            where.append("pipeline = ?")
            args.append(query.pipeline)
        if query.open_only:
            where.append("outcome is null")
        if query.outcome is not None:
            where.append("outcome = ?")
            args.append(query.outcome.value)
        if query.below_epoch is not None:
            where.append("epoch < ?")
            args.append(str(query.below_epoch))
        sql = f"select body from runs where {' and '.join(where)} order by epoch desc limit ?"
        return [_run(row[0]) for row in self.db.execute(sql, (*args, query.limit))]

    # -- commits, schemas, decisions, files ------------------------------------------------------

    def write_commit(self, commit: Commit) -> None:
        self.db.execute(
            "insert into commits values (?, ?, ?, ?, ?, ?)",
            (
                *(commit.pipeline, commit.stream, commit.seq, commit.epoch),
                *(commit.committed_at, _json(commit)),
            ),
        )

    def commits(self, pipeline: str, stream: str, limit: int) -> list[Commit]:
        """Newest first."""
        rows = self._all(
            "select body from commits where pipeline = ?1 and (?2 = '' or stream = ?2)"
            " order by epoch desc, seq desc, stream limit ?3",
            pipeline, stream, limit,
        )  # fmt: skip
        return [_commit(row[0]) for row in rows]

    def commits_above(self, pipeline: str, stream: str, seq: int, limit: int) -> list[Commit]:
        rows = self._all(
            "select body from commits where pipeline = ? and stream = ? and seq > ?"
            " order by seq limit ?",
            pipeline, stream, seq, limit,
        )  # fmt: skip
        return [_commit(row[0]) for row in rows]

    def write_schema(self, pipeline: str, stream: str, schema: SchemaVersion) -> None:
        self.db.execute(
            "insert into schemas values (?, ?, ?, ?)",
            (pipeline, stream, schema.version, _json(schema)),
        )

    def schemas(self, pipeline: str, stream: str) -> list[SchemaVersion]:
        rows = self._all(
            "select body from schemas where pipeline = ? and stream = ? order by version",
            pipeline,
            stream,
        )
        return [_schema(row[0]) for row in rows]

    def last_schema(self, pipeline: str, stream: str) -> SchemaVersion | None:
        row = self._one(
            "select body from schemas where pipeline = ? and stream = ?"
            " order by version desc limit 1",
            pipeline,
            stream,
        )
        return _schema(row[0]) if row else None

    def write_decision(self, pipeline: str, decision: Decision) -> None:
        self.db.execute(
            "insert into decisions (pipeline, stream, body) values (?, ?, ?)",
            (pipeline, decision.stream, _json(decision)),
        )

    def decisions(self, pipeline: str, stream: str) -> list[Decision]:
        rows = self._all(
            "select body from decisions where pipeline = ? and stream = ? order by id",
            pipeline,
            stream,
        )
        return [_decision(row[0]) for row in rows]

    def change_files(
        self,
        pipeline: str,
        stream: str,
        *,
        clear: bool,
        drop: Collection[str],
        put: Sequence[FileEntry],
    ) -> None:
        if clear:
            self.db.execute(
                "delete from files where pipeline = ? and stream = ?", (pipeline, stream)
            )
        self.db.executemany(
            "delete from files where pipeline = ? and stream = ? and path = ?",
            [(pipeline, stream, path) for path in drop],
        )
        self.db.executemany(
            "insert or replace into files values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (pipeline, stream, f.path, f.inode, f.size, f.mtime_ns, f.ctime_ns, f.hash, f.seq)
                for f in put
            ],
        )

    def files(self, pipeline: str, stream: str, after: str, limit: int) -> list[FileEntry]:
        rows = self._all(
            "select path, inode, size, mtime_ns, ctime_ns, hash, seq from files"
            " where pipeline = ? and stream = ? and path > ? order by path limit ?",
            pipeline, stream, after, limit,
        )  # fmt: skip
        return [FileEntry(*row) for row in rows]

    # -- edits, holders, operations ---------------------------------------------------------------

    def write_edit(self, edit: Edit) -> Edit:
        number = self._value(
            "insert into edits (at, pipeline, body) values (?, ?, '') returning id",
            edit.at,
            edit.pipeline,
        )
        edit = replace(edit, id=int(number))
        self.db.execute("update edits set body = ? where id = ?", (_json(edit), edit.id))
        return edit

    def edits(self, pipeline: str, limit: int) -> list[Edit]:
        rows = self._all(
            "select body from edits where ?1 = '' or pipeline = ?1 order by id desc limit ?2",
            pipeline,
            limit,
        )
        return [_edit(row[0]) for row in rows]

    def write_heartbeat(self, beat: Heartbeat) -> None:
        holder = beat.holder
        self.db.execute(
            "insert or replace into holders values (?, ?, ?, ?, ?, ?)",
            (
                *(holder.id, holder.host, holder.pid),
                *(beat.boot_id, beat.expires_ns, beat.expires_at),
            ),
        )

    def heartbeat(self, holder: str) -> Heartbeat | None:
        row = self._one("select * from holders where id = ?", holder)
        return _heartbeat(row) if row else None

    def heartbeats(self) -> list[Heartbeat]:
        return [_heartbeat(row) for row in self._all("select * from holders order by id")]

    def drop_holder(self, holder: str) -> None:
        self.db.execute("delete from holders where id = ?", (holder,))

    def operation(self, op: str) -> tuple[str, str] | None:
        """The verb and the encoded answer of an operation carried out before (A5)."""
        row = self._one("select verb, answer from operations where id = ?", op)
        return (row[0], row[1]) if row else None

    def write_operation(self, op: str, verb: str, at: int, answer: object) -> None:
        self.db.execute("insert into operations values (?, ?, ?, ?)", (op, verb, at, _json(answer)))

    def count_pipelines(self) -> int:
        return int(self._value("select count(*) from pipelines"))

    def count_open_runs(self) -> int:
        return int(self._value("select count(*) from runs where outcome is null"))

    # -- retention --------------------------------------------------------------------------------

    def delete(self, sql: str, *args: Any) -> int:
        """Carry out one ``delete``; how many rows went."""
        self.db.execute(sql, args)
        return self.db.changes()


def _with_cursor(row: tuple[Any, ...]) -> StreamState:
    state = _stream(row[5])
    return state if row[0] is None else replace(state, cursor=cursor_of(row[:5]))


def _heartbeat(row: tuple[Any, ...]) -> Heartbeat:
    return Heartbeat(Holder(row[0], row[1], row[2]), row[3], row[4], row[5])
