"""One pipeline of one stream, run in this process: the real code of a run between real connectors
and a catalog in memory, without worker processes. For what takes many runs to find.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from catalog.clock import SystemClock
from catalog.errors import CatalogError
from catalog.memory import MemoryCatalog
from catalog.port import new_operation_id
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    Commit,
    FileEntry,
    Finish,
    Holder,
    Outcome,
    StreamResult,
    Trigger,
    TriggerKind,
)
from reconciler.config.desired import StreamSettings
from reconciler.connectors.ports import ConnectorError
from reconciler.run import messages as m
from reconciler.run.connections import Connections
from reconciler.run.execute import execute
from reconciler.run.link import Link
from reconciler.schema.decide import HoldOn, decide
from reconciler.schema.model import Schema

HOLDER = Holder("kit", "host", 1)


@dataclass
class Line:
    """What a run asks of the daemon, answered at once out of the catalog in memory.

    Each message goes through the wire's encoding, as it does between processes.
    """

    catalog: MemoryCatalog
    claimed: Claimed
    settings: StreamSettings
    cancelled: bool = False
    _ids: Iterator[int] = field(default_factory=lambda: iter(range(1, 10**9)))

    def say(self, message: m.ToDaemon) -> None:
        m.for_daemon(m.frame(message)[4:])

    def propose(self, stream: str, schema: Schema) -> m.Verdict:
        id_ = next(self._ids)
        self.say(m.Propose(id_, stream, schema))
        versions = asyncio.run(self.catalog.schemas(self.claimed.lease.pipeline, stream))
        verdict = decide(
            stream, versions[-1] if versions else None, schema, self.settings.schema_changes, (), 1
        )
        if isinstance(verdict, HoldOn):
            return m.Verdict(id_, hold=verdict.hold)
        answer = m.Verdict(id_, verdict.version, verdict.target, verdict.columns, verdict.decisions)
        return cast(m.Verdict, m.for_worker(m.frame(answer)[4:]))

    def ledger(self, stream: str) -> tuple[FileEntry, ...]:
        files = asyncio.run(self.catalog.files(self.claimed.lease.pipeline, stream, limit=10_000))
        return cast(m.Ledger, m.for_worker(m.frame(m.Ledger(1, files))[4:])).files

    def commit(
        self, batches: tuple[Batch, ...], published: dict[str, int]
    ) -> m.Committed | m.NotCommitted:
        id_ = next(self._ids)
        asked = cast(m.AskCommit, m.for_daemon(m.frame(m.AskCommit(id_, batches, published))[4:]))
        try:
            asyncio.run(
                self.catalog.commit(
                    new_operation_id(), self.claimed.lease, asked.batches, asked.published
                )
            )
        except CatalogError as error:
            return m.NotCommitted(id_, error.code, str(error), definite=True)
        return m.Committed(id_)

    @contextlib.contextmanager
    def pulse(self) -> Iterator[None]:
        yield

    def check_lease(self) -> None:
        pass


class Bench:
    """The pipeline ``p`` with one stream, and its catalog."""

    def __init__(
        self,
        source: m.ConnectionOrder,
        destination: m.ConnectionOrder,
        settings: StreamSettings,
        stream: str = "s",
    ) -> None:
        self.stream = stream
        self.source, self.destination, self.settings = source, destination, settings
        self.catalog = MemoryCatalog(SystemClock())
        self.notes: list[str] = []

    def run(self) -> StreamResult:
        """One run, claimed and finished as the daemon does; how its stream ended."""
        claimed = asyncio.run(self._claim())
        order = m.RunOrder(
            catalog="kit",
            pipeline="p",
            origin="p",
            epoch=claimed.lease.epoch,
            deadline_ns=0,
            source=self.source,
            destination=self.destination,
            select=(),
            defaults=self.settings,
            named={self.stream: self.settings},
            only=(),
            parallel=1,
            streams=claimed.streams,
            unpublished=asyncio.run(self.catalog.commits("p", unpublished=True, limit=100)),
        )
        connections = Connections()
        line = cast(Link, Line(self.catalog, claimed, self.settings))
        try:
            done = execute(order, line, connections)
        except ConnectorError as error:
            done = m.Done(
                (StreamResult(self.stream, Outcome.FAILED, str(error), error=error.error),), {}
            )
        finally:
            connections.forget(self.source)
            connections.forget(self.destination)
        done = cast(m.Done, m.for_daemon(m.frame(done)[4:]))
        (result,) = done.streams
        self.notes = [text for _, text in done.notes]
        finish = Finish(
            result.outcome,
            result.reason,
            error=result.error,
            streams=done.streams,
            published=tuple(done.published.items()),
        )
        asyncio.run(self.catalog.finish(new_operation_id(), claimed.lease, finish))
        return result

    async def _claim(self) -> Claimed:
        state = await self.catalog.pipeline("p")
        candidate = Candidate("p", state.version, Trigger(TriggerKind.TICK, tick=1), "due", ())
        (answer,) = await self.catalog.claim(
            new_operation_id(), HOLDER, [candidate], ttl=60.0, limits={}
        )
        assert isinstance(answer, Claimed)
        return answer

    def files(self) -> dict[str, FileEntry]:
        """The ledger."""
        found = asyncio.run(self.catalog.files("p", self.stream, limit=10_000))
        return {entry.path: entry for entry in found}

    def unpublished(self) -> tuple[Commit, ...]:
        """Batches that are committed and not to be seen."""
        return tuple(asyncio.run(self.catalog.commits("p", unpublished=True, limit=100)))


def order(name: str, connector: str, **options: str | int) -> m.ConnectionOrder:
    """A connection without secrets."""
    return m.ConnectionOrder(name, connector, options, {})


def files_bench(folder: Path, settings: StreamSettings, destination: str = "parquet") -> Bench:
    """Files of ``folder/in`` into ``folder/out``."""
    (folder / "in").mkdir(exist_ok=True)
    target = folder / ("out" if destination == "parquet" else "out.duckdb")
    return Bench(
        order("inbox", "files", path=str(folder / "in")),
        order("target", destination, path=str(target)),
        settings,
    )
