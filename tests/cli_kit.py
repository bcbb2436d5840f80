"""A small project for tests of the command line, its catalog filled through the port alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from catalog.open import open_catalog
from catalog.port import Catalog, new_operation_id
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    Cursor,
    CursorKind,
    Finish,
    Hold,
    HoldKind,
    Outcome,
    Position,
    Run,
    SchemaVersion,
    StreamResult,
    Trigger,
    TriggerKind,
)
from reconciler.cli.main import main
from reconciler.lease.locks import HolderLock, new_holder
from reconciler.schema.model import Field, Schema, dump, fingerprint

T = TypeVar("T")

CONFIG = """\
project = "shop"

[connections.shop_db]
connector = "sql"
url = "sqlite:///shop.sqlite"
max_runs = 2

[connections.warehouse]
connector = "duckdb"
path = "shop.duckdb"
schema = "raw"

[pipelines.shop]
source = "shop_db"
destination = "warehouse"
schedule = "every 15m"
select = ["*"]
cursor = ["updated_at"]

[pipelines.stock]
source = "shop_db"
destination = "warehouse"
select = ["*"]
cursor = ["updated_at"]
streams = { stock = { table = "stock" } }
after = ["shop"]
"""

NARROW = Schema((Field("id", "int64", nullable=False), Field("amount", "int64")), ("id",))
WIDE = Schema((*NARROW.fields, Field("note", "text")), ("id",))
PROPOSAL = Hold(
    HoldKind.SCHEMA,
    "Column 'note' (text) is new.",
    at=1,
    choices=("approve", "reject"),
    from_version=1,
    fingerprint=fingerprint(WIDE),
    detail=json.dumps({"schema": json.loads(dump(WIDE)), "changes": []}),
)


def cursor_at(number: int) -> Cursor:
    """A cursor on an integer column, as a source makes it."""
    from catalog.position import encode

    position = encode("int", number)
    assert isinstance(position, Position)
    return Cursor(CursorKind.MONOTONIC, "updated_at int64", position)


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document that it printed."""
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Shop:
    """A folder with a config, the command line in it, and its catalog."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def cli(self, *args: str) -> Result:
        """Carry out one command line."""
        self.capsys.readouterr()
        code = main(["--config", str(self.folder / "config.toml"), *args])
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return Result(code, out, err)

    def on(self, work: Callable[[Catalog], Awaitable[T]]) -> T:
        """Do something to the catalog through its port, as another process would."""

        async def opened() -> T:
            async with open_catalog(f"sqlite:///{self.folder}/state/catalog.db") as catalog:
                return await work(catalog)

        (self.folder / "state").mkdir(exist_ok=True)
        return asyncio.run(opened())

    @contextmanager
    def daemon_lock(self) -> Iterator[None]:
        """What makes a daemon look up: its holder's lock. None is there to do the work."""
        lock = HolderLock(self.folder / "state", new_holder("daemon"))
        try:
            yield
        finally:
            lock.close()


def make_shop(folder: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    """A project that has never run."""
    (folder / "config.toml").write_text(CONFIG)
    return Shop(folder, capsys)


async def claim(catalog: Catalog, pipeline: str = "shop", ttl: float = 30.0) -> Claimed:
    """Take the pipeline's lease as some daemon would, for the request or the tick that is due."""
    state = await catalog.pipeline(pipeline)
    trigger = Trigger(TriggerKind.TICK, tick=1_000_000)
    if state.request is not None:
        request = state.request
        trigger = Trigger(TriggerKind.REQUEST, request=request.id, streams=request.streams)
    candidate = Candidate(pipeline, state.version, trigger, "due", ("shop_db", "warehouse"))
    (answer,) = await catalog.claim(
        new_operation_id(), new_holder("daemon"), [candidate], ttl=ttl, limits={}
    )
    assert isinstance(answer, Claimed)
    return answer


async def commit(
    catalog: Catalog,
    claimed: Claimed,
    stream: str = "orders",
    rows: int = 3,
    at: int = 10,
    rejected: int = 0,
) -> None:
    """Commit one published batch of the stream under the lease."""
    streams = {s.stream: s for s in await catalog.streams(claimed.lease.pipeline)}
    follows = streams[stream].seq if stream in streams else 0
    batch = Batch(
        stream,
        follows,
        "{}",
        cursor=cursor_at(at),
        rows=rows,
        bytes=rows * 10,
        rejected=rejected,
        schema=SchemaVersion(1, fingerprint(NARROW), dump(NARROW)),
    )
    await catalog.commit(new_operation_id(), claimed.lease, [batch], {})


async def finish(
    catalog: Catalog, claimed: Claimed, outcome: Outcome, *results: StreamResult, reason: str = ""
) -> Run:
    """End the run; its streams are published as far as they are committed."""
    streams = await catalog.streams(claimed.lease.pipeline)
    ended = Finish(
        outcome,
        reason or outcome.value,
        streams=results,
        published=tuple((s.stream, s.seq) for s in streams),
    )
    return await catalog.finish(new_operation_id(), claimed.lease, ended)


async def ran(catalog: Catalog, pipeline: str = "shop", rows: int = 3, at: int = 10) -> Run:
    """A whole run that brought rows of stream ``orders``."""
    claimed = await claim(catalog, pipeline)
    await commit(catalog, claimed, rows=rows, at=at)
    result = StreamResult("orders", Outcome.SUCCEEDED, rows=rows, bytes=rows * 10)
    return await finish(catalog, claimed, Outcome.SUCCEEDED, result, reason="brought rows")


async def held(catalog: Catalog, hold: Hold = PROPOSAL) -> Run:
    """A run that brought rows, and one after it that is held."""
    await ran(catalog)
    return await held_at_first(catalog, hold)


async def held_at_first(catalog: Catalog, hold: Hold = PROPOSAL) -> Run:
    """A run that is held, before any that brought rows."""
    claimed = await claim(catalog)
    result = StreamResult("orders", Outcome.HELD, hold.reason, hold=hold)
    return await finish(catalog, claimed, Outcome.HELD, result, reason=hold.reason)


async def failed(catalog: Catalog, reason: str = "the source is away") -> Run:
    """A run that failed."""
    claimed = await claim(catalog)
    result = StreamResult("orders", Outcome.FAILED, reason)
    return await finish(catalog, claimed, Outcome.FAILED, result, reason=reason)
