"""The catalog port: the one contract that every backend keeps.

Each verb is one linearizable transaction: it happens wholly, at one moment between its call and
its answer, or not at all. A backend is right when it passes ``catalog.conformance``; that suite is
the specification, ``catalog.memory`` its reference model.

**Operation ids (A5).** Every mutating verb takes ``op``, an id that its caller made up
(``new_operation_id``). The same id again gives the first answer without doing it again, also after
a restart, for at least a day; for another verb it is a ``BadRequest``. A *refusal* is not
remembered: nothing happened, so trying again is a new try. What may raise ``Unknown`` says so by
raising it; the caller resends the same id.

**Cancellation.** A write that still waits in a queue is withdrawn when its caller is cancelled.
Once its transaction has begun the caller waits, shielded, for the outcome.

**Fencing (rule 1).** ``commit`` and ``finish`` take the lease. In the same transaction they check
that the pipeline's current epoch is the lease's and that its holder is the lease's holder; if not
they raise ``Fenced`` and change nothing. Time plays no part in this: a lapsed lease that nobody
took is still its holder's.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from catalog.records import (
    Batch,
    Candidate,
    CatalogStats,
    Check,
    ClaimAnswer,
    Commit,
    Cursor,
    Decision,
    Edit,
    EditAction,
    FileEntry,
    Finish,
    Holder,
    HolderState,
    Lease,
    PipelineState,
    Renewal,
    Retention,
    Run,
    RunQuery,
    SchemaVersion,
    StreamState,
)

_numbers = itertools.count()


def new_operation_id() -> str:
    """A fresh operation id: 32 hex digits that sort by time, so that new ones are neighbours."""
    # No secret, but one for each commit: the system's own randomness would cost 8 us.
    time_ms, number = time.time_ns() // 1_000_000, next(_numbers) % 2**32
    return f"{time_ms:012x}{number:08x}{random.getrandbits(48):012x}"


class Catalog(Protocol):
    """All that a reconciler asks of its state. See the module for what holds for every verb."""

    @property
    def id(self) -> str:
        """The catalog's random id, made with it; a copy under another id is another catalog."""
        ...

    # -- reading -------------------------------------------------------------------------------

    async def pipeline(self, name: str) -> PipelineState:
        """The pipeline's state; one with ``version`` 0 where the catalog has none."""
        ...

    async def changed(self, after: int, limit: int = 1000) -> tuple[PipelineState, ...]:
        """Pipelines changed since ``change`` was ``after``, oldest change first, ``limit`` at most.

        Each pipeline comes once, in its newest state. ``after=0`` lists all, so paging with the
        last record's ``change`` reads the whole catalog and then follows it.
        """
        ...

    async def wait_changed(self, after: int, timeout: float) -> bool:
        """Wait until a change above ``after`` may be there that *another process* made.

        True: look now. False: ``timeout`` seconds passed. May be early, never late by more than
        about 0.1 s.
        """
        ...

    async def cursor(self, pipeline: str, stream: str) -> Cursor | None:
        """One stream's committed cursor: the point read that everything else waits for."""
        ...

    async def streams(self, pipeline: str) -> tuple[StreamState, ...]:
        """All streams that the catalog knows of a pipeline, by name."""
        ...

    async def run(self, epoch: int) -> Run | None:
        """One run by its id; None when unknown, folded away or past retention."""
        ...

    async def runs(self, query: RunQuery) -> tuple[Run, ...]:
        """Runs, newest (highest epoch) first."""
        ...

    async def commits(
        self, pipeline: str, stream: str = "", *, unpublished: bool = False, limit: int = 100
    ) -> tuple[Commit, ...]:
        """Recorded batches. ``unpublished``: those above each stream's published mark, by stream
        and ascending seq; otherwise newest first: by epoch and seq, descending, then stream."""
        ...

    async def schemas(self, pipeline: str, stream: str) -> tuple[SchemaVersion, ...]:
        """A stream's schema versions, ascending. A version once read is never changed (rule 6)."""
        ...

    async def decisions(self, pipeline: str, stream: str) -> tuple[Decision, ...]:
        """The answers given to a stream's schema changes, oldest first."""
        ...

    async def files(
        self, pipeline: str, stream: str, *, after: str = "", limit: int = 10_000
    ) -> tuple[FileEntry, ...]:
        """The ledger of files read for a stream, by path; page with the last path."""
        ...

    async def edits(self, pipeline: str = "", *, limit: int = 100) -> tuple[Edit, ...]:
        """The audit of what persons changed, newest first."""
        ...

    async def holders(self) -> tuple[HolderState, ...]:
        """All known holders."""
        ...

    async def stats(self) -> CatalogStats:
        """Sizes and counters; cheap enough for each scrape."""
        ...

    # -- under a lease --------------------------------------------------------------------------

    async def claim(
        self,
        op: str,
        holder: Holder,
        candidates: Sequence[Candidate],
        *,
        ttl: float,
        limits: Mapping[str, int],
        dead: Collection[str] = (),
    ) -> tuple[ClaimAnswer, ...]:
        """Re-check the candidates, take leases, open runs: one transaction, one answer each (A3).

        In order, for each candidate; several of one pipeline are a ``BadRequest``:

        - the pipeline's ``version`` is not the candidate's: ``NotClaimed("changed")``;
        - it is held by a lease that is neither free nor takeable: ``NotClaimed("leased")``. A lease
          may be taken when its holder is in ``dead`` (their locks are free: they never come back,
          A7), was of another boot of this machine, or let its time pass;
        - one of its connections has as many open runs as ``limits`` allows, those claimed earlier
          in this call included and those whose lease may be taken left out (nothing would ever
          close them if their pipeline is paused); a connection not in ``limits`` is unlimited:
          ``NotClaimed("connection_full")``;
        - otherwise the next epoch of the catalog's one counter is issued, any open run of an older
          epoch of this pipeline is closed as ``interrupted`` (its trigger stays unconsumed), the
          run is opened and ``Claimed``. A pipeline the catalog did not know is created.

        The holder's heartbeat is set to now + ``ttl`` seconds first, in the same transaction, also
        when nothing is claimed: a lease is never seen without one. A holder never has a ``claim``
        and a ``renew`` under way at once.
        """
        ...

    async def renew(
        self, op: str, holder: Holder, held: Collection[Lease], *, ttl: float
    ) -> Renewal:
        """One heartbeat for all of a holder's leases, and a reconciliation of who holds what (A4).

        Leases named but not this holder's any more come back as ``lost``. Leases that the catalog
        has for this holder and the caller did not name (a claim whose answer was lost) are
        released and their open runs closed as ``interrupted``. A lapsed lease that nobody took is
        renewed under the same epoch (A6).
        """
        ...

    async def commit(
        self, op: str, lease: Lease, batches: Sequence[Batch], published: Mapping[str, int]
    ) -> tuple[Commit, ...]:
        """Record sealed batches: the commit point (rule 2). All of them, or none.

        ``published`` moves streams' published marks forward first (never back, never above the
        last commit); it needs no flush of its own since publish may be repeated (B5). A batch of
        ``PIPELINE_SCOPE`` has no receipt, so it counts as published at once.

        Refusals: ``Fenced``; ``Conflict`` when ``follows`` is not the stream's last seq;
        ``WentBack`` when a monotonic cursor would be lower than the stored one (equal is fine);
        ``DefinitionChanged`` when kind, definition or tag differ from the stored cursor's;
        ``SchemaConflict``; ``StreamHeld``; ``Unpublished`` when ``MAX_UNPUBLISHED`` already wait;
        ``Full``. A batch with ``replaces`` is free of ``WentBack`` and ``DefinitionChanged``.
        """
        ...

    async def finish(self, op: str, lease: Lease, finish: Finish) -> Run:
        """Close the run, consume its trigger, record what is next, release the lease.

        - The trigger is consumed unless the outcome is ``interrupted`` or ``fenced``: ``tick``
          moves the pipeline's ``tick`` forward; a ``request`` is cleared if it is still the same;
          ``after`` moves ``after_seen``. Every consumed run ends an outstanding ``cancel`` of its
          epoch and replaces ``retry_at`` and ``retry_streams``; one of some streams leaves the
          others that wait for a retry.
        - ``failed`` adds one to ``failures``; ``succeeded``, ``nothing_new`` and ``held`` set it
          to 0; the others leave it.
        - A run that did not end ``failed``, ``interrupted`` or ``fenced`` sets ``news`` to the
          pipeline's ``rows``: what an earlier run committed before it failed counts then too.
        - Each ``StreamResult`` sets the stream's last outcome and reason, its hold if it has one
          (``held``), and ends the directive ``adopt`` if it was carried out. A stream never seen
          is created.
        - Consecutive ``nothing_new`` runs of a pipeline are folded: the newest row stays, ``count``
          and ``first_started_at`` take over from the one before, which is removed (A9).
        - The epoch stays on the pipeline; only the holder is cleared.

        Raises ``Fenced``.
        """
        ...

    # -- persons --------------------------------------------------------------------------------

    async def edit(self, op: str, by: str, why: str, action: EditAction) -> Edit:
        """Carry out a person's wish and write it into the audit, in one transaction.

        - ``Pause``, ``RequestRun``: also for a pipeline without a row yet. ``RequestRun`` clears
          ``parked`` and, unless it is for some streams, the wait for a retry; an earlier unanswered
          request is replaced.
        - ``Resume``: clears ``paused`` and ``parked``, sets ``failures`` to 0.
        - ``CancelRun``: ``NotFound`` when no run (of that epoch) is open. Where its lease lapsed
          the run ends with it, as ``interrupted``: nobody is there to end it.
        - ``AnswerSchema``: ``NotFound`` without a schema hold, ``Stale`` when the hold's
          fingerprint is another; records a ``Decision`` and ends the hold.
        - ``Refresh``, ``SetCursor``, ``Adopt``, ``Release``: ``NotFound`` for an unknown stream
          (``Refresh`` and ``SetCursor`` create it), ``Leased`` while a live lease is held
          (a run would overwrite the edit), and for ``SetCursor`` and ``Adopt`` ``Unpublished``
          while a batch is unpublished (for ``PIPELINE_SCOPE``: of any stream). Each ends the
          stream's hold. A lapsed lease ends with them, its run closed as ``interrupted``, so that
          its late holder is fenced and does not overwrite the edit.
        - ``Rename``: all that is recorded by the name ``was`` (state, streams, runs, commits,
          schema versions, decisions, the ledger) goes over to ``pipeline``, and under the old name
          stands a pipeline that never ran and is paused; ``origin`` keeps the name that
          destinations know. What others consumed of its news (``after_seen``) is by the new name
          too. The audit stays as it is. ``NotFound`` when there is nothing by the
          old name, ``Stale`` when ``pipeline`` has committed a batch of its own (else its streams
          are replaced), ``BadRequest`` when both are one, ``Leased`` while a lease is held on it or
          a live one on ``was``; a lapsed one ends with it.
        - ``SetCursor``: the seq becomes at least ``seq_at_least``, published with it; a directive
          ``refresh`` ends, since the newest wish counts.
        - ``Adopt``, and ``SetCursor`` that adopts: what the person saw (``seen``) stays with the
          directive ``adopt``, and ends with it.
        - ``SetCursor`` with ``forget_after`` strikes from the ledger what later batches brought,
          and later runs than ``forget_later``; ``ledger_from`` is the seq from then on.
        """
        ...

    # -- upkeep ---------------------------------------------------------------------------------

    async def retain(self, op: str, keep: Retention) -> int:
        """Delete what may go, at most ``limit`` rows; returns how many went. 0: all done.

        Goes, in this order, oldest first: finished runs older than ``runs_before`` (a pipeline's
        last finished run stays), published commits older than it whose run is gone (and older than
        ``operations_before``: they are answers; up to the first in the catalog that is younger, and
        to the first of their stream that stays), edits older than ``runs_before``, operation ids
        older than ``operations_before``, lapsed holders without leases.
        Stays: unpublished commits, a stream's last commit, schema versions and decisions, the file
        ledger, the counter.
        """
        ...

    async def check(self) -> Check:
        """Look for damage: the store's own integrity, and the rules between the rows."""
        ...

    async def aclose(self) -> None:
        """Finish what is queued, then close. Leases stay until they lapse or their lock is free."""
        ...
