"""The source behind ``connector = "history"``: this project's own runs, as the stream ``runs``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import anyio
import pyarrow as pa

from catalog import position
from catalog.errors import CannotOpen, CatalogError
from catalog.open import is_made, open_catalog
from catalog.port import Catalog
from catalog.records import Cursor, CursorKind, ErrorClass, Micros, Run, RunQuery
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.arrow import to_schema
from reconciler.connectors.ports import (
    ConnectorError,
    Finding,
    FoundStream,
    Mark,
    Read,
    ReadItem,
    ReadRequest,
    Rows,
)
from reconciler.connectors.sources import definition
from reconciler.connectors.sources.nearest import no_such

STREAM = "runs"
KEY = ("epoch",)
_PAGE = 1_000
_INSTANT = pa.timestamp("us", "UTC")
SCHEMA = pa.schema(
    [
        ("epoch", pa.int64()),
        ("pipeline", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("first_started_at", _INSTANT),
        ("started_at", _INSTANT),
        ("finished_at", _INSTANT),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("rejected", pa.int64()),
        ("count", pa.int64()),
    ]
)
_NOTES = (
    "a run is exported once no run that began before it is still open",
    "consecutive runs with nothing new are one row, which comes again, with a higher epoch and "
    "count, as it grows; rows with the same pipeline and first_started_at are the same one",
)
_Answer = TypeVar("_Answer")


def open_history(name: str, options: Mapping[str, Any]) -> History:
    """The source for the catalog at ``url`` in the options."""
    return History(name, str(options.get("url", "")))


class History:
    """Runs in order of their epoch. The catalog is open only while it is asked."""

    def __init__(self, name: str, url: str) -> None:
        self._name, self._url = name, url

    def check(self, streams: Mapping[str, StreamSettings]) -> list[Finding]:
        """Whether the catalog opens, and only the stream ``runs`` is asked for. Makes no file."""
        wrong = [s for s in streams if s != STREAM]
        findings = [Finding("problem", str(self._no_such(s))) for s in wrong]
        if not is_made(self._url):
            return [*findings, Finding("ok", "the catalog's own history, empty before a first run")]
        try:
            self.ask(_identity)
        except ConnectorError as error:
            return [*findings, Finding("problem", str(error))]
        return [*findings, Finding("ok", "the catalog's own history")]

    def discover(
        self, select: Sequence[str], named: Mapping[str, StreamSettings]
    ) -> list[FoundStream]:
        """The one stream there is."""
        del select
        for stream in named:
            if stream != STREAM:
                raise self._no_such(stream)
        return [FoundStream(STREAM, to_schema(SCHEMA, KEY), ("epoch",), ("epoch",))]

    def streams(self, select: Sequence[str]) -> list[str]:
        """The one that there is."""
        del select
        return [STREAM]

    def read(self, request: ReadRequest) -> Read:
        """Runs after the cursor, up to the newest before which none is open."""
        if request.stream != STREAM:
            raise self._no_such(request.stream)
        identity, bound, open_run = self.ask(_bound)
        mode = request.settings.mode
        parts: dict[str, object] = {"source": f"history:{identity}", "column": "epoch"}
        parts["mode"] = mode.value
        body = definition.canonical(parts)
        after = 0
        whole = mode is Mode.REPLACE
        if request.cursor is not None and definition.counts(request.cursor, replaced=whole):
            kind, tag = CursorKind.MONOTONIC, "" if whole else request.cursor.position.tag
            definition.refuse_another(request.stream, request.cursor.definition, body, kind, tag)
            after = cast(int, position.decode(request.cursor.position))
        return HistoryRead(self, body, after, bound, open_run, whole=whole)

    def ask(self, question: Callable[[Catalog], Awaitable[_Answer]]) -> _Answer:
        """Open the catalog, ask, close it. Raises ``ConnectorError`` (transient), also where its
        file is not there: one made here would stand in the way of what is to be put back.
        """

        async def main() -> _Answer:
            async with open_catalog(self._url) as catalog:
                return await question(catalog)

        try:
            if not is_made(self._url):
                raise CannotOpen(f"nothing is at {self._url}")
            return anyio.run(main)
        except CatalogError as error:
            raise ConnectorError(
                ErrorClass.TRANSIENT, f"connection {self._name!r}: the catalog: {error}"
            ) from None

    def _no_such(self, stream: str) -> ConnectorError:
        return no_such("stream", stream, [STREAM], self._name)

    def close(self) -> None:
        """Nothing is open between questions."""


class HistoryRead:
    """Runs ``after`` one epoch up to another, newest first, in one commit."""

    ordered = False
    key: tuple[str, ...] = KEY
    schema = SCHEMA
    notes: tuple[str, ...] = _NOTES

    def __init__(
        self,
        source: History,
        definition_: str,
        after: int,
        bound: int,
        open_run: Run | None,
        *,
        whole: bool,
    ) -> None:
        """``open_run``: the one that keeps ended runs back."""
        self._source = source
        self._definition, self._after, self._bound = definition_, after, bound
        self.has_news = whole or bound > after
        self.idle = ""
        if open_run is not None and not self.has_news:
            self.idle = (
                f"nothing new: run {open_run.epoch} of pipeline {open_run.pipeline!r} is still "
                "open, and those that began after it wait for its end"
            )

    def items(self) -> Iterator[ReadItem]:
        """Rows, and the mark at the bound."""
        newest: Micros | None = None
        below = self._bound + 1
        while below > self._after + 1:
            query = RunQuery(below_epoch=below, limit=_PAGE)
            found = self._source.ask(partial(_runs, query=query))
            runs = [run for run in found if run.epoch > self._after]
            if runs:
                newest = max(newest or 0, *(run.finished_at or 0 for run in runs))
                yield Rows(_batch(runs))
            if len(runs) < _PAGE:
                break
            below = runs[-1].epoch
        place = position.encode("int", self._bound)
        yield Mark(Cursor(CursorKind.MONOTONIC, self._definition, place), newest)

    def counts(self) -> Mapping[str, int]:
        """Nothing is left out."""
        return {}

    def close(self) -> None:
        """Nothing stays open."""


async def _identity(catalog: Catalog) -> str:
    return catalog.id


async def _bound(catalog: Catalog) -> tuple[str, int, Run | None]:
    """The catalog's id, the newest epoch with no open run at or below it (C1), and the open run
    above that, unless it is the newest of all.

    The newest run is asked for first: a run that begins meanwhile has a higher epoch.
    """
    newest = await catalog.runs(RunQuery(limit=1))
    if not newest:
        return catalog.id, 0, None
    bound = newest[0].epoch
    below: int | None = None
    oldest: Run | None = None
    while still := await catalog.runs(RunQuery(open_only=True, below_epoch=below, limit=_PAGE)):
        oldest = still[-1]
        below = oldest.epoch
        bound = min(bound, below - 1)
    keeps_back = oldest is not None and oldest.epoch < newest[0].epoch
    return catalog.id, bound, oldest if keeps_back else None


async def _runs(catalog: Catalog, query: RunQuery) -> tuple[Run, ...]:
    return await catalog.runs(query)


def _batch(runs: Sequence[Run]) -> pa.RecordBatch:
    columns = [
        [run.epoch for run in runs],
        [run.pipeline for run in runs],
        [None if run.outcome is None else run.outcome.value for run in runs],
        [run.reason for run in runs],
        [run.first_started_at or run.started_at for run in runs],
        [run.started_at for run in runs],
        [run.finished_at for run in runs],
        [run.rows for run in runs],
        [run.bytes for run in runs],
        [run.rejected for run in runs],
        [run.count for run in runs],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
