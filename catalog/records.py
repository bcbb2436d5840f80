"""The catalog's words as immutable records. No behaviour, no storage, no Arrow.

Units, once for all: every ``*_at`` is microseconds since 1970-01-01 UTC; ``seq`` counts batches of
one stream from 1 (0: none yet); an ``epoch`` is also the id of the run that it stands for (A2).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias

from msgspec import Struct

Micros: TypeAlias = int
PIPELINE_SCOPE = "*"
"""The stream name under which a cursor of pipeline scope is kept (one LSN, one Singer state)."""
MAX_UNPUBLISHED = 8
"""At most so many committed, unpublished batches a stream (B6)."""


class Outcome(StrEnum):
    """How a run, or one stream of it, ended. Listed worst first; a run takes its worst (A9)."""

    FENCED = "fenced"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    FAILED = "failed"
    HELD = "held"
    SUCCEEDED = "succeeded"
    NOTHING_NEW = "nothing_new"


class ErrorClass(StrEnum):
    """What a failure means for what happens next."""

    TRANSIENT = "transient"
    RATE_LIMITED = "rate_limited"
    AUTH_EXPIRED = "auth_expired"
    CURSOR_EXPIRED = "cursor_expired"
    PERMANENT = "permanent"
    SCHEMA_INCOMPATIBLE = "schema_incompatible"


class CursorKind(StrEnum):
    """What may be assumed of a cursor's values (rule 4)."""

    MONOTONIC = "monotonic"
    OPAQUE_TOKEN = "opaque_token"  # noqa: S105 - a kind of cursor, not a secret
    SNAPSHOT_ID = "snapshot_id"


class TriggerKind(StrEnum):
    """Why a run was started."""

    TICK = "tick"
    REQUEST = "request"
    RETRY = "retry"
    AFTER = "after"


class HoldKind(StrEnum):
    """What a held stream waits for a person to answer."""

    SCHEMA = "schema"
    DESTINATION = "destination"
    DEFINITION = "definition"
    FILES_CHANGED = "files_changed"
    NULL_CURSOR = "null_cursor"
    NULL_KEY = "null_key"
    EMPTY_REPLACE = "empty_replace"
    LOST_BATCH = "lost_batch"


class Position(Struct, frozen=True):
    """A cursor's value. Backends compare ``data`` of equal ``tag`` bytewise, and nothing else."""

    tag: str
    data: bytes
    text: str
    """For people; never compared, never parsed."""


class Cursor(Struct, frozen=True):
    """The position up to which data is committed, with what it is a position of."""

    kind: CursorKind
    definition: str
    """Canonical text of columns, types and source identity; another definition is a hold (C4)."""
    position: Position


class Holder(Struct, frozen=True):
    """One process instance that may hold leases. Its id is random and never used again."""

    id: str
    host: str
    pid: int


class Lease(Struct, frozen=True):
    """The right to write for one pipeline, shown with every write: the epoch is the fence."""

    pipeline: str
    epoch: int
    holder: str


class Request(Struct, frozen=True):
    """A person's wish for one run, kept until a run that answers it finishes."""

    id: str
    by: str
    at: Micros
    streams: tuple[str, ...] = ()
    """Only these streams; empty: all."""


class Mark(Struct, frozen=True):
    """Who put a pipeline aside (paused by a person, parked by the daemon), when and why."""

    by: str
    at: Micros
    why: str


class Trigger(Struct, frozen=True):
    """What a run answers. ``finish`` consumes it, unless interrupted or fenced (A3)."""

    kind: TriggerKind
    tick: Micros | None = None
    """The schedule's instant, for ``tick``: the latest one due; all up to it are consumed."""
    request: str | None = None
    news: tuple[tuple[str, int], ...] = ()
    """For ``after``: how much each upstream had brought (its ``news``) when this was planned."""
    streams: tuple[str, ...] = ()
    """Only these streams (a retry of those that failed); empty: all."""


class Hold(Struct, frozen=True):
    """A stream waits for a person. ``choices`` are the answers that end the wait."""

    kind: HoldKind
    reason: str
    at: Micros
    choices: tuple[str, ...]
    from_version: int = 0
    """For ``schema``: the version that the proposal starts from."""
    fingerprint: str = ""
    """For ``schema``: of the proposed schema; ``approve`` and ``reject`` name it (F)."""
    detail: str = ""
    """JSON for the answer to work with, such as the proposed schema or the marker's cursor."""


