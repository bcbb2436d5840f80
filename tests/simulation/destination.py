"""A destination of the simulated world: what is durable and what a loss of power takes.

It outlives every worker. Publishing takes a lock that others find busy, happens in steps between
which the process may end, and is lost by a loss of power before it is flushed. Its own log of what
happened is what the checkers read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from catalog.records import Cursor, ErrorClass, HoldKind
from reconciler.config.desired import Mode
from reconciler.connectors.destinations.order import follows
from reconciler.connectors.ports import (
    BatchName,
    ConnectorError,
    Finding,
    Marker,
    NeedsAnswer,
    Owner,
    Receipt,
    RejectedRow,
    StageRequest,
)
from tests.replacing import replace

_V = re.compile(r"'v': (\d+)")
_BYTES_A_ROW = 8 * 1024 * 1024
"""A row counts as so many bytes, so that reads of a few rows are sealed in several batches."""


class Process(Protocol):
    """The worker in which a connector works."""

    def step(self, name: str, seconds: float = 0.0) -> None: ...


@dataclass(frozen=True, slots=True)
class MarkerRow:
    """The marker as the destination keeps it."""

    owner: Owner
    seq: int
    epoch: int
    cursor: Cursor | None
    version: int


Written = tuple[int, int]
"""A row at the destination: its id and its version ``v``."""


@dataclass(frozen=True, slots=True)
class Content:
    """One table: never changed, only replaced by another."""

    rows: tuple[Written, ...] = ()
    by_key: dict[int, int] = field(default_factory=dict)
    """For ``merge``: id to ``v``."""
    rejected: frozenset[int] = frozenset()
    marker: MarkerRow | None = None

    def versions(self) -> list[int]:
        """All ``v`` that are there, doubles included."""
        return [v for _, v in self.rows] + list(self.by_key.values())

    def applied(self, staged: Staged, receipt: Receipt) -> Content:
        """The table after a batch, marker included."""
        name = receipt.name
        before = self.marker.cursor if self.marker else None
        marker = MarkerRow(
            name.owner, name.seq, name.epoch, receipt.cursor or before, receipt.schema_version
        )
        rejected = self.rejected | staged.rejected
        match receipt.mode:
            case Mode.APPEND:
                rows = self.rows + tuple(staged.rows)
                return Content(rows, self.by_key, rejected, marker)
            case Mode.MERGE:
                merged = {**self.by_key, **dict(staged.rows)}
                return Content(self.rows, merged, rejected, marker)
            case Mode.REPLACE:
                if staged.keyed:
                    return Content((), dict(staged.rows), rejected, marker)
                return Content(tuple(staged.rows), {}, rejected, marker)


@dataclass(slots=True, eq=False)
class Staged:
    """A batch that nobody sees yet."""

    name: BatchName
    keyed: bool
    rows: list[Written] = field(default_factory=list)
    rejected: set[int] = field(default_factory=set)
    receipt: Receipt | None = None
    """Set once sealed: then it is durable."""


class Warehouse:
    """All that lies at the destination."""

    def __init__(self) -> None:
        self.tables: dict[str, Content] = {}
        self.durable: dict[str, Content] = {}
        self.staged: dict[BatchName, Staged] = {}
        self.locks: dict[str, Process] = {}
        self.busy_until = 0.0
        self.on_discard: list[BatchName] = []
        self.on_publish: list[tuple[str, BatchName]] = []
        """Table and batch, in the order in which they became visible."""

    def lose_power(self) -> None:
        """What was never flushed is gone."""
        self.tables = dict(self.durable)
        self.staged = {n: s for n, s in self.staged.items() if s.receipt is not None}
        self.locks.clear()

    def copy(self) -> tuple[dict[str, Content], dict[BatchName, Staged]]:
        """What a backup holds."""
        return dict(self.durable), {n: s for n, s in self.staged.items() if s.receipt is not None}

    def free(self, process: Process) -> None:
        """A process ended: its locks with it."""
        self.locks = {table: who for table, who in self.locks.items() if who is not process}

    def holds(self, name: BatchName, table: str) -> bool:
        """The batch is durable here: sealed, or published and flushed."""
        staged = self.staged.get(name)
        if staged is not None and staged.receipt is not None:
            return True
        marker = self.durable.get(table, Content()).marker
        return marker is not None and marker.seq >= name.seq


class SimStage:
    """Implements ``Stage``."""

    def __init__(
        self, warehouse: Warehouse, process: Process, request: StageRequest, staged: Staged
    ) -> None:
        self._warehouse, self._process = warehouse, process
        self._request, self._staged = request, staged

    @property
    def bytes(self) -> int:
        return len(self._staged.rows) * _BYTES_A_ROW

    def write(self, batch: pa.RecordBatch) -> None:
        ids, versions = batch.column("id").to_pylist(), batch.column("v").to_pylist()
        self._staged.rows += zip(ids, versions, strict=True)

    def reject(self, rows: Sequence[RejectedRow]) -> None:
        for row in rows:
            found = _V.search(row.raw)
            assert found is not None, row.raw
            self._staged.rejected.add(int(found[1]))

    def seal(self, cursor: Cursor | None) -> Receipt:
        self._process.step("destination.seal", 0.2)
        request, staged = self._request, self._staged
        receipt = Receipt(
            connector="simulated",
            destination="here",
            name=request.name,
            table=request.table,
            mode=request.mode,
            key=request.schema.key,
            schema=request.schema,
            schema_version=request.schema_version,
            rows=len(staged.rows),
            bytes=self.bytes,
            files=(),
            cursor=cursor,
            after=request.after,
        )
        had = self._warehouse.tables.get(request.table, Content())
        empties = request.mode is Mode.REPLACE and not staged.rows and had.versions()
        if empties and not request.may_empty:
            raise NeedsAnswer(HoldKind.EMPTY_REPLACE, "no rows now", ("retry", "refresh"))
        staged.receipt = receipt
        self._process.step("destination.sealed")
        return receipt

    def abort(self) -> None:
        self._process.step("destination.abort")
        if self._staged.receipt is None:
            self._warehouse.staged.pop(self._request.name, None)


class SimDestination:
    """Implements ``Destination`` for one worker."""

    connector = "simulated"
    modes = frozenset(Mode)

    def __init__(self, warehouse: Warehouse, process: Process, now: object) -> None:
        self._warehouse, self._process = warehouse, process
        self._now = now

    def check(self) -> list[Finding]:
        return []

    def close(self) -> None:
        """Nothing is open."""

    def marker(self, table: str) -> Marker | None:
        self._process.step("destination.marker")
        content = self._warehouse.tables.get(table)
        if content is None or content.marker is None:
            return None
        row = content.marker
        has_rows = bool(content.versions())
        return Marker(row.owner, row.seq, row.cursor, row.version, has_rows, row.epoch)

    def refuse_unmarked(self, table: str) -> None:
        """Nobody else writes here, and what takes a marker away takes the rows with it."""

    def stage(self, request: StageRequest) -> SimStage:
        self._process.step("destination.stage")
        there = self._warehouse.staged.get(request.name)
        if there is not None and there.receipt is not None:
            raise ConnectorError(ErrorClass.TRANSIENT, "a sealed batch of this name is there")
        staged = Staged(request.name, keyed=request.settings.mode is Mode.MERGE)
        self._warehouse.staged[request.name] = staged
        return SimStage(self._warehouse, self._process, request, staged)

    def staged(self, catalog: str, pipeline: str) -> list[BatchName]:
        self._process.step("destination.staged")
        return [
            name
            for name in self._warehouse.staged
            if (name.owner.catalog, name.owner.pipeline) == (catalog, pipeline)
        ]

    def discard(self, name: BatchName) -> None:
        self._process.step("destination.discard")
        if self._warehouse.staged.pop(name, None) is not None:
            self._warehouse.on_discard.append(name)

    def publish(self, receipts: Sequence[Receipt]) -> None:
        self._process.step("destination.publish", 0.2)
        for receipt in receipts:
            with self._locked(receipt.table):
                self._publish(receipt)

    @contextmanager
    def _locked(self, table: str) -> Iterator[None]:
        holder = self._warehouse.locks.get(table)
        seconds, _ = self._now()  # type: ignore[operator]
        if holder is not None or seconds < self._warehouse.busy_until:
            raise ConnectorError(ErrorClass.TRANSIENT, f"{table} is locked", busy=True)
        self._warehouse.locks[table] = self._process
        try:
            yield
        finally:
            if self._warehouse.locks.get(table) is self._process:
                del self._warehouse.locks[table]

    def _publish(self, receipt: Receipt) -> None:
        warehouse, name = self._warehouse, receipt.name
        self._process.step("destination.publish.before")
        content = warehouse.tables.get(receipt.table, Content())
        row = content.marker
        if follows(receipt, (row.owner, row.seq, row.epoch) if row else None):
            staged = warehouse.staged.get(name)
            if staged is None or staged.receipt is None:
                raise NeedsAnswer(HoldKind.LOST_BATCH, f"batch {name.seq} is lost", ("refresh",))
            warehouse.tables[receipt.table] = content.applied(staged, receipt)
            warehouse.on_publish.append((receipt.table, name))
            self._process.step("destination.publish.applied", 0.1)
        self._flush(receipt.table)
        self._process.step("destination.publish.flushed")
        warehouse.staged.pop(name, None)

    def _flush(self, table: str) -> None:
        if table in self._warehouse.tables:
            self._warehouse.durable[table] = self._warehouse.tables[table]

    def adopt(self, owner: Owner, table: str, seq: int, epoch: int, cursor: Cursor | None) -> None:
        self._process.step("destination.adopt")
        with self._locked(table):
            content = self._warehouse.tables.get(table, Content())
            version = content.marker.version if content.marker else 0
            marker = MarkerRow(owner, seq, epoch, cursor, version)
            self._warehouse.tables[table] = replace(content, marker=marker)
            self._process.step("destination.adopt.applied", 0.1)
            self._flush(table)
