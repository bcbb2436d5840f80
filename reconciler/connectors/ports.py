"""The two ports of a connector: where data comes from, and where it goes.

Connectors run in worker processes only, in plain threads, and may block. They know nothing of
the catalog's storage, of each other or of the daemon. What moves is ``pyarrow.RecordBatch``, which
is ``Any`` unless types are checked: importing the ports does not import Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from catalog.records import Cursor, ErrorClass, FileEntry, HoldKind, Micros
from reconciler.config.desired import Mode, StreamSettings
from reconciler.schema.model import Schema

if TYPE_CHECKING:
    import pyarrow as pa

    RecordBatch: TypeAlias = pa.RecordBatch
    ArrowSchema: TypeAlias = pa.Schema
else:
    RecordBatch = ArrowSchema = Any


NOTED_FILE_BYTES = 200
"""What noting a file takes in a message at most, beside its path."""


class ConnectorError(Exception):
    """A failure with its class: what happens next follows from it, not from the text.

    ``message`` is a sentence for a person and holds no secret. ``retry_after``: seconds, for
    ``rate_limited``. ``busy``: the destination is held by another; no failure of the source (B6).
    """

    def __init__(
        self,
        error: ErrorClass,
        message: str,
        *,
        retry_after: float | None = None,
        busy: bool = False,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.retry_after = retry_after
        self.busy = busy


class NeedsAnswer(Exception):
    """The stream cannot go on without a person: it becomes a hold of this kind."""

    def __init__(
        self, kind: HoldKind, reason: str, choices: tuple[str, ...], detail: str = ""
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.choices = choices
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Secrets:
    """Resolved secrets by option name. Never renders."""

    values: Mapping[str, str]

    def get(self, name: str) -> str | None:
        return self.values.get(name)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self.values))})"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``check``: ``ok``, ``warning`` or ``problem``."""

    level: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class FoundStream:
    """A stream that a source has, as ``discover`` shows it and a run selects from."""

    name: str
    schema: Schema
    cursors: tuple[str, ...] = ()
    """Columns that could be a cursor, best first."""
    indexed: tuple[str, ...] = ()
    """Those of them that lead an index."""
    rows: int | None = None
    """An estimate."""


# -- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of the stream, in the read's schema."""

    batch: RecordBatch


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row the source could not turn into columns: where it stood, and why not (C6)."""

    place: str
    """``file:line`` or a key."""
    reason: str
    raw: str
    """What was found, cut at 4 KiB."""


@dataclass(frozen=True, slots=True)
class Rejected:
    rows: tuple[RejectedRow, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes moved though no rows came (a large file is being hashed): not a stall."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Mark:
    """All rows up to here may be committed, and then ``cursor`` is where to go on (C3).

    The last item of each read that reached its bound is a mark. Between marks nothing may be
    committed: a whole table, and a read in no useful order, has one mark only (B7).
    """

    cursor: Cursor | None = None
    data_at: Micros | None = None
    files: tuple[FileEntry, ...] = ()
    forgotten: tuple[str, ...] = ()


ReadItem: TypeAlias = Rows | Rejected | Progress | Mark


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What to read: a stream beyond its cursor up to a bound that the source fixes first."""

    stream: str
    settings: StreamSettings
    cursor: Cursor | None
    """None: from the beginning."""
    refresh: bool = False
    """All again, whatever the cursor and the ledger say; the read ends in one mark."""
    ledger: Callable[[], Sequence[FileEntry]] = tuple
    """The files read before; asked for only by sources that read files."""
    stopped: Callable[[], bool] = lambda: False
    """True: stop waiting or reading soon, by raising ``Stopped``."""


class Stopped(Exception):
    """Reading ended because ``ReadRequest.stopped`` said so. Discards nothing (A8)."""


class Read(Protocol):
    """One stream being read. Iterate ``items`` once; close always."""

    schema: ArrowSchema
    """Of every batch. Canonical Arrow types only: see ``reconciler.connectors.arrow``."""
    key: tuple[str, ...]
    ordered: bool
    """Marks come between rows; otherwise one mark ends the read."""
    has_news: bool
    """False: certain before reading that nothing is new; ``items`` yields at most a mark."""
    idle: str
    """Why nothing is new, where that may surprise a person; else empty."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What this read assumes or cannot see, and what held its bound back (rule 8, C1, C2).
        Complete once ``items`` has ended."""
        ...

    def items(self) -> Iterator[ReadItem]:
        """Rows and marks in order. Raises ``ConnectorError``, ``NeedsAnswer``, ``Stopped``."""
        ...

    def counts(self) -> Mapping[str, int]:
        """What was left out: ``null_cursor``, ``beyond_bound``; asked for after the last item."""
        ...

    def close(self) -> None: ...