class StreamState(Struct, frozen=True):
    """What the catalog says of one stream."""

    pipeline: str
    stream: str
    seq: int = 0
    """Last committed batch."""
    published: int = 0
    """Last batch known to be published; a batch above it may be published all the same (B5)."""
    cursor: Cursor | None = None
    schema_version: int = 0
    hold: Hold | None = None
    directive: Literal["", "refresh", "adopt"] = ""
    """What a person asked of the next run: read all again; set the marker to the catalog's seq."""
    seen: str = ""
    """For ``adopt``: the marker that the person spoke of; another one is not adopted. '': any."""
    ledger_from: int = 0
    """The ledger of files says which batch brought what from this one on, and not before: that one
    replaced all, or a person's edit began the ledger anew there."""
    committed_by: int = 0
    """The run that committed batch ``seq``."""
    published_by: int = 0
    """The run that committed batch ``published``, or adopted the destination after it. The marker
    there says so too: another one is of a catalog or a destination that was restored (B4)."""
    data_at: Micros | None = None
    rows: int = 0
    """Rows committed in all."""
    last_outcome: Outcome | None = None
    last_reason: str = ""


class PipelineState(Struct, frozen=True):
    """What the catalog says of one pipeline; all that the planner needs of it."""

    name: str
    version: int = 0
    """Rises with each change of this record; ``claim`` re-checks it. 0: the catalog has none."""
    change: int = 0
    """Position in the catalog's order of changes; see ``Catalog.changed``."""
    epoch: int = 0
    """Current or last epoch; 0: never leased."""
    holder: str = ""
    """Who holds the lease; empty: nobody."""
    lease_expires_at: Micros | None = None
    """For display. Whether a lease may be taken is the backend's to say: ``lapsed``."""
    lapsed: bool = False
    """Held, but its holder's time is over or its boot is gone: ``claim`` may take it."""
    paused: Mark | None = None
    parked: Mark | None = None
    request: Request | None = None
    cancel: int = 0
    """The epoch that a person asked to cancel; 0: none."""
    tick: Micros | None = None
    """The latest schedule instant consumed."""
    failures: int = 0
    """Consecutive failed runs."""
    retry_at: Micros | None = None
    """A failed run is tried again then; None: not before its next trigger."""
    retry_streams: tuple[str, ...] = ()
    news: int = 0
    """``rows`` when a run last ended well: what ``after`` pipelines compare with ``after_seen``."""
    after_seen: tuple[tuple[str, int], ...] = ()
    """The upstreams' ``news`` that a finished run of this pipeline has answered."""
    held: tuple[str, ...] = ()
    """Streams with a hold."""
    last_outcome: Outcome | None = None
    last_reason: str = ""
    last_epoch: int = 0
    """The run that ``last_outcome`` is of."""
    last_started_at: Micros | None = None
    last_finished_at: Micros | None = None
    last_success_at: Micros | None = None
    """Last run that succeeded or found nothing new."""
    data_at: Micros | None = None
    """Newest committed cursor time, if cursors are times."""
    rows: int = 0
    """Rows committed in all."""
    rejected: int = 0
    origin: str = ""
    """By which name destinations know it, where that is another: it was renamed. No two pipelines
    of a catalog ever have the same one."""

    @property
    def is_vacant(self) -> bool:
        """A name that a renamed pipeline had, and that nothing has run by since."""
        return self.origin.startswith(f"{self.name}~") and not self.epoch


class Candidate(Struct, frozen=True):
    """A dispatch that the planner proposes and ``claim`` re-checks."""

    pipeline: str
    version: int
    trigger: Trigger
    reason: str
    connections: tuple[str, ...] = ()


class StreamResult(Struct, frozen=True):
    """One stream's part in a run."""

    stream: str
    outcome: Outcome
    reason: str = ""
    error: ErrorClass | None = None
    rows: int = 0
    bytes: int = 0
    rejected: int = 0
    hold: Hold | None = None
    """Set with outcome ``held``: recorded by ``finish``."""
    adopted: bool = False
    """The directive ``adopt`` is carried out."""
    marked_by: int = 0
    """With ``adopted``: the run that the marker then names; 0: there is no marker."""


