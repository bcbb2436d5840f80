"""What a holder of leases promises: how long it trusts itself, what it does in trouble (A4, A6)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from catalog.clock import ManualClock
from catalog.errors import CatalogError, Full, Unavailable, Unknown
from catalog.memory import MemoryCatalog
from catalog.records import (
    Candidate,
    ClaimAnswer,
    Claimed,
    Finish,
    Holder,
    Lease,
    NotClaimed,
    Outcome,
    Run,
    Trigger,
    TriggerKind,
)
from reconciler.lease import keeper as module
from reconciler.lease.keeper import Keeper
from reconciler.lease.locks import HolderLock
from tests.patience import PATIENCE


class _NoLocks:
    def dead(self, holders: Collection[str]) -> set[str]:
        return set()


class _NeverFinishes(MemoryCatalog):
    why: CatalogError = Unavailable("the catalog is away")

    async def finish(self, op: str, lease: Lease, finish: Finish) -> Any:
        raise self.why


def _candidate(version: int) -> Candidate:
    return Candidate("shop", version, Trigger(TriggerKind.REQUEST, request="r"), "asked for")


@pytest.mark.anyio
@pytest.mark.parametrize("why", [_NeverFinishes.why, Full("no room")])
async def test_a_run_that_could_not_be_finished_is_released_by_the_next_heartbeat(
    monkeypatch: pytest.MonkeyPatch, why: CatalogError
) -> None:
    monkeypatch.setattr(_NeverFinishes, "why", why)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.0)
    catalog = _NeverFinishes(ManualClock())
    lock = cast(HolderLock, _NoLocks())
    keeper = Keeper(catalog, Holder("daemon-1", "host", 1), lock, ManualClock(), 0.03)
    (claimed,) = await keeper.claim([_candidate(0)], {}, ())
    assert isinstance(claimed, Claimed)
    assert await keeper.finish(claimed.lease, Finish(Outcome.SUCCEEDED, "done")) is None

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keeper.keep)
            while (await catalog.pipeline("shop")).holder:  # noqa: ASYNC110 - asked of the catalog
                await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
    run = await catalog.run(claimed.lease.epoch)
    assert run is not None
    assert run.outcome is Outcome.INTERRUPTED
    state = await catalog.pipeline("shop")
    (again,) = await keeper.claim([_candidate(state.version)], {}, ())
    assert isinstance(again, Claimed)


@pytest.mark.anyio
async def test_leases_are_renewed_at_once_after_the_machine_slept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    clock = ManualClock()
    catalog = MemoryCatalog(clock)
    keeper = Keeper(
        catalog, Holder("daemon-1", "host", 1), cast(HolderLock, _NoLocks()), clock, 300
    )
    (claimed,) = await keeper.claim([_candidate(0)], {}, ())
    assert isinstance(claimed, Claimed)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keeper.keep)
            await anyio.lowlevel.checkpoint()
            clock.advance(3_600)  # no timer went on meanwhile
            assert not keeper.trusted()
            while not keeper.trusted():  # noqa: ASYNC110 - asked of the keeper
                await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
    assert keeper.held == {"shop": claimed.lease}


# -- how long it trusts itself ---------------------------------------------------------------------

HOLDER, RIVAL = Holder("daemon-1", "host", 1), Holder("daemon-2", "host", 2)
TTL = 30.0
TRUSTED = 25.5
"""Seconds: the TTL less its margin."""


class _Slow(MemoryCatalog):
    """Each answer takes a second on its way, after the catalog has done what was asked."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.clock = clock
        self.dead: list[Collection[str]] = []

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
        self.dead.append(dead)
        answer = await super().claim(op, holder, candidates, ttl=ttl, limits=limits, dead=dead)
        self.clock.advance(1)
        return answer

    async def renew(self, op: str, holder: Holder, held: Collection[Lease], *, ttl: float) -> Any:
        answer = await super().renew(op, holder, held, ttl=ttl)
        self.clock.advance(1)
        return answer


class _Locks:
    def dead(self, holders: Collection[str]) -> set[str]:
        return {holder for holder in holders if holder.startswith("dead")}


def _keeper(catalog: MemoryCatalog, clock: ManualClock, holder: Holder = HOLDER) -> Keeper:
    return Keeper(catalog, holder, cast(HolderLock, _Locks()), clock, TTL)


@pytest.mark.anyio
async def test_it_trusts_itself_from_before_the_request_for_the_ttl_less_a_margin() -> None:
    clock = ManualClock()
    keeper = _keeper(_Slow(clock), clock)
    assert not keeper.trusted()
    await keeper.claim([_candidate(0)], {}, ())
    clock.advance(TRUSTED - 1 - 0.001)
    assert keeper.trusted()
    clock.advance(0.001)
    assert not keeper.trusted()
    await keeper.renew()
    clock.advance(TRUSTED - 1 - 0.001)
    assert keeper.trusted()
    clock.advance(0.001)
    assert not keeper.trusted()


