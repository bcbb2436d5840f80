"""One stream of one run: settle, read, shape, stage, seal, commit, publish, in this order.

The order is the protocol (rule 2): sealed at the destination, then committed by the daemon in its
catalog, then published. Nothing here decides about leases; every step that others could see asks
``link.check_lease`` first (A8).
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from catalog.records import (
    MAX_UNPUBLISHED,
    Batch,
    ErrorClass,
    FileEntry,
    Hold,
    HoldKind,
    Outcome,
    StreamResult,
    StreamState,
)
from reconciler.config.desired import Mode, StreamSettings, fold, table_name
from reconciler.connectors import arrow
from reconciler.connectors.killpoints import point
from reconciler.connectors.ports import (
    NOTED_FILE_BYTES,
    BatchName,
    ConnectorError,
    Destination,
    Mark,
    Marker,
    NeedsAnswer,
    Owner,
    Progress,
    Read,
    ReadRequest,
    Receipt,
    Rejected,
    RejectedRow,
    Rows,
    Stage,
    StageRequest,
    Stopped,
)
from reconciler.run import messages as m
from reconciler.run.connections import Connections
from reconciler.run.link import Link
from reconciler.run.mismatch import AGREES, Mismatch, marker_detail
from reconciler.run.shape import Shape
from reconciler.schema.own import with_own

SEAL_BYTES = 64 * 1024 * 1024
"""An ordered read is sealed at the first mark past so many staged bytes ..."""
SEAL_SECONDS = 30.0
"""... or after so long, so that a slow source's rows are not kept back."""
NOTED_BYTES = 16 * 1024 * 1024
"""... or once it notes so much of files without rows to speak of, as where a folder was renamed: a
commit is one message, and one transaction."""
_OF_DESTINATION = (HoldKind.DESTINATION, HoldKind.LOST_BATCH)
"""Holds that are looked at anew with each run: an answer is to what is there now."""


class _NotRecorded(Exception):
    """The daemon did not record a batch; the answer says whether that is certain."""

    def __init__(self, answer: m.NotCommitted) -> None:
        super().__init__(answer.text)
        self.answer = answer


@dataclass
class Shared:
    """What the streams of one run tell it, from several threads."""

    published: dict[str, int]
    notes: list[tuple[str, str]] = field(default_factory=list)
    retry_after: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class _Pending:
    """Rows staged since the last commit, and the last mark among them."""

    stage: Stage
    shape: Shape
    opened_at: float
    rows: int = 0
    rejected: int = 0
    mark: Mark | None = None
    files: list[FileEntry] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    noted_bytes: int = 0

    def take(self, item: Rows | Rejected | Mark) -> None:
        match item:
            case Rows(batch):
                shaped, misfits = self.shape.apply(batch)
                self.stage.write(shaped)
                self.rows += shaped.num_rows
                self._reject(misfits)
            case Rejected(rows):
                self._reject(rows)
            case Mark():
                self._note(item)

    def _reject(self, rows: Sequence[RejectedRow]) -> None:
        if rows:
            self.stage.reject(rows)
            self.rejected += len(rows)

    def _note(self, mark: Mark) -> None:
        self.mark = mark
        paths = (*(entry.path for entry in mark.files), *mark.forgotten)
        self.noted_bytes += sum(NOTED_FILE_BYTES + len(path.encode()) for path in paths)
        self.files += mark.files
        self.forgotten += mark.forgotten

    @property
    def is_worth_a_commit(self) -> bool:
        return bool(self.rows or self.rejected or self.files or self.forgotten)

    @property
    def is_enough(self) -> bool:
        """It is to be sealed at this mark, for the read to go on behind it."""
        old = time.monotonic() - self.opened_at > SEAL_SECONDS
        much = self.stage.bytes >= SEAL_BYTES or self.noted_bytes >= NOTED_BYTES
        return self.is_worth_a_commit and (much or old)


