"""What a holder of leases does when the catalog is away."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from catalog.clock import ManualClock
from catalog.errors import Unavailable
from catalog.memory import MemoryCatalog
from catalog.records import (
    Candidate,
    Claimed,
    Finish,
    Holder,
    Lease,
    Outcome,
    Trigger,
    TriggerKind,
)
from reconciler.lease import keeper as module
from reconciler.lease.keeper import Keeper
from reconciler.lease.locks import HolderLock


class _NoLocks:
    def dead(self, holders: Collection[str]) -> set[str]:
        return set()


class _NeverFinishes(MemoryCatalog):
    async def finish(self, op: str, lease: Lease, finish: Finish) -> Any:
        raise Unavailable("the catalog is away")


def _candidate(version: int) -> Candidate:
    return Candidate("shop", version, Trigger(TriggerKind.REQUEST, request="r"), "asked for")


@pytest.mark.anyio
async def test_a_run_that_could_not_be_finished_is_released_by_the_next_heartbeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.0)
    catalog = _NeverFinishes(ManualClock())
    lock = cast(HolderLock, _NoLocks())
    keeper = Keeper(catalog, Holder("daemon-1", "host", 1), lock, ManualClock(), 0.03)
    (claimed,) = await keeper.claim([_candidate(0)], {}, ())
    assert isinstance(claimed, Claimed)
    assert await keeper.finish(claimed.lease, Finish(Outcome.SUCCEEDED, "done")) is None

    with anyio.fail_after(10):
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

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keeper.keep)
            await anyio.lowlevel.checkpoint()
            clock.advance(3_600)  # no timer went on meanwhile
            assert not keeper.trusted()
            while not keeper.trusted():  # noqa: ASYNC110 - asked of the keeper
                await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
    assert keeper.held == {"shop": claimed.lease}