@pytest.mark.anyio
async def test_a_claim_that_takes_nothing_makes_it_trust_itself_no_longer() -> None:
    clock = ManualClock()
    keeper = _keeper(_Slow(clock), clock)
    await keeper.claim([_candidate(0)], {}, ())
    before = keeper.deadline_ns
    (answer,) = await keeper.claim([_candidate(7)], {}, ())
    assert answer == NotClaimed("shop", "changed")
    assert keeper.deadline_ns == before


@pytest.mark.anyio
async def test_a_claim_that_takes_something_is_trusted_though_others_are_refused() -> None:
    clock = ManualClock()
    keeper = _keeper(MemoryCatalog(clock), clock)
    trigger = Trigger(TriggerKind.REQUEST, request="r")
    refused = Candidate("other", 7, trigger, "asked for")
    answers = await keeper.claim([refused, _candidate(0)], {}, ())
    assert [type(answer) for answer in answers] == [NotClaimed, Claimed]
    assert keeper.trusted()
    assert list(keeper.held) == ["shop"]


@pytest.mark.anyio
async def test_who_holds_a_lease_and_is_dead_is_named_to_the_catalog() -> None:
    clock = ManualClock()
    catalog = _Slow(clock)
    await _keeper(catalog, clock).claim([_candidate(0)], {}, ("dead-1", "alive-2"))
    assert catalog.dead == [{"dead-1"}]


@pytest.mark.anyio
async def test_limits_are_the_catalogs_to_hold() -> None:
    clock = ManualClock()
    keeper = _keeper(MemoryCatalog(clock), clock)
    trigger = Trigger(TriggerKind.REQUEST, request="r")
    candidate = Candidate("shop", 0, trigger, "asked for", ("db",))
    (answer,) = await keeper.claim([candidate], {"db": 0}, ())
    assert answer == NotClaimed("shop", "connection_full", connection="db")
    assert keeper.held == {}


@pytest.mark.anyio
async def test_a_lost_lease_is_forgotten_and_reported_once_to_the_run_that_held_it() -> None:
    clock = ManualClock()
    catalog = MemoryCatalog(clock)
    keeper, rival = _keeper(catalog, clock), _keeper(catalog, clock, RIVAL)
    lost: list[Lease] = []
    told: list[int] = []

    async def hear(deadline_ns: int) -> None:
        told.append(deadline_ns)

    keeper.on_lost, keeper.on_renewed = lost.append, hear
    (claimed,) = await keeper.claim([_candidate(0)], {}, ())
    assert isinstance(claimed, Claimed)
    clock.advance(TTL)
    state = await catalog.pipeline("shop")
    await rival.claim([_candidate(state.version)], {}, ())
    await keeper.renew()
    await keeper.renew()
    assert lost == [claimed.lease]
    assert keeper.held == {}
    assert told == [keeper.deadline_ns] * 2


# -- in trouble ------------------------------------------------------------------------------------


class _Enough(Exception):
    """The test has seen what it wanted to see."""


class _Sleeps:
    """Lets time pass without waiting for it, until it is enough (seconds)."""

    def __init__(self, clock: ManualClock, enough: float) -> None:
        self.slept = 0.0
        self._clock, self._enough = clock, enough

    async def __call__(self, seconds: float) -> None:
        self.slept += seconds
        self._clock.advance(seconds)
        if self.slept > self._enough:
            raise _Enough