class Run(Struct, frozen=True):
    """One leased attempt; ``epoch`` is its id. ``outcome`` is None while it is open."""

    epoch: int
    pipeline: str
    holder: str
    trigger: Trigger
    reason: str
    """While it runs why it was started, afterwards why it ended as it did."""
    started_at: Micros
    connections: tuple[str, ...] = ()
    finished_at: Micros | None = None
    outcome: Outcome | None = None
    error: ErrorClass | None = None
    rows: int = 0
    bytes: int = 0
    rejected: int = 0
    streams: tuple[StreamResult, ...] = ()
    count: int = 1
    """How many consecutive runs with nothing new this row stands for."""
    first_started_at: Micros | None = None
    """Start of the first of them."""


class Claimed(Struct, frozen=True):
    """A lease acquired and its run opened."""

    lease: Lease
    run: Run
    pipeline: PipelineState
    streams: tuple[StreamState, ...]


class NotClaimed(Struct, frozen=True):
    """Why a candidate got no lease. ``connection``: the one at its limit."""

    pipeline: str
    why: Literal["changed", "leased", "connection_full"]
    holder: str = ""
    connection: str = ""


ClaimAnswer: TypeAlias = Claimed | NotClaimed


class Renewal(Struct, frozen=True):
    """What a heartbeat achieved; leases by pipeline, then epoch."""

    lost: tuple[Lease, ...]
    """Named by the caller, but no longer its own: those runs end as fenced."""
    released: tuple[Lease, ...]
    """The caller's own by the catalog, but not named: released, their runs interrupted (A4)."""


class FileEntry(Struct, frozen=True):
    """A file that was read, as the ledger keeps it (C6)."""

    path: str
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    hash: str
    seq: int = 0
    """The batch that brought its content; 0, or what the stream has not come to: this one."""
    epoch: int = 0
    """The run that committed that batch."""


class SchemaVersion(Struct, frozen=True):
    """A numbered schema of one stream. ``body`` is its canonical JSON."""

    version: int
    fingerprint: str
    body: str
    created_at: Micros = 0
    epoch: int = 0


class Decision(Struct, frozen=True):
    """The recorded answer to a schema change: by whom (``policy`` or a person), when, why."""

    stream: str
    from_version: int
    fingerprint: str
    answer: Literal["approved", "rejected"]
    changes: str
    """JSON: the typed differences; for a person's answer the hold's ``detail``."""
    by: str
    why: str
    at: Micros = 0


class Batch(Struct, frozen=True):
    """What ``commit`` records of one sealed batch."""

    stream: str
    follows: int
    """The seq it follows; its own is one more (B1)."""
    receipt: str
    """JSON, opaque to the catalog; empty only for ``PIPELINE_SCOPE``, which has no data."""
    cursor: Cursor | None = None
    """None leaves the cursor as it is."""
    rows: int = 0
    bytes: int = 0
    rejected: int = 0
    data_at: Micros | None = None
    schema: SchemaVersion | None = None
    """The version this batch is of: the stream's last, or the one after it, recorded here."""
    decisions: tuple[Decision, ...] = ()
    """Decisions by policy that this batch is the first to use."""
    files: tuple[FileEntry, ...] = ()
    """Ledger entries to set, by path."""
    forgotten: tuple[str, ...] = ()
    """Ledger paths to drop (a file that moved)."""
    replaces: bool = False
    """It replaces all before it: the ledger starts anew, a directive ``refresh`` is answered and
    the cursor may go anywhere and have a new definition."""


class Commit(Struct, frozen=True):
    """A recorded batch."""

    pipeline: str
    stream: str
    seq: int
    epoch: int
    receipt: str
    rows: int
    bytes: int
    rejected: int
    schema_version: int
    committed_at: Micros
    cursor: Cursor | None = None
    published: bool = False


class Finish(Struct, frozen=True):
    """How a run ended and what is to happen next; the lease ends with it."""

    outcome: Outcome
    reason: str
    error: ErrorClass | None = None
    streams: tuple[StreamResult, ...] = ()
    published: tuple[tuple[str, int], ...] = ()
    """High-water seq that is visible at the destination, per stream."""
    retry_at: Micros | None = None
    retry_streams: tuple[str, ...] = ()
    park: str = ""
    """Why the pipeline is not to be planned until a person acts; empty: it is."""


