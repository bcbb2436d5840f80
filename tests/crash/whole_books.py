"""What a machine's runs were told, against what is found after its power failed."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catalog import position
from catalog.port import Catalog
from catalog.records import Claimed, Cursor, CursorKind, Outcome, Run
from reconciler.config.desired import StreamSettings
from reconciler.connectors.destinations.parquet_table import TableFolder
from reconciler.connectors.ports import (
    Finding,
    FoundStream,
    Mark,
    ReadItem,
    ReadRequest,
    Rejected,
    RejectedRow,
    Rows,
)
from tests.power_loss import LossyDisk

LAKE = Path("/volume/lake")
SCHEMAS = {
    "orders": pa.schema([pa.field("id", pa.int64()), pa.field("kind", pa.string())]),
    "country": pa.schema([pa.field("id", pa.int64()), pa.field("name", pa.string())]),
    "stock": pa.schema([pa.field("id", pa.int64()), pa.field("item", pa.int64())]),
}


class Shelf:
    """The source: ``orders`` that come, one in seven of them bad; ``country``, which changes."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.orders = 0
        self.country: list[dict[str, Any]] = [{"id": 1, "name": "a"}]

    def grow(self) -> None:
        """Orders come, or none; the countries are others."""
        self.orders += self._chance.choice((0, 1, 3, 8))
        count = self._chance.randint(1, 3)
        self.country = [{"id": n, "name": f"{self.orders}"} for n in range(count)]

    def check(self, streams: Mapping[str, StreamSettings]) -> list[Finding]:
        return []

    def discover(
        self, select: Sequence[str], named: Mapping[str, StreamSettings]
    ) -> list[FoundStream]:
        return []

    def streams(self, select: Sequence[str]) -> list[str]:
        return []

    def read(self, request: ReadRequest) -> ShelfRead:
        return ShelfRead(self, request)

    def close(self) -> None: ...


def is_bad(order: int) -> bool:
    return order % 7 == 0