class StreamRun:
    """Brings one stream up to date."""

    def __init__(
        self,
        order: m.RunOrder,
        link: Link,
        lane: Connections,
        shared: Shared,
        settings: StreamSettings,
        state: StreamState,
    ) -> None:
        self._order, self._link, self._lane, self._shared = order, link, lane, shared
        self._settings = settings
        self._state = state
        self.stream = state.stream
        self._owner = Owner(order.catalog, order.origin, self.stream)
        self._table = settings.table or table_name(self.stream)
        self._seq = state.seq
        self._read = self._rows = self._bytes = self._rejected = 0
        self._adopted, self._marked_by = False, 0
        self._before = 0
        """The run that committed the batch before the next one; 0: it is not known."""
        self._refresh = state.directive == "refresh"
        self._unpublished: list[Receipt] = []
        self._verdict: m.Verdict | None = None
        self._told_at = 0.0

    @property
    def _destination(self) -> Destination:
        """Open; asked for anew each time, since it is closed after an error."""
        return self._lane.destination(self._order.destination)

    # -- the whole ---------------------------------------------------------------------------

    def run(self) -> StreamResult:
        """Settle, read, commit, publish; every way that it can end is an outcome."""
        try:
            return self._bring_up_to_date()
        except NeedsAnswer as need:
            return self._held(need)
        except Stopped:
            return self._result(Outcome.CANCELLED, "cancelled")
        except _NotRecorded as refusal:
            return self._not_recorded(refusal.answer)
        except ConnectorError as error:
            self._forget_connections()
            if error.retry_after is not None:
                with self._shared.lock:  # of all its streams the longest counts
                    self._shared.retry_after = max(error.retry_after, self._shared.retry_after or 0)
            return self._result(Outcome.FAILED, str(error), error.error)
        except Exception as error:
            traceback.print_exc()  # to the run's log; the person gets the sentence
            self._forget_connections()
            text = f"the connector met a fault of its own: {type(error).__name__}: {error}"
            return self._result(Outcome.FAILED, text, ErrorClass.TRANSIENT)

    def _bring_up_to_date(self) -> StreamResult:
        marker = self._settle()
        hold = self._state.hold
        if hold is not None and hold.kind in _OF_DESTINATION and (marker or not _is_foreign(hold)):
            raise self._mismatch(marker).fits_again()
        if hold is not None:  # not recorded again: it may have been answered meanwhile
            return self._result(Outcome.HELD, hold.reason)
        modes = self._destination.modes
        if self._settings.mode not in modes:
            raise ConnectorError(
                ErrorClass.PERMANENT,
                f"mode {self._settings.mode.value!r} is not one of "
                f"{', '.join(sorted(mode.value for mode in modes))}, which the "
                f"destination {self._order.destination.name!r} knows",
            )
        read = self._lane.source(self._order.source).read(self._request())
        try:
            if read.has_news or (self._refresh and (self._seq or read.schema.names)):
                self._copy(read, marker)
            self._note(f"{count} rows left out: {why}" for why, count in read.counts().items())
        finally:
            self._note(read.notes)  # they may grow while it reads
            read.close()
        self._publish(last=True)
        if self._rows == 0 and self._rejected == 0:
            return self._result(Outcome.NOTHING_NEW, read.idle or "nothing new up to the bound")
        return self._result(Outcome.SUCCEEDED, "read to its bound")

    # -- settling: the destination and what earlier runs left (B4, B5) --------------------------

    def _settle(self) -> Marker | None:
        self._unpublished = [
            msgspec.json.decode(commit.receipt, type=Receipt)
            for commit in self._order.unpublished
            if commit.stream == self.stream
        ]
        marker = self._destination.marker(self._table)
        if self._state.directive == "adopt":
            if not self._unpublished:
                marker = self._adopt(marker)
            # Else a run that was cut off has adopted already, and what waits was committed after
            # the edit: a marker set to the catalog's seq now would pass it over.
            self._adopted, self._marked_by = True, marker.epoch if marker else 0
        self._unpublished = self._still_to_publish()
        if any(fold(receipt.table) != fold(self._table) for receipt in self._unpublished):
            # They go where they were meant to; whether the new table fits is looked at after that.
            self._publish(last=True)
            self._state = replace(self._state, published=self._seq)
        self._check_marker(marker)
        self._before = self._marked_by if self._adopted else self._state.published_by
        if self._unpublished:
            self._before = self._unpublished[-1].name.epoch
            self._publish(last=True)
            marker = self._destination.marker(self._table)
        return marker

    def _adopt(self, marker: Marker | None) -> Marker | None:
        """Also where a run that was cut off has done it: then it may not be durable."""
        seen = self._state.seen
        if seen == AGREES and not self._follows(marker):
            self._check_marker(marker)
        elif seen not in ("", AGREES, marker_detail(marker)) and not self._follows(marker):
            raise self._mismatch(marker).changed_since()
        if marker is None and seen:  # the person was told that nothing is there
            self._destination.refuse_unmarked(self._table)
        self._link.check_lease()
        epoch, cursor = self._order.epoch, self._state.cursor
        self._destination.adopt(self._owner, self._table, self._seq, epoch, cursor)
        return self._destination.marker(self._table)

    def _follows(self, marker: Marker | None) -> bool:
        """Whether the marker is where an adoption would put it."""
        if marker is None:
            return False
        place = (self._owner, self._state.seq, self._state.cursor)
        return (marker.owner, marker.seq, marker.cursor) == place

    def _still_to_publish(self) -> list[Receipt]:
        """What is still to be published: all since the last replacement, which stands for what was
        committed before it; nothing if one is read now."""
        if self._refresh:
            return []
        whole = [i for i, r in enumerate(self._unpublished) if r.mode is Mode.REPLACE]
        return self._unpublished[whole[-1] :] if whole else self._unpublished

    def _check_marker(self, marker: Marker | None) -> None:
        """Refuse to go on with a destination that does not match the catalog (rule 5)."""
        state = self._state
        is_replaced = bool(self._unpublished) and self._unpublished[0].mode is Mode.REPLACE
        if marker is None:
            if state.published == 0 or self._refresh or is_replaced:
                return
            if not self._unpublished:  # those leave `refresh` alone, which looks again
                self._destination.refuse_unmarked(self._table)
            raise self._mismatch(None).gone()
        if marker.owner != self._owner:
            raise self._mismatch(marker).foreign()
        if self._refresh or is_replaced:
            return
        if marker.seq < state.published:
            raise self._mismatch(marker).behind()
        if marker.seq > state.seq:
            self._publish(last=True)  # was done long ago: now it is known, and bars no choice
            raise self._mismatch(marker).ahead()
        by = self._committed_by(marker.seq)
        if by and marker.epoch not in (0, by) and not self._adopted:
            raise self._mismatch(marker).another(by)

    def _committed_by(self, seq: int) -> int:
        """The run that the marker of a batch should name; 0: it is not known."""
        if seq == self._state.published:
            return self._state.published_by
        return next((r.name.epoch for r in self._unpublished if r.name.seq == seq), 0)

    def _mismatch(self, marker: Marker | None) -> Mismatch:
        waiting, mode = len(self._unpublished), self._settings.mode
        return Mismatch(self._table, mode, self._state, marker, waiting, self._ledger)

    # -- reading --------------------------------------------------------------------------------

    def _request(self) -> ReadRequest:
        return ReadRequest(
            stream=self.stream,
            settings=self._settings,
            cursor=None if self._refresh else self._state.cursor,
            refresh=self._refresh,
            ledger=self._ledger,
            stopped=self._stopped,
        )

    def _ledger(self) -> tuple[FileEntry, ...]:
        known = self._order.ledgers.get(self.stream)
        return self._link.ledger(self.stream) if known is None else known

    def _stopped(self) -> bool:
        self._link.check_lease()
        return self._link.cancelled

    def _copy(self, read: Read, marker: Marker | None) -> None:
        pending: _Pending | None = None
        try:
            for item in read.items():
                if self._stopped():
                    raise Stopped
                if isinstance(item, Progress):
                    self._tell(item.bytes)
                    continue
                if pending is None:
                    pending = self._open(read)
                pending.take(item)
                if isinstance(item, Rows):
                    self._tell(item.batch.nbytes, item.batch.num_rows)
                # A replacement is one batch: the next would take the place of the one before (B7).
                pieces = read.ordered and not self._replaces()
                if pieces and isinstance(item, Mark) and pending.is_enough:
                    self._commit(pending, marker)
                    pending = None
            if pending is not None and (pending.is_worth_a_commit or self._replaces()):
                self._commit(pending, marker)
                pending = None
        finally:
            if pending is not None:
                pending.stage.abort()

    def _replaces(self) -> bool:
        return self._refresh or self._settings.mode is Mode.REPLACE

    def _tell(self, size: int, rows: int = 0) -> None:
        self._bytes += size
        self._read += rows
        now = time.monotonic()
        if now - self._told_at >= 1.0:
            self._told_at = now
            self._link.say(m.Moved(self.stream, self._read, self._bytes))

    # -- staging --------------------------------------------------------------------------------

    def _open(self, read: Read) -> _Pending:
        key = self._settings.key or read.key
        if self._settings.mode is Mode.MERGE and not key:
            # A hold and no failure: a table that somebody makes is to stop no other one.
            raise NeedsAnswer(
                HoldKind.NULL_KEY,
                f"stream {self.stream!r} has no key to merge on: the source declares none; set "
                '`key = ["column"]`, or mode = "append" or "replace", or take it out of `select`',
                ("retry",),
            )
        verdict = self._verdict or self._link.propose(
            self.stream, arrow.to_schema(read.schema, key)
        )
        if verdict.hold is not None:
            raise _ByVerdict(verdict.hold)
        self._verdict = verdict
        assert verdict.target is not None
        assert verdict.version is not None
        target = with_own(verdict.target)
        arrow_schema = arrow.to_arrow(target)
        seq = self._seq + 1
        own = {
            "_run_id": self._order.epoch,
            "_batch_id": seq,
            "_loaded_at": time.time_ns() // 1_000,
        }
        # Rows that go into several files have their order in this column alone.
        counted = "_loaded_at" if key and self._settings.partition_by else ""
        shape = Shape(verdict.columns, arrow_schema, key, own=own, counted=counted)
        self._link.check_lease()
        stage = self._destination.stage(
            StageRequest(
                name=BatchName(self._owner, self._order.epoch, seq),
                table=self._table,
                mode=Mode.REPLACE if self._replaces() else self._settings.mode,
                schema=target,
                schema_version=verdict.version.version,
                arrow=arrow_schema,
                settings=self._settings,
                may_empty=self._settings.allow_empty,
                after=self._before,
            )
        )
        return _Pending(stage, shape, time.monotonic())

    # -- committing and publishing ---------------------------------------------------------------

    def _commit(self, pending: _Pending, marker: Marker | None) -> None:
        mark = pending.mark or Mark()
        if self._replaces():
            self._refuse_emptying(pending, marker)
        point("worker.before_seal")
        with self._link.pulse():
            receipt = pending.stage.seal(mark.cursor)
        point("worker.sealed")
        assert self._verdict is not None
        batch = Batch(
            stream=self.stream,
            follows=self._seq,
            receipt=msgspec.json.encode(receipt).decode(),
            cursor=mark.cursor,
            rows=pending.rows,
            bytes=receipt.bytes,
            rejected=pending.rejected,
            data_at=mark.data_at,
            schema=self._verdict.version,
            decisions=self._verdict.decisions,
            files=tuple(pending.files),
            forgotten=tuple(pending.forgotten),
            replaces=self._replaces(),
        )
        self._link.check_lease()
        answer = self._link.commit((batch,), self._published())
        if isinstance(answer, m.NotCommitted):
            if answer.definite:  # B2 b: our own batch, certainly not recorded
                self._destination.discard(receipt.name)
            raise _NotRecorded(answer)
        point("worker.committed")
        self._seq += 1
        self._before = self._order.epoch
        self._rows += pending.rows
        self._rejected += pending.rejected
        self._verdict = replace(self._verdict, decisions=())
        self._unpublished.append(receipt)
        self._publish(last=False)

    def _refuse_emptying(self, pending: _Pending, marker: Marker | None) -> None:
        had_rows = marker is not None and marker.has_rows
        if pending.rows == 0 and had_rows and not self._settings.allow_empty:
            found = "the source has no rows now"
            if pending.rejected:
                found = f"all rows that the source has now ({pending.rejected}) are set aside"
            raise NeedsAnswer(
                HoldKind.EMPTY_REPLACE,
                f"{found}, and table {self._table!r} has some: replacing them by none is held; "
                "`allow_empty = true` on the stream lets it happen",
                ("retry", "refresh"),
            )

    def _publish(self, *, last: bool) -> None:
        """Make committed batches visible, in order. A busy destination may wait, up to a point."""
        if not self._unpublished:
            return
        self._link.check_lease()
        point("worker.before_publish")
        try:
            with self._link.pulse():
                self._destination.publish(self._unpublished)
        except ConnectorError as error:
            full = len(self._unpublished) >= MAX_UNPUBLISHED
            if error.busy and not (last or full):
                return
            raise
        point("worker.published")
        high = self._unpublished[-1].name.seq
        with self._shared.lock:
            self._shared.published[self.stream] = high
        self._unpublished = []

    def _published(self) -> dict[str, int]:
        with self._shared.lock:
            published = dict(self._shared.published)
        if self._refresh:  # what waited is void once the replacement is committed
            published.setdefault(self.stream, self._seq)
        return published

    # -- outcomes -------------------------------------------------------------------------------

    def _result(
        self, outcome: Outcome, reason: str, error: ErrorClass | None = None
    ) -> StreamResult:
        return StreamResult(
            stream=self.stream,
            outcome=outcome,
            reason=reason,
            error=error,
            rows=self._rows,
            bytes=self._bytes,
            rejected=self._rejected,
            adopted=self._adopted,
            marked_by=self._marked_by,
        )

    def _held(self, need: NeedsAnswer) -> StreamResult:
        before = self._state.hold
        known = before is not None and before.kind is need.kind
        at = before.at if before is not None and known else time.time_ns() // 1_000
        hold = (
            need.hold
            if isinstance(need, _ByVerdict)
            else Hold(need.kind, need.reason, at, need.choices, detail=need.detail)
        )
        return replace(self._result(Outcome.HELD, need.reason), hold=hold)

    def _not_recorded(self, answer: m.NotCommitted) -> StreamResult:
        if answer.code == "fenced":
            return self._result(Outcome.FENCED, answer.text)
        error = ErrorClass.PERMANENT if answer.definite else ErrorClass.TRANSIENT
        if answer.code in ("unavailable", "full", "unpublished", "stream_held"):
            error = ErrorClass.TRANSIENT
        return self._result(Outcome.FAILED, answer.text, error)

    def _note(self, notes: Iterable[str]) -> None:
        with self._shared.lock:
            self._shared.notes += [(self.stream, note) for note in notes]

    def _forget_connections(self) -> None:
        self._lane.forget(self._order.source)
        self._lane.forget(self._order.destination)


def _is_foreign(hold: Hold) -> bool:
    """It is about a table without a marker, which somebody else made: all that a marker gives rise
    to says so in its detail. That there is still none does not make the table ours."""
    return hold.kind is HoldKind.DESTINATION and not hold.detail


class _ByVerdict(NeedsAnswer):
    """A hold that the daemon already worded."""

    def __init__(self, hold: Hold) -> None:
        super().__init__(hold.kind, hold.reason, hold.choices, hold.detail)
        self.hold = hold