class _Troubled(MemoryCatalog):
    """Fails as told, before or after it did what was asked."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.began, self.clock = clock.boot_ns(), clock
        self.trouble: list[CatalogError] = []
        self.ops: list[str] = []
        self.renewals: list[str] = []
        self.renewed: list[float] = []
        """When, in seconds since the beginning."""

    async def _fail(self) -> None:
        if self.trouble:
            raise self.trouble.pop(0)

    async def claim(self, *args: Any, **more: Any) -> Any:
        answer = await super().claim(*args, **more)
        await self._fail()
        return answer

    async def renew(self, op: str, *args: Any, **more: Any) -> Any:
        self.renewals.append(op)
        self.renewed.append((self.clock.boot_ns() - self.began) / 1e9)
        await self._fail()
        return await super().renew(op, *args, **more)

    async def finish(self, op: str, lease: Lease, finish: Finish) -> Run:
        self.ops.append(op)
        run = await super().finish(op, lease, finish)
        await self._fail()
        return run


@pytest.mark.anyio
async def test_leases_are_renewed_at_a_third_of_the_ttl_and_each_second_while_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock()
    catalog = _Troubled(clock)
    keeper = _keeper(catalog, clock)
    heard: list[CatalogError] = []
    keeper.on_trouble = heard.append
    monkeypatch.setattr(module.anyio, "sleep", _Sleeps(clock, 29))
    await keeper.claim([_candidate(0)], {}, ())
    troubles = [Unavailable("away"), Unknown("who knows")]
    catalog.trouble = [*troubles]
    with pytest.raises(_Enough):
        await keeper.keep()
    assert catalog.renewed == [10, 11, 12, 22]
    assert heard == troubles
    assert all(catalog.renewals)
    assert len(set(catalog.renewals)) == 4  # each is an operation of its own


@pytest.mark.anyio
async def test_who_wakes_up_renews_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    catalog = _Troubled(clock)
    keeper = _keeper(catalog, clock)
    sleeps = _Sleeps(clock, 13)

    async def sleep(seconds: float) -> None:
        if not sleeps.slept:
            clock.advance(3600)  # the machine was asleep
        await sleeps(seconds)

    monkeypatch.setattr(module.anyio, "sleep", sleep)
    await keeper.claim([_candidate(0)], {}, ())
    with pytest.raises(_Enough):
        await keeper.keep()
    assert catalog.renewed == [3601, 3611]


@pytest.mark.anyio
async def test_who_holds_nothing_has_nothing_to_renew_until_it_claims(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock()
    catalog = _Troubled(clock)
    keeper = _keeper(catalog, clock)
    sleeps = _Sleeps(clock, 29)
    monkeypatch.setattr(module.anyio, "sleep", sleeps)
    with pytest.RaisesGroup(_Enough):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keeper.keep)
            await anyio.wait_all_tasks_blocked()
            assert (catalog.renewed, sleeps.slept) == ([], 0)
            await keeper.claim([_candidate(0)], {}, ())
    assert catalog.renewed == [10, 20]


@pytest.mark.anyio
async def test_what_a_claim_without_an_answer_took_is_released_by_one_heartbeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock()
    catalog = _Troubled(clock)
    keeper = _keeper(catalog, clock)
    catalog.trouble = [Unknown("the answer is lost")]
    with pytest.raises(Unknown):
        await keeper.claim([_candidate(0)], {}, ())
    assert (await catalog.pipeline("shop")).holder == HOLDER.id
    monkeypatch.setattr(module.anyio, "sleep", _Sleeps(clock, 30))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.keep)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert (await catalog.pipeline("shop")).holder == ""
    assert catalog.renewed == [10]


@pytest.mark.anyio
async def test_a_finish_without_an_answer_is_sent_again_as_the_same_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock()
    catalog = _Troubled(clock)
    keeper = _keeper(catalog, clock)
    heard: list[CatalogError] = []
    keeper.on_trouble = heard.append
    (claimed,) = await keeper.claim([_candidate(0)], {}, ())
    assert isinstance(claimed, Claimed)
    sleeps = _Sleeps(clock, 9)
    monkeypatch.setattr(module.anyio, "sleep", sleeps)
    troubles = [Unknown("who knows"), Unavailable("away")]
    catalog.trouble = [*troubles]
    run = await keeper.finish(claimed.lease, Finish(Outcome.SUCCEEDED, "done"))
    assert run is not None
    assert (run.epoch, run.outcome) == (claimed.lease.epoch, Outcome.SUCCEEDED)
    assert len(catalog.ops) == 3
    assert len({*catalog.ops, ""}) == 2  # one and the same
    assert (heard, sleeps.slept) == (troubles, 2)
    assert keeper.held == {}


@pytest.mark.anyio
async def test_a_finish_that_comes_too_late_is_a_lost_lease() -> None:
    clock = ManualClock()
    catalog = MemoryCatalog(clock)
    keeper, rival = _keeper(catalog, clock), _keeper(catalog, clock, RIVAL)
    lost: list[Lease] = []
    keeper.on_lost = lost.append
    (claimed,) = await keeper.claim([_candidate(0)], {}, ())
    assert isinstance(claimed, Claimed)
    clock.advance(TTL)
    await rival.claim([_candidate((await catalog.pipeline("shop")).version)], {}, ())
    assert await keeper.finish(claimed.lease, Finish(Outcome.SUCCEEDED, "done")) is None
    assert (lost, keeper.held) == ([claimed.lease], {})


@pytest.mark.anyio
async def test_the_end_of_an_older_run_does_not_end_the_newer() -> None:
    clock = ManualClock()
    keeper = _keeper(MemoryCatalog(clock), clock)
    lost: list[Lease] = []
    keeper.on_lost = lost.append
    done = Finish(Outcome.SUCCEEDED, "done")
    (old,) = await keeper.claim([_candidate(0)], {}, ())
    assert isinstance(old, Claimed)
    assert await keeper.finish(old.lease, done) is not None
    state = await keeper.catalog.pipeline("shop")
    (new,) = await keeper.claim([_candidate(state.version)], {}, ())
    assert isinstance(new, Claimed)
    assert await keeper.finish(old.lease, done) is None
    assert (lost, keeper.held) == ([], {"shop": new.lease})


@pytest.mark.anyio
async def test_a_catalog_that_stays_away_is_asked_to_finish_for_half_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock()
    catalog = _NeverFinishes(clock)
    keeper = _keeper(catalog, clock)
    (claimed,) = await keeper.claim([_candidate(0)], {}, ())
    assert isinstance(claimed, Claimed)
    sleeps = _Sleeps(clock, 99)
    monkeypatch.setattr(module.anyio, "sleep", sleeps)
    assert await keeper.finish(claimed.lease, Finish(Outcome.SUCCEEDED, "done")) is None
    assert sleeps.slept == 30
    assert keeper.held == {}
