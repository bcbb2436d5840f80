"""The daemon, the source and the destination of one stream as fakes with a diary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pyarrow as pa

from catalog.position import encode
from catalog.records import (
    Batch,
    Commit,
    Cursor,
    CursorKind,
    Decision,
    FileEntry,
    Hold,
    HoldKind,
    Outcome,
    SchemaVersion,
    StreamResult,
    StreamState,
)
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors import arrow
from reconciler.connectors.ports import (
    BatchName,
    Mark,
    Marker,
    NeedsAnswer,
    Owner,
    ReadRequest,
    Receipt,
    RejectedRow,
    Rows,
    StageRequest,
)
from reconciler.run import messages as m
from reconciler.run.link import LeaseOver
from reconciler.run.stream import Shared, StreamRun
from reconciler.schema.decide import ColumnRule
from reconciler.schema.model import Schema

ARROW = pa.schema([("id", pa.int64()), ("amount", pa.int32())])
TARGET = arrow.to_schema(ARROW, ("id",))
OWNER = Owner("cat", "shop", "orders")
OTHER = Owner("cat2", "other", "items")
KEY = StreamSettings(key=("id",))
DECISION = Decision("orders", 0, "f", "approved", "[]", "policy", "first")
VERDICT = m.Verdict(
    1,
    SchemaVersion(1, "f", "{}"),
    TARGET,
    (ColumnRule("id", "id", "as_is"), ColumnRule("amount", "amount", "cast")),
    (DECISION,),
)
FILE = FileEntry("a.csv", 1, 2, 3, 4, "hash")
REJECTED = RejectedRow("a.csv:3", "not a number", "x")
TO_DESTINATION = ("cursor rewind --to-destination", "refresh", "cursor adopt")


def cursor(value: int) -> Cursor:
    return Cursor(CursorKind.MONOTONIC, "{}", encode("int", value))


def rows(*ids: int) -> Rows:
    return Rows(pa.record_batch({"id": list(ids), "amount": [str(n) for n in ids]}))


def mark(value: int, **more: Any) -> Mark:
    return Mark(cursor(value), value, **more)


class FakeRead:
    """Hands out what it was given; an exception among it is raised, a call is made."""

    def __init__(self, *given: Any, **more: Any) -> None:
        self.schema, self.key, self.whole = ARROW, more.get("key", ()), False
        self.ordered: bool = more.get("ordered", False)
        self.has_news: bool = more.get("has_news", True)
        self.idle: str = more.get("idle", "")
        self.notes: tuple[str, ...] = ("assumes this",)
        self.left_out: dict[str, int] = more.get("left_out", {})
        self.given, self.closed = given, False

    def items(self) -> Iterator[Any]:
        for item in self.given:
            if isinstance(item, BaseException):
                raise item
            if callable(item):
                item()
            else:
                yield item

    def counts(self) -> Mapping[str, int]:
        return self.left_out

    def close(self) -> None:
        self.closed = True


class FakeStage:
    def __init__(self, world: World, request: StageRequest) -> None:
        self.world, self.request = world, request
        self.bytes = 0
        self.rows: list[dict[str, Any]] = []
        self.rejected: list[RejectedRow] = []

    def write(self, batch: pa.RecordBatch) -> None:
        self.bytes += self.world.size
        self.rows += batch.to_pylist()

    def reject(self, rows: Sequence[RejectedRow]) -> None:
        self.rejected += rows

    def seal(self, cursor: Cursor | None) -> Receipt:
        self.world.did("seal")
        request = self.request
        return receipt(request.name.seq, request.name.epoch, bytes=77, cursor=cursor)

    def abort(self) -> None:
        self.world.did("abort")


def receipt(seq: int, epoch: int = 9, **more: Any) -> Receipt:
    more = {"bytes": 0, **more}
    name = BatchName(OWNER, epoch, seq)
    return Receipt("fake", "d", name, "orders", Mode.MERGE, (), TARGET, 1, 1, files=(), **more)


def waiting(seq: int, stream: str = "orders", mode: Mode = Mode.MERGE) -> Commit:
    """A commit of an earlier run that is not yet published."""
    body = msgspec.json.encode(replace(receipt(seq, 8), mode=mode)).decode()
    return Commit("shop", stream, seq, 8, body, 1, 1, 0, 1, 1, None)


UNMARKED = NeedsAnswer(HoldKind.DESTINATION, "somebody else made it", ("retry", "cursor adopt"))


@dataclass
class World:
    """The daemon, the source and the destination of one stream, and a diary."""

    read: FakeRead = field(default_factory=FakeRead)
    marker: Marker | None = None
    publish: list[Exception | None] = field(default_factory=list)
    """What becomes of the next attempts to publish; then they succeed."""
    answers: list[m.NotCommitted | None] = field(default_factory=list)
    verdict: m.Verdict = VERDICT
    size: int = 10
    lease_over: bool = False
    unmarked: bool = False
    """There is a table, and it has no marker."""
    unpublished: tuple[Commit, ...] = ()
    ledgers: dict[str, tuple[FileEntry, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.diary: list[str] = []
        self.requests: list[ReadRequest] = []
        self.stages: list[FakeStage] = []
        self.commits: list[tuple[Batch, dict[str, int]]] = []
        self.adopted: list[tuple[int, Cursor | None]] = []
        self.discarded: list[BatchName] = []
        self.forgotten: list[str] = []
        self.proposed: list[Schema] = []
        self.said: list[Any] = []
        self.cancelled = False
        self.modes = frozenset({Mode.MERGE, Mode.APPEND, Mode.REPLACE})
        self.shared = Shared({})
        self.now = 100.0

    def did(self, what: str) -> None:
        self.diary.append(what)

    # -- the line to the daemon --------------------------------------------------------------------

    def check_lease(self) -> None:
        if self.lease_over:
            raise LeaseOver

    @contextmanager
    def pulse(self) -> Iterator[None]:
        yield

    def propose(self, stream: str, schema: Schema) -> m.Verdict:
        assert stream == "orders"
        self.proposed.append(schema)
        return self.verdict

    def ledger(self, stream: str) -> tuple[FileEntry, ...]:
        assert stream == "orders"
        return (FILE,)

    def commit(self, batches: tuple[Batch, ...], published: dict[str, int]) -> Any:
        self.did("commit")
        (one,) = batches
        self.commits.append((one, published))
        return (self.answers.pop(0) if self.answers else None) or m.Committed(1)

    def say(self, message: Any) -> None:
        self.said.append(message)

    # -- the destination ---------------------------------------------------------------------------

    def refuse_unmarked(self, table: str) -> None:
        assert table == "orders"
        if self.unmarked:
            raise UNMARKED

    def stage(self, request: StageRequest) -> FakeStage:
        self.stages.append(FakeStage(self, request))
        return self.stages[-1]

    def publish_all(self, receipts: Sequence[Receipt]) -> None:
        self.did("publish " + " ".join(str(one.name.seq) for one in receipts))
        if self.publish and (trouble := self.publish.pop(0)):
            raise trouble
        owner = self.marker.owner if self.marker else OWNER
        name, at = receipts[-1].name, receipts[-1].cursor
        self.marker = Marker(owner, name.seq, at, 1, epoch=name.epoch)

    def adopt(self, owner: Owner, table: str, seq: int, epoch: int, at: Cursor | None) -> None:
        assert (owner, table) == (OWNER, "orders")
        self.adopted.append((seq, at))
        if self.marker is not None:
            self.marker = Marker(owner, seq, at, 1, epoch=epoch)

    def run(
        self,
        *,
        settings: StreamSettings = KEY,
        **state: Any,
    ) -> StreamResult:
        """A run of the stream, whose state in the catalog is given by its fields."""

        def read(request: ReadRequest) -> FakeRead:
            self.requests.append(request)
            return self.read

        def marker(table: str) -> Marker | None:
            assert table == "orders"
            return self.marker

        destination = SimpleNamespace(
            modes=self.modes,
            marker=marker,
            refuse_unmarked=self.refuse_unmarked,
            stage=self.stage,
            publish=self.publish_all,
            adopt=self.adopt,
            discard=self.discarded.append,
        )
        lane = SimpleNamespace(
            source=lambda order: {"from": SimpleNamespace(read=read)}[order.name],
            destination=lambda order: {"to": destination}[order.name],
            forget=lambda order: self.forgotten.append(order.name),
        )
        ends = [m.ConnectionOrder(name, "fake", {}, {}) for name in ("from", "to")]
        order = m.RunOrder(
            *("cat", "shop", "shop", 9, 0, *ends, (), StreamSettings(), {}, (), 1, ()),
            self.unpublished,
            self.ledgers,
        )
        known = StreamState("shop", "orders", **state)
        return StreamRun(
            order, cast(Any, self), cast(Any, lane), self.shared, settings, known
        ).run()


def at(seq: int, owner: Owner = OWNER, **more: Any) -> Marker:
    return Marker(owner, seq, cursor(seq), 1, **more)


def held(found: StreamResult) -> Hold:
    assert found.outcome is Outcome.HELD
    assert found.hold is not None
    assert found.hold.reason == found.reason
    return found.hold
