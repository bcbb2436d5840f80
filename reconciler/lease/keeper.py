"""Holds leases: claims, heartbeats, and knows until when this process may trust itself.

What it promises: each worker hears until when it may write, which is earlier than others may take
over, and a lease that the catalog says is lost is reported once, to the run that held it. What it
does not promise: that a paused process stops in time. It cannot; that is why every write shows its
epoch (rule 1, A6).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from catalog.clock import Clock
from catalog.errors import CatalogError, Fenced, Full, Unavailable, Unknown
from catalog.port import Catalog, new_operation_id
from catalog.records import (
    Candidate,
    ClaimAnswer,
    Claimed,
    Finish,
    Holder,
    Lease,
    Run,
)
from reconciler.lease.locks import HolderLock

MARGIN = 0.15
"""Share of the TTL by which this process stops trusting itself before others may take over."""
_FINISH_TRIES = 30
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 1.0
"""How often the boot clock is looked at: no timer goes on while the machine sleeps (A6)."""


@dataclass(slots=True)
class Keeper:
    """All leases of one holder. One at a time of ``claim`` and ``renew`` is under way (A4)."""

    catalog: Catalog
    holder: Holder
    lock: HolderLock
    clock: Clock
    ttl: float
    on_lost: Callable[[Lease], None] = lambda _: None
    on_renewed: Callable[[int], Awaitable[None]] | None = None
    """Told the new deadline in boot nanoseconds."""
    on_trouble: Callable[[CatalogError], None] = lambda _: None
    held: dict[str, Lease] = field(default_factory=dict)
    deadline_ns: int = 0
    _unsure: bool = False
    """The answer to a claim or finish was lost: leases may be ours that ``held`` does not name."""
    _holds: anyio.Event = field(default_factory=anyio.Event)
    """Set by what makes ``may_hold`` true."""
    _turn: anyio.Lock = field(default_factory=anyio.Lock)
    """Of ``claim`` and ``renew``: a renewal would take what is just being claimed for unknown."""

    def trusted(self) -> bool:
        """The leases were renewed in time: by this clock, nobody may have taken them over."""
        return self.clock.boot_ns() < self.deadline_ns

    def may_hold(self) -> bool:
        """The catalog may say of a lease that it is this holder's."""
        return self._unsure or bool(self.held)

    def _doubt(self) -> None:
        self._unsure = True
        self._holds.set()

    def _deadline(self, before_ns: int) -> int:
        return before_ns + round(self.ttl * (1 - MARGIN) * 1e9)

    async def claim(
        self, candidates: Sequence[Candidate], limits: Mapping[str, int], rivals: Collection[str]
    ) -> tuple[ClaimAnswer, ...]:
        """Take leases and open runs. ``rivals``: holders seen on the candidates, maybe dead.

        Raises ``Unavailable`` or ``Unknown``; after ``Unknown`` the next renewal releases what may
        have been claimed, since nobody here knows of it.
        """
        op = new_operation_id()
        async with self._turn:
            before = self.clock.boot_ns()
            try:
                answers = await self.catalog.claim(
                    op,
                    self.holder,
                    candidates,
                    ttl=self.ttl,
                    limits=limits,
                    dead=self.lock.dead(rivals),
                )
            except Unknown:
                self._doubt()
                raise
            for answer in answers:
                if isinstance(answer, Claimed):
                    self.held[answer.lease.pipeline] = answer.lease
                    self._holds.set()
            if any(isinstance(answer, Claimed) for answer in answers):
                self.deadline_ns = max(self.deadline_ns, self._deadline(before))
        return answers

    async def renew(self) -> None:
        """One heartbeat. Lost leases are forgotten and reported; raises ``CatalogError``."""
        async with self._turn:
            before = self.clock.boot_ns()
            named = tuple(self.held.values())
            renewal = await self.catalog.renew(new_operation_id(), self.holder, named, ttl=self.ttl)
            self.deadline_ns = self._deadline(before)
            self._unsure = False
        for lease in renewal.lost:
            self._lose(lease)
        if self.on_renewed is not None:
            await self.on_renewed(self.deadline_ns)

    async def keep(self) -> None:
        """Renew for ever, at a third of the TTL; each second after an error. Nothing to hold is
        nothing to renew."""
        pause = self.ttl / 3
        while True:
            if not self.may_hold():
                self._holds = anyio.Event()
                await self._holds.wait()
                pause = self.ttl / 3
            await self._rest(pause)
            pause = self.ttl / 3
            if self.may_hold():
                try:
                    await self.renew()
                except CatalogError as error:
                    self.on_trouble(error)
                    pause = _RETRY_SECONDS

    async def _rest(self, seconds: float) -> None:
        """Sleep, but not longer than it is by the boot clock."""
        until = self.clock.boot_ns() + round(seconds * 1e9)
        while seconds > 0 and self.clock.boot_ns() < until:
            pause = min(seconds, _LOOK_SECONDS)
            await anyio.sleep(pause)
            seconds -= pause

    def _lose(self, lease: Lease) -> None:
        if self.held.get(lease.pipeline) == lease:
            del self.held[lease.pipeline]
            self.on_lost(lease)

    async def finish(self, lease: Lease, finish: Finish) -> Run | None:
        """Close a run and release its lease. None: it was no longer ours, or the catalog could not
        be reached or had no room for long; then the next renewal, or a successor, closes it as
        interrupted.
        """
        op = new_operation_id()
        for _ in range(_FINISH_TRIES):
            try:
                run = await self.catalog.finish(op, lease, finish)
            except Fenced:
                self._lose(lease)
                return None
            except (Unknown, Unavailable, Full) as error:
                self.on_trouble(error)
                await anyio.sleep(_RETRY_SECONDS)
            else:
                self.held.pop(lease.pipeline, None)
                return run
        self.held.pop(lease.pipeline, None)
        # A claim of our own could not take it: each one says first that this holder lives.
        self._doubt()
        return None