class Source(Protocol):
    """A place to read from. Opened once for a worker and kept warm between its runs."""

    def check(self, streams: Mapping[str, StreamSettings]) -> list[Finding]:
        """Connect, and say what is right and wrong: version, rights, an index on the cursor."""
        ...

    def discover(
        self, select: Sequence[str], named: Mapping[str, StreamSettings]
    ) -> list[FoundStream]:
        """The streams that match ``select`` (globs, ``!`` takes away), and those named."""
        ...

    def streams(self, select: Sequence[str]) -> list[str]:
        """The names alone of those that match: none is looked into, so that one which is locked or
        just dropped keeps no other from being read."""
        ...

    def read(self, request: ReadRequest) -> Read:
        """Fix the bound, then open the read. Raises ``ConnectorError``, ``NeedsAnswer``."""
        ...

    def close(self) -> None: ...


# -- writing -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Owner:
    """Who writes a table: the marker's first line (B4)."""

    catalog: str
    pipeline: str
    stream: str


@dataclass(frozen=True, slots=True)
class BatchName:
    """Names a staged batch (B3): ``<catalog>/<pipeline>/<stream>/<epoch>/<seq>``."""

    owner: Owner
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Marker:
    """The destination's own record of a stream (B4)."""

    owner: Owner
    seq: int
    cursor: Cursor | None
    schema_version: int
    has_rows: bool = True
    """The table exists and is not empty, as seen when the marker was read."""
    epoch: int = 0
    """The run that committed the batch published last, or that adopted the table after it; 0: its
    rows are gone."""


@dataclass(frozen=True, slots=True)
class StageRequest:
    """A batch about to be staged."""

    name: BatchName
    table: str
    mode: Mode
    """``replace`` also for a refresh: the batch is all there is."""
    schema: Schema
    """Target schema, the three columns of our own included."""
    schema_version: int
    arrow: ArrowSchema
    """The same as Arrow: the schema of every batch written."""
    settings: StreamSettings
    may_empty: bool = True
    """False: publishing no rows over a table that has some is refused as ``EMPTY_REPLACE``."""
    after: int = 0
    """The run that committed the batch before this one; 0: it is not known."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    path: str
    """Relative to the destination's staging root."""
    size: int
    checksum: str
    rows: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """All that ``publish`` and ``discard`` need (B5): no config, no secret. JSON by msgspec."""

    connector: str
    destination: str
    """Identity of the destination: another one refuses the receipt."""
    name: BatchName
    table: str
    mode: Mode
    key: tuple[str, ...]
    schema: Schema
    schema_version: int
    rows: int
    bytes: int
    files: tuple[StagedFile, ...]
    rejected: tuple[StagedFile, ...] = ()
    partition_by: tuple[str, ...] = ()
    cursor: Cursor | None = None
    """For the marker; None: the marker keeps the cursor it has."""
    after: int = 0
    """As in the request: two copies of a destination may both have a batch of the number before."""


class Stage(Protocol):
    """One batch being staged; seen by nobody until published."""

    def write(self, batch: RecordBatch) -> None: ...

    def reject(self, rows: Sequence[RejectedRow]) -> None:
        """Set rows aside, for ``<table>__rejected`` (C6)."""
        ...

    @property
    def bytes(self) -> int:
        """Staged so far."""
        ...

    def seal(self, cursor: Cursor | None) -> Receipt:
        """Make it durable: every file and every directory made is fsynced (B8)."""
        ...

    def abort(self) -> None:
        """Drop what was never sealed, and so never offered for commit."""
        ...


class Destination(Protocol):
    """A place to write to. Opened once for a worker and kept warm between its runs."""

    connector: str
    modes: frozenset[Mode]

    def check(self) -> list[Finding]: ...

    def marker(self, table: str) -> Marker | None:
        """The marker of ``table``, whoever owns it; None: the table has none (is new)."""
        ...

    def refuse_unmarked(self, table: str) -> None:
        """Raise ``NeedsAnswer`` where ``table`` is there without a marker: whose rows it has, and
        which, nobody can tell."""
        ...

    def stage(self, request: StageRequest) -> Stage: ...

    def publish(self, receipts: Sequence[Receipt]) -> None:
        """Make sealed batches of one stream visible, in order, each with its marker (B5).

        One whose seq is at most the marker's is passed over; one that does not follow it is
        ``permanent``; an owner that is not the marker's, or staged files that are gone, raise
        ``NeedsAnswer`` (``DESTINATION``, ``LOST_BATCH``). Returns when all is durable. Raises
        ``ConnectorError(busy=True)`` naming who holds the destination, when somebody does.
        """
        ...

    def staged(self, catalog: str, pipeline: str) -> list[BatchName]:
        """Batches staged under this catalog and pipeline, sealed or not, not yet published."""
        ...

    def discard(self, name: BatchName) -> None:
        """Remove a staged batch. The caller has made sure that it may (B2)."""
        ...

    def adopt(self, owner: Owner, table: str, seq: int, epoch: int, cursor: Cursor | None) -> None:
        """Set the marker, as a person decided (``cursor adopt``); an absent table stays absent.

        ``epoch``: of the run that adopts. All that is there is durable when this returns: who
        published it may have been cut off before it was.
        """
        ...

    def close(self) -> None: ...