class ShelfRead:
    """Orders beyond the cursor, with a mark after each three; or all countries."""

    key: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    idle = ""

    def __init__(self, shelf: Shelf, request: ReadRequest) -> None:
        self.schema = SCHEMAS[request.stream]
        self.whole = request.stream == "country"
        self.ordered = not self.whole and not request.refresh
        self._country = list(shelf.country)
        at = request.cursor
        self._first = 1 if at is None else int(str(position.decode(at.position))) + 1
        self._last = shelf.orders
        self.has_news = self.whole or self._first <= self._last
        self.idle = ""

    def items(self) -> Iterator[ReadItem]:
        if self.whole:
            yield Rows(pa.RecordBatch.from_pylist(self._country, self.schema))
            yield Mark()
            return
        for first in range(self._first, self._last + 1, 3):
            last = min(first + 2, self._last)
            ids = range(first, last + 1)
            rows = [self._row(n) for n in ids if not is_bad(n)]
            yield Rows(pa.RecordBatch.from_pylist(rows, self.schema))
            if bad := tuple(RejectedRow(str(n), "bad", "x") for n in ids if is_bad(n)):
                yield Rejected(bad)
            if self.ordered:
                yield Mark(self._at(last))
        yield Mark(self._at(self._last))

    def _row(self, order: int) -> dict[str, Any]:
        return {"id": order, "kind": f"k{order % 2}"}

    def _at(self, order: int) -> Cursor:
        return Cursor(CursorKind.MONOTONIC, "orders(id)", position.encode("int", order))

    def counts(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None: ...


class Books:
    """What was acknowledged, and what was asked for at the moment of a cut."""

    def __init__(self) -> None:
        self.holders = 0
        self._epoch = 0
        self._receipts: dict[str, list[str]] = {}
        """By stream, the receipt of each acknowledged batch."""
        self._pending: dict[str, str] = {}
        self._published: dict[str, int] = {}
        self._ended: tuple[int, Outcome | None] = (0, None)

    # -- what happens -----------------------------------------------------------------------------

    def asked(self, verb: str, args: Sequence[Any]) -> None:
        if verb == "commit":
            self._pending = {batch.stream: batch.receipt for batch in args[2]}

    def acknowledged(self, verb: str, args: Sequence[Any], answer: Any) -> None:
        match verb:
            case "claim":
                for one in answer:
                    assert isinstance(one, Claimed), one
                    assert one.lease.epoch > self._epoch, "an epoch was issued again"
                    self._epoch = one.lease.epoch
            case "commit":
                for batch, commit in zip(args[2], answer, strict=True):
                    receipts = self._receipts.setdefault(batch.stream, [])
                    assert commit.seq == len(receipts) + 1, "a seq was issued again"
                    receipts.append(batch.receipt)
                self._pending = {}
            case "finish":
                self._ended = answer.epoch, answer.outcome

    def published(self, marks: Mapping[str, int]) -> None:
        """A run published up to these batches."""
        self._published |= marks

    # -- what is found ----------------------------------------------------------------------------

    async def check(self, catalog: Catalog, marker: Callable[[str], int]) -> None:
        """Everything acknowledged is there; at most the commit under way came as well, whole.

        ``marker``: the batch up to which the destination says that it has a stream.
        """
        assert (await catalog.check()).problems == ()
        states = {state.stream: state for state in await catalog.streams("shop")}
        for stream in {*self._receipts, *self._pending}:
            receipts = self._receipts.setdefault(stream, [])
            seq = states[stream].seq if stream in states else 0
            if seq == len(receipts) + 1 and stream in self._pending:
                receipts.append(self._pending[stream])  # it happened, though nobody heard of it
            assert seq == len(receipts), f"{stream}: {len(receipts)} acknowledged, {seq} there"
            rows = await catalog.commits("shop", stream, limit=5)
            for row in rows:
                assert row.receipt == receipts[row.seq - 1], f"{stream}: batch {row.seq} changed"
            at = marker(stream)
            assert self._published.get(stream, 0) <= at <= seq, f"{stream}: the marker is at {at}"
        self._pending = {}
        await self._check_run(catalog)

    async def _check_run(self, catalog: Catalog) -> None:
        epoch, outcome = self._ended
        run: Run | None = await catalog.run(epoch) if epoch else None
        assert not epoch or run is None or run.outcome is outcome, f"run {epoch}: {run}"
        if epoch:
            assert (await catalog.pipeline("shop")).epoch >= self._epoch, "an epoch was lost"

    def check_rows(self, lake: LossyDisk, shelf: Shelf) -> None:
        """After the last run: the tables are what the source has, each row once."""
        good = [n for n in range(1, shelf.orders + 1) if not is_bad(n)]
        for stream, wanted in (("orders", good), ("country", [c["id"] for c in shelf.country])):
            folder = TableFolder(lake, LAKE / stream, stream)
            state = folder.state()
            listed = folder.manifest(state) if state else []
            assert sorted(listed) == sorted(folder.data_files())
            rows = [row["id"] for row in read(lake, folder.path, listed)]
            assert sorted(rows) == wanted, f"{stream}: {rows}"
        aside = TableFolder(lake, LAKE / "orders__rejected", "orders")
        rows = read(lake, aside.path, aside.data_files())
        places = Counter((row["place"], row["_batch_id"]) for row in rows)
        assert max(places.values(), default=1) == 1, "a row was set aside twice"
        bad = {str(n) for n in range(1, shelf.orders + 1) if is_bad(n)}
        assert {place for place, _ in places} == bad
        known = {LAKE / ".reconciler" / "locks", *(LAKE / name for name in lake.listdir(LAKE))}
        known -= {LAKE / ".reconciler"}
        left = [path for path in files_below(lake, LAKE.parent) if not known & set(path.parents)]
        assert left == [], left


def marker_in(lake: LossyDisk, stream: str) -> int:
    """The batch up to which the lake has the stream."""
    state = TableFolder(lake, LAKE / stream, stream).state()
    return state.seq if state else 0


def files_below(lake: LossyDisk, path: Path) -> list[Path]:
    """All files in it; folders that are empty after a loss of power do no harm."""
    found = []
    for name in lake.listdir(path):
        inside = path / name
        found += files_below(lake, inside) if lake.is_dir(inside) else [inside]
    return found


def read(lake: LossyDisk, base: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    tables = [pq.ParquetFile(io.BytesIO(lake.read(base / name))).read() for name in names]
    return [row for table in tables for row in table.to_pylist()]
