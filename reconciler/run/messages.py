"""What the daemon and a worker say to each other.

One frame is a 4-byte big-endian length and a msgpack map with a ``type``; decoding is strict, so
a worker that writes rubbish is a worker that broke, never a daemon that does. The worker holds no
right of its own: it reads and seals, and *asks* the daemon to commit (rule 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

import msgspec

from catalog.records import (
    Batch,
    Commit,
    Decision,
    ErrorClass,
    FileEntry,
    Hold,
    SchemaVersion,
    StreamResult,
    StreamState,
)
from reconciler.config.desired import StreamSettings
from reconciler.connectors.ports import Finding, FoundStream
from reconciler.schema.decide import ColumnRule
from reconciler.schema.model import Schema

MAX_WAIT = 30 * 86400.0
"""Seconds that a source may ask to be waited for."""
MAX_FRAME = 64 * 1024 * 1024
"""Bytes; a longer frame is a broken peer."""

LEASE_OVER_EXIT = 4
"""How a worker exits that stopped because its lease ran out without word from the daemon (A8)."""


class _Message(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    pass


class ConnectionOrder(msgspec.Struct, frozen=True):
    """A connection with its secrets resolved. Travels through the pipe only, never renders."""

    name: str
    connector: str
    options: Mapping[str, str | int | float | bool]
    secrets: Mapping[str, str]

    def __repr__(self) -> str:
        return f"ConnectionOrder({self.name!r}, {self.connector!r})"

    __str__ = __repr__


# -- daemon to worker ---------------------------------------------------------------------------


class RunOrder(_Message, frozen=True, tag="run"):
    """Bring one pipeline up to date under this epoch."""

    catalog: str
    pipeline: str
    origin: str
    """By which name destinations know the pipeline."""
    epoch: int
    deadline_ns: int
    """CLOCK_BOOTTIME after which nothing may be written any more (A8)."""
    source: ConnectionOrder
    destination: ConnectionOrder
    select: tuple[str, ...]
    defaults: StreamSettings
    named: Mapping[str, StreamSettings]
    only: tuple[str, ...]
    """Only these streams; empty: all."""
    parallel: int
    streams: tuple[StreamState, ...]
    unpublished: tuple[Commit, ...]
    """Committed batches that may not be visible yet, by stream and ascending seq (B5)."""
    ledgers: Mapping[str, tuple[FileEntry, ...]] = {}
    """Ledgers of files short enough to come along; any other is asked for with ``AskLedger``."""


class InspectOrder(_Message, frozen=True, tag="inspect"):
    """Look at a connection: ``check`` and ``discover``. Reads no data and writes nothing."""

    connection: ConnectionOrder
    role: str
    """``source`` or ``destination``."""
    select: tuple[str, ...] = ()
    named: Mapping[str, StreamSettings] = {}
    defaults: StreamSettings = StreamSettings()
    """For the streams that ``select`` finds and ``named`` does not name."""
    discover: bool = False


class Deadline(_Message, frozen=True, tag="deadline"):
    """The lease was renewed: the run may go on until then."""

    deadline_ns: int


class Cancel(_Message, frozen=True, tag="cancel"):
    """End the run soon; discard nothing that may be committed."""


class Verdict(_Message, frozen=True, tag="verdict"):
    """The answer to ``Propose``: how to go on, or ``hold``."""

    id: int
    version: SchemaVersion | None = None
    target: Schema | None = None
    columns: tuple[ColumnRule, ...] = ()
    decisions: tuple[Decision, ...] = ()
    hold: Hold | None = None


class Committed(_Message, frozen=True, tag="committed"):
    """The batches are recorded."""

    id: int


class NotCommitted(_Message, frozen=True, tag="not_committed"):
    """``code`` is the catalog error's; ``definite``: it is certain that nothing was recorded."""

    id: int
    code: str
    text: str
    definite: bool


class Ledger(_Message, frozen=True, tag="ledger"):
    """The answer to ``AskLedger``. A ledger grows for ever, and a frame does not: page by page."""

    id: int
    files: tuple[FileEntry, ...]
    more: bool = False
    """There may be others after the last of these."""


# -- worker to daemon ---------------------------------------------------------------------------


class Ready(_Message, frozen=True, tag="ready"):
    """The first word of a worker: all that every run needs is loaded."""


class Propose(_Message, frozen=True, tag="propose"):
    """The source's schema, before the first row is written."""

    id: int
    stream: str
    schema: Schema


class AskCommit(_Message, frozen=True, tag="commit"):
    """Record these sealed batches; ``published`` is what became visible meanwhile."""

    id: int
    batches: tuple[Batch, ...]
    published: Mapping[str, int]
    epoch: int = 0
    """Of the order that they were read for; another one's is refused."""


class AskLedger(_Message, frozen=True, tag="ask_ledger"):
    """The files that a stream's commits have read, by path."""

    id: int
    stream: str
    after: str = ""
    """Those behind this path."""


class Moved(_Message, frozen=True, tag="moved"):
    """A sign of life with what a stream has read so far; of no stream, without: the run gets on."""

    stream: str
    rows: int
    bytes: int


class Done(_Message, frozen=True, tag="done"):
    """The run is over on the worker's side."""

    streams: tuple[StreamResult, ...]
    published: Mapping[str, int]
    notes: tuple[tuple[str, str], ...] = ()
    """(stream, sentence): what reads assumed or could not see."""
    retry_after: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT)] | None = None
    failure: str = ""
    """Why no stream could be tried at all; empty: they were."""
    error: ErrorClass | None = None
    epoch: int = 0
    """Of the order that it answers."""


def failed(
    why: str,
    error: ErrorClass = ErrorClass.TRANSIENT,
    *,
    retry_after: float | None = None,
    epoch: int = 0,
) -> Done:
    """The end of a run in which no stream could be tried."""
    return Done((), {}, retry_after=retry_after, failure=why, error=error, epoch=epoch)


class Inspected(_Message, frozen=True, tag="inspected"):
    """What ``InspectOrder`` found."""

    findings: tuple[Finding, ...] = ()
    streams: tuple[FoundStream, ...] = ()


ToWorker: TypeAlias = (
    RunOrder | InspectOrder | Deadline | Cancel | Verdict | Committed | NotCommitted | Ledger
)
ToDaemon: TypeAlias = Ready | Propose | AskCommit | AskLedger | Moved | Done | Inspected

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_daemon: msgspec.msgpack.Decoder[ToDaemon] = msgspec.msgpack.Decoder(ToDaemon)


_NO_MESSAGE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class BrokenPeer(Exception):
    """The other side sent what is no message."""


def frame(message: ToWorker | ToDaemon) -> bytes:
    """The message as bytes for the wire."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


def frame_length(head: bytes) -> int:
    """Length of the body that follows a frame's first four bytes."""
    length = int.from_bytes(head, "big")
    if length > MAX_FRAME:
        raise BrokenPeer(f"a frame of {length} bytes; at most {MAX_FRAME} are allowed")
    return length


def for_worker(body: bytes) -> ToWorker:
    """Decode a message to a worker. Raises ``BrokenPeer``."""
    try:
        return _to_worker.decode(body)
    except _NO_MESSAGE as error:
        raise BrokenPeer(str(error)) from None


def for_daemon(body: bytes) -> ToDaemon:
    """Decode a message to the daemon. Raises ``BrokenPeer``."""
    try:
        return _to_daemon.decode(body)
    except _NO_MESSAGE as error:
        raise BrokenPeer(str(error)) from None
