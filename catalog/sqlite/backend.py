"""The embedded catalog: ``catalog.port.Catalog`` on one SQLite file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import anyio
import apsw
from anyio import to_thread

from catalog import rules
from catalog.clock import Clock
from catalog.errors import Unavailable
from catalog.records import (
    Batch,
    Candidate,
    CatalogStats,
    Check,
    ClaimAnswer,
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
    PipelineState,
    Renewal,
    Retention,
    Run,
    RunQuery,
    SchemaVersion,
    StreamState,
)
from catalog.sqlite import database
from catalog.sqlite.checking import problems
from catalog.sqlite.checkpoints import Checkpointer
from catalog.sqlite.operations import ClaimPairs, Operations
from catalog.sqlite.tables import CURSOR, Tables, cursor_of
from catalog.sqlite.writer import Write, Writer

T = TypeVar("T")
POLL_SECONDS = 0.1
"""How often other processes' changes are looked for (D5)."""
_INLINE_ROWS = 100
"""A longer read goes to a thread, so that the loop is not kept (D3)."""


class SqliteCatalog:
    """One process's handle on the file. Made by ``open_sqlite``; needs asyncio's event loop."""

    def __init__(
        self, path: Path, clock: Clock, limit_bytes: int, *, synchronous: str = "FULL"
    ) -> None:
        self._path, self._clock, self._limit = path, clock, limit_bytes
        self._synchronous = synchronous
        database.prepare(path)
        db = self._connect()
        try:
            database.migrate(db, path, clock.wall_us())
            self._id = Tables(db).catalog_id()
        except BaseException:
            db.close()
            raise
        self._checkpointer = Checkpointer(path, self._connect)
        self._writer = Writer(path, clock, limit_bytes, self._connect, self._checkpointer.wal_grew)
        self._writer.start(db)
        self._generation = 0
        self._reader = self._read_connection(0)
        self._tables = Tables(self._reader)
        self._far_reader: Tables | None = None
        self._far = anyio.Lock()
        self._data_version: int | None = db.pragma("data_version")

    def _connect(self) -> apsw.Connection:
        return database.connect(self._path, busy_ms=database.BUSY_MS, synchronous=self._synchronous)

    def _read_connection(self, busy_ms: int) -> apsw.Connection:
        db = database.connect(self._path, busy_ms=busy_ms)
        db.pragma("query_only", 1)
        return db

    @property
    def id(self) -> str:
        return self._id

    # -- reading ----------------------------------------------------------------------------------

    def _inline(self) -> Tables:
        if self._generation != self._writer.counters.generation:
            self._generation = self._writer.counters.generation
            self._reader.close(force=True)
            self._reader = self._read_connection(0)
            self._tables = Tables(self._reader)
        return self._tables

    async def _read(self, read: Callable[[Tables], T], *, near: bool = True) -> T:
        """A read inline on the loop; one that is long, or met a lock, in a thread (D3)."""
        if near:
            try:
                return read(self._inline())
            except apsw.BusyError:
                pass
            except apsw.Error as error:
                raise Unavailable(f"{self._path}: {error}") from None
        async with self._far:
            return await to_thread.run_sync(self._read_far, read)

    def _read_far(self, read: Callable[[Tables], T]) -> T:
        try:
            if self._far_reader is None:
                self._far_reader = Tables(self._read_connection(database.BUSY_MS))
            return read(self._far_reader)
        except apsw.Error as error:
            self._far_reader = None
            raise Unavailable(f"{self._path}: {error}") from None

    async def cursor(self, pipeline: str, stream: str) -> Cursor | None:
        if self._generation == self._writer.counters.generation:
            try:  # the read that everything waits for: nothing between it and SQLite
                rows = self._reader.execute(CURSOR, (pipeline, stream)).fetchall()
            except apsw.Error:
                pass
            else:
                return cursor_of(rows[0]) if rows else None
        return await self._read(lambda tables: tables.cursor(pipeline, stream))

    async def pipeline(self, name: str) -> PipelineState:
        def read(tables: Tables) -> PipelineState:
            state = tables.pipeline(name)
            if not state.holder:
                return state
            return rules.seen(state, tables.heartbeat(state.holder), self._clock)

        return await self._read(read)

    async def changed(self, after: int, limit: int = 1000) -> tuple[PipelineState, ...]:
        def read(tables: Tables) -> tuple[PipelineState, ...]:
            beats = {beat.holder.id: beat for beat in tables.heartbeats()}
            found = tables.changed(after, limit)
            return tuple(rules.seen(s, beats.get(s.holder), self._clock) for s in found)

        return await self._read(read, near=limit <= _INLINE_ROWS)

    async def wait_changed(self, after: int, timeout: float) -> bool:
        del after  # data_version tells that others wrote, not what: the caller looks
        with anyio.move_on_after(timeout):
            while not await self._others_wrote():  # noqa: ASYNC110 - SQLite has no event for it
                await anyio.sleep(POLL_SECONDS)
            return True
        return False

    async def _others_wrote(self) -> bool:
        """The write connection's ``data_version`` moves with other connections' commits alone."""
        version: int = await self._writer.ask(lambda db: db.pragma("data_version"))
        moved, self._data_version = version != self._data_version, version
        return moved

    async def streams(self, pipeline: str) -> tuple[StreamState, ...]:
        return await self._read(lambda tables: tuple(tables.streams(pipeline).values()))

    async def run(self, epoch: int) -> Run | None:
        return await self._read(lambda tables: tables.run(epoch))

    async def runs(self, query: RunQuery) -> tuple[Run, ...]:
        near = query.limit <= _INLINE_ROWS and query.outcome is None
        return await self._read(lambda tables: tuple(tables.runs(query)), near=near)

    async def commits(
        self, pipeline: str, stream: str = "", *, unpublished: bool = False, limit: int = 100
    ) -> tuple[Commit, ...]:
        def read(tables: Tables) -> tuple[Commit, ...]:
            marks = {name: state.published for name, state in tables.streams(pipeline).items()}
            if unpublished:
                found = [
                    commit
                    for name, mark in marks.items()
                    if stream in ("", name)
                    for commit in tables.commits_above(pipeline, name, mark, limit)
                ]
            else:
                found = tables.commits(pipeline, stream, limit)
            return tuple(
                replace(commit, published=commit.seq <= marks[commit.stream])
                for commit in found[:limit]
            )

        return await self._read(read, near=unpublished or limit <= _INLINE_ROWS)

    async def schemas(self, pipeline: str, stream: str) -> tuple[SchemaVersion, ...]:
        return await self._read(lambda tables: tuple(tables.schemas(pipeline, stream)))

    async def decisions(self, pipeline: str, stream: str) -> tuple[Decision, ...]:
        return await self._read(lambda tables: tuple(tables.decisions(pipeline, stream)))

    async def files(
        self, pipeline: str, stream: str, *, after: str = "", limit: int = 10_000
    ) -> tuple[FileEntry, ...]:
        def read(tables: Tables) -> tuple[FileEntry, ...]:
            return tuple(tables.files(pipeline, stream, after, limit))

        first = await self._read(
            lambda tables: tuple(tables.files(pipeline, stream, after, _INLINE_ROWS + 1))
        )
        if len(first) <= _INLINE_ROWS:
            return first[:limit]
        return await self._read(read, near=False)

    async def edits(self, pipeline: str = "", *, limit: int = 100) -> tuple[Edit, ...]:
        return await self._read(
            lambda tables: tuple(tables.edits(pipeline, limit)), near=limit <= _INLINE_ROWS
        )

    async def holders(self) -> tuple[HolderState, ...]:
        def read(tables: Tables) -> tuple[HolderState, ...]:
            leases = tables.leases()
            return tuple(
                HolderState(
                    beat.holder,
                    beat.boot_id,
                    beat.expires_at,
                    lapsed=rules.is_lapsed(beat, self._clock),
                    leases=leases.get(beat.holder.id, 0),
                )
                for beat in tables.heartbeats()
            )

        return await self._read(read)

    async def stats(self) -> CatalogStats:
        counters = self._writer.counters

        def read(tables: Tables) -> CatalogStats:
            db = tables.db
            return CatalogStats(
                backend="sqlite",
                size_bytes=db.pragma("page_count") * database.PAGE_SIZE,
                limit_bytes=self._limit,
                wal_bytes=self._checkpointer.wal_bytes(),
                pipelines=tables.count_pipelines(),
                open_runs=tables.count_open_runs(),
                writes=counters.writes,
                groups=counters.groups,
                last_error=counters.last_error,
            )

        return await self._read(read)

    # -- writing ----------------------------------------------------------------------------------

    async def _write(
        self,
        op: str,
        verb: str,
        carry_out: Callable[[Operations], T],
        answer_type: Any,
        *,
        grows: bool = True,
    ) -> T:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        write = Write(op, verb, carry_out, answer_type, grows, done)
        self._writer.submit(write)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if done.done() or not self._writer.withdraw(write):
                # It has begun: whoever asked must learn how it ended.
                with anyio.CancelScope(shield=True):
                    return await done
            raise

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
        pairs = await self._write(
            op,
            "claim",
            lambda do: do.claim(holder, candidates, ttl, limits, dead),
            ClaimPairs,
        )
        return tuple(answer for pair in pairs for answer in pair if answer is not None)

    async def renew(
        self, op: str, holder: Holder, held: Collection[Lease], *, ttl: float
    ) -> Renewal:
        self._writer.check_identity()
        return await self._write(
            op, "renew", lambda do: do.renew(holder, held, ttl), Renewal, grows=False
        )

    async def commit(
        self, op: str, lease: Lease, batches: Sequence[Batch], published: Mapping[str, int]
    ) -> tuple[Commit, ...]:
        return await self._write(
            op, "commit", lambda do: do.commit(lease, batches, published), tuple[Commit, ...]
        )

    async def finish(self, op: str, lease: Lease, finish: Finish) -> Run:
        return await self._write(
            op, "finish", lambda do: do.finish(lease, finish), Run, grows=False
        )

    async def edit(self, op: str, by: str, why: str, action: EditAction) -> Edit:
        return await self._write(op, "edit", lambda do: do.edit(by, why, action), Edit)

    async def retain(self, op: str, keep: Retention) -> int:
        return await self._write(op, "retain", lambda do: do.retain(keep), int, grows=False)

    # -- upkeep -----------------------------------------------------------------------------------

    async def check(self) -> Check:
        return await self._read(lambda tables: Check(tuple(problems(tables))), near=False)

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(self._writer.stop)
            await to_thread.run_sync(self._checkpointer.stop)
        self._reader.close()
        if self._far_reader is not None:
            self._far_reader.db.close()
