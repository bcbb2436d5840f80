"""The embedded catalog: ``catalog.port.Catalog`` on one SQLite file."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

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
from catalog.sqlite.committing import Request
from catalog.sqlite.database import Location, Tuning
from catalog.sqlite.queries import SQL
from catalog.sqlite.readers import Readers
from catalog.sqlite.retaining import Portions
from catalog.sqlite.rows import cursor_of
from catalog.sqlite.tables import Tables
from catalog.sqlite.writer import Writer
from catalog.sqlite.writes import Stage, Verb, Write, settle

T = TypeVar("T")
POLL_SECONDS = 0.1
"""How often other processes' changes are looked for (D5)."""
_INLINE_ROWS = 100
"""A longer read goes to a thread, so that the loop is not kept (D3)."""
_CURSOR = SQL["cursor"]


class SqliteCatalog:
    """One process's handle on the file, made by ``open``. Needs asyncio's event loop."""

    def __init__(
        self, location: Location, clock: Clock, limit_bytes: int, db: apsw.Connection
    ) -> None:
        self._location, self._clock, self._limit = location, clock, limit_bytes
        self._sizes = (0, 0, 0)
        """Pages, pipelines and open runs, as ``stats`` last read them."""
        with ExitStack() as undo:  # whatever fails, nothing of it stays open, and no thread
            undo.callback(database.give_back, db)
            self._id = Tables(db).catalog_id()
            self._readers = readers = Readers(location)
            undo.callback(readers.close)
            self._portions = Portions(readers)
            self._checkpointer = Checkpointer(location)
            undo.callback(self._checkpointer.stop)
            self._writer = Writer(location, clock, limit_bytes, db, readers, self._checkpointer)
            undo.pop_all()

    @classmethod
    async def open(
        cls, path: Path, clock: Clock, limit_bytes: int, tuning: Tuning | None = None
    ) -> SqliteCatalog:
        """Open the file, made and migrated where that is due.

        Raises ``CannotOpen`` for what is no catalog of this program, ``Unavailable`` when another
        process keeps it locked.
        """
        location = Location.of(path, tuning or Tuning())
        db = await to_thread.run_sync(location.open_writer, clock.wall_us())
        with database.explained(location.path):
            return cls(location, clock, limit_bytes, db)

    @property
    def id(self) -> str:
        return self._id

    # -- reading ----------------------------------------------------------------------------------

    async def cursor(self, pipeline: str, stream: str) -> Cursor | None:
        try:  # the read that everything waits for: nothing between it and SQLite
            rows = self._readers.near.run_sql(_CURSOR, (pipeline, stream)).fetchall()
        except apsw.Error:
            return await self._readers.read(lambda tables: tables.cursor(pipeline, stream))
        return cursor_of(rows[0]) if rows else None

    async def pipeline(self, name: str) -> PipelineState:
        return await self._readers.read(lambda tables: tables.pipeline_seen(name, self._clock))

    async def changed(self, after: int, limit: int = 1000) -> tuple[PipelineState, ...]:
        return await self._readers.read(
            lambda tables: tuple(tables.changed(after, limit, self._clock)),
            near=limit <= _INLINE_ROWS,
        )

    async def wait_changed(self, after: int, timeout: float) -> bool:
        with anyio.move_on_after(timeout):
            while await self._writer.foreign_change() <= after:  # noqa: ASYNC110 - SQLite has
                await anyio.sleep(POLL_SECONDS)  # no event for another process's commit
            return True
        return False

    async def streams(self, pipeline: str) -> tuple[StreamState, ...]:
        return await self._readers.read(lambda tables: tuple(tables.streams(pipeline).values()))

    async def run(self, epoch: int) -> Run | None:
        return await self._readers.read(lambda tables: tables.run(epoch))

    async def runs(self, query: RunQuery) -> tuple[Run, ...]:
        # Outcomes have no index: the runs that have another one are passed over.
        near = query.limit <= _INLINE_ROWS and query.outcome is None
        return await self._readers.read(lambda tables: tuple(tables.runs(query)), near=near)

    async def commits(
        self, pipeline: str, stream: str = "", *, unpublished: bool = False, limit: int = 100
    ) -> tuple[Commit, ...]:
        def read(tables: Tables) -> tuple[Commit, ...]:
            marks = {name: state.published for name, state in tables.streams(pipeline).items()}
            if not unpublished:
                return tuple(tables.commits(pipeline, stream, limit, marks))
            found = [
                commit
                for name, mark in marks.items()
                if stream in ("", name)
                for commit in tables.commits_above(pipeline, name, mark, limit)
            ]
            return tuple(found[:limit])

        # All of a pipeline's commits are sorted for the newest; one stream's stand in order.
        near = unpublished or (stream != "" and limit <= _INLINE_ROWS)
        return await self._readers.read(read, near=near)

    async def schemas(self, pipeline: str, stream: str) -> tuple[SchemaVersion, ...]:
        return await self._readers.read(lambda tables: tuple(tables.schemas(pipeline, stream)))

    async def decisions(self, pipeline: str, stream: str) -> tuple[Decision, ...]:
        return await self._readers.read(lambda tables: tuple(tables.decisions(pipeline, stream)))

    async def files(
        self, pipeline: str, stream: str, *, after: str = "", limit: int = 10_000
    ) -> tuple[FileEntry, ...]:
        return await self._readers.read(
            lambda tables: tuple(tables.files(pipeline, stream, after, limit)),
            near=limit <= _INLINE_ROWS,
        )

    async def edits(self, pipeline: str = "", *, limit: int = 100) -> tuple[Edit, ...]:
        return await self._readers.read(
            lambda tables: tuple(tables.edits(pipeline, limit)), near=limit <= _INLINE_ROWS
        )

    async def holders(self) -> tuple[HolderState, ...]:
        def read(tables: Tables) -> tuple[HolderState, ...]:
            leases = tables.lease_counts()
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

        return await self._readers.read(read)

    async def stats(self) -> CatalogStats:
        def read(tables: Tables) -> tuple[int, int, int]:
            return (tables.db.pragma("page_count"), *tables.counts())

        # While nothing can be read, last_error says why, beside the sizes known last.
        with suppress(Unavailable):
            self._sizes = await self._readers.read(read, near=False)
        pages, pipelines, open_runs = self._sizes
        counters = self._writer.counters
        return CatalogStats(
            backend="sqlite",
            size_bytes=pages * database.PAGE_SIZE,
            limit_bytes=self._limit,
            wal_bytes=self._location.wal_bytes(),
            pipelines=pipelines,
            open_runs=open_runs,
            writes=counters.writes,
            groups=counters.groups,
            last_error=counters.last_error,
        )

    # -- writing ----------------------------------------------------------------------------------

    async def _write(
        self, op: str, verb: str, carry_out: Verb[T] | Request, *, grows: bool = False
    ) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        write = Write(op, verb, carry_out, done, grows=grows)
        self._writer.submit(write)
        try:
            return await done
        except asyncio.CancelledError:
            if self._writer.withdraw(write):
                raise
            # It has begun: whoever asked learns how it ended, however often it is cancelled. The
            # outcome comes on another future, the first one being cancelled too, or came while
            # this task waited for its turn.
            late: asyncio.Future[T] = loop.create_future()
            write.done = late
            if write.stage is Stage.SETTLED:
                settle([write], ())
            with anyio.CancelScope(shield=True):
                await asyncio.wait([late])
            return late.result()

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
        return await self._write(
            op, "claim", lambda do: do.claim(holder, candidates, ttl, limits, dead), grows=True
        )

    async def renew(
        self, op: str, holder: Holder, held: Collection[Lease], *, ttl: float
    ) -> Renewal:
        return await self._write(op, "renew", lambda do: do.renew(holder, held, ttl))

    async def commit(
        self, op: str, lease: Lease, batches: Sequence[Batch], published: Mapping[str, int]
    ) -> tuple[Commit, ...]:
        return await self._write(op, "commit", Request(lease, batches, published), grows=True)

    async def finish(self, op: str, lease: Lease, finish: Finish) -> Run:
        return await self._write(op, "finish", lambda do: do.finish(lease, finish))

    async def edit(self, op: str, by: str, why: str, action: EditAction) -> Edit:
        return await self._write(op, "edit", lambda do: do.edit(by, why, action), grows=True)

    # -- upkeep -----------------------------------------------------------------------------------

    async def retain(self, op: str, keep: Retention) -> int:
        keep, old = await self._portions.next(keep)
        return await self._write(op, "retain", lambda do: do.retain(keep, old))

    async def check(self) -> Check:
        return await self._readers.read(lambda tables: Check(tuple(problems(tables))), near=False)

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            self._writer.stop()
            await to_thread.run_sync(self._close)

    def _close(self) -> None:
        self._writer.join()  # first: should it recover the file, it opens the others again
        self._checkpointer.stop()
        # Last: whoever closes last checkpoints, and that is for no event loop to wait for.
        self._readers.close(in_doubt=bool(self._checkpointer.doubt))