# What a person can change. One transaction each, with the old and the new in the audit (rule 8).


class Pause(Struct, frozen=True):
    pipeline: str


class Resume(Struct, frozen=True):
    """Ends a pause and a parking; consecutive failures start anew."""

    pipeline: str


class RequestRun(Struct, frozen=True):
    """Ask for one run. Also ends a parking and, if it is for all streams, a wait for a retry."""

    pipeline: str
    request: str
    streams: tuple[str, ...] = ()


class CancelRun(Struct, frozen=True):
    """Ask for the open run of this epoch to end. 0: whichever is open."""

    pipeline: str
    epoch: int = 0


class AnswerSchema(Struct, frozen=True):
    """Answer a schema hold: ``approved`` evolves, ``rejected`` goes on with the old schema."""

    pipeline: str
    stream: str
    fingerprint: str
    answer: Literal["approved", "rejected"]


class Refresh(Struct, frozen=True):
    """Read the stream again from its beginning with the next run; ends any hold."""

    pipeline: str
    stream: str


class SetCursor(Struct, frozen=True):
    """Put the cursor elsewhere (``cursor set``, ``cursor rewind``); None forgets it."""

    pipeline: str
    stream: str
    cursor: Cursor | None
    seq_at_least: int = 0
    """The seq goes on above this one: the marker's, where that is higher."""
    adopt: bool = False
    """Also set the directive ``adopt`` (the marker is to follow)."""
    seen: str = ""
    """With ``adopt``: as in ``Adopt``."""
    forget_after: int | None = None
    """What batches after this one brought is struck from the ledger of files, so that it is read
    again (C6). None: the ledger stays."""
    forget_later: int | None = None
    """With ``forget_after``: so is what runs after this one brought, whatever the batch. Of two
    catalogs, one of them restored, each has batches by the other's numbers."""


class Adopt(Struct, frozen=True):
    """Accept the destination as it is: the next run sets its marker to the catalog's."""

    pipeline: str
    stream: str
    seen: str = ""
    """What the person saw of it, the ``detail`` of the stream's hold: a destination that changed
    meanwhile is held anew instead. '': as it will be."""


class Rename(Struct, frozen=True):
    """Give a pipeline that has not run all that the catalog knows of another: ``renamed_from``."""

    pipeline: str
    """The new name."""
    was: str


class Release(Struct, frozen=True):
    """End a hold that needs nothing else (null keys mended, an empty table is meant)."""

    pipeline: str
    stream: str


EditAction: TypeAlias = (
    Pause
    | Resume
    | RequestRun
    | CancelRun
    | AnswerSchema
    | Refresh
    | SetCursor
    | Adopt
    | Release
    | Rename
)


class Edit(Struct, frozen=True):
    """An audit row: who changed what, when, from what to what, and why."""

    id: int
    at: Micros
    by: str
    why: str
    action: str
    """Snake-case name of the action: ``pause``, ``set_cursor``."""
    pipeline: str
    stream: str
    old: str
    new: str


class HolderState(Struct, frozen=True):
    """A holder as the catalog sees it."""

    holder: Holder
    boot_id: str
    expires_at: Micros
    """For display."""
    lapsed: bool
    leases: int


class Retention(Struct, frozen=True):
    """What to keep. ``before`` bounds runs and edits; one call deletes at most ``limit`` rows."""

    runs_before: Micros
    operations_before: Micros
    limit: int = 500


class CatalogStats(Struct, frozen=True):
    """Sizes and waits, for metrics and ``catalog check``."""

    backend: str
    size_bytes: int
    limit_bytes: int
    wal_bytes: int = 0
    pipelines: int = 0
    open_runs: int = 0
    writes: int = 0
    """Transactions' worth of operations acknowledged by this process."""
    groups: int = 0
    """Flushes that carried them."""
    last_error: str = ""
    """Why the catalog is not writable now; empty: it is."""


class RunQuery(Struct, frozen=True):
    """Which runs, newest first."""

    pipeline: str = ""
    outcome: Outcome | None = None
    open_only: bool = False
    below_epoch: int | None = None
    """For paging: only runs older than this one."""
    limit: int = 50


class Check(Struct, frozen=True):
    """What an integrity check found; empty ``problems``: nothing."""

    problems: tuple[str, ...] = ()
