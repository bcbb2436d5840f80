"""Runs that killed holders left open, and that no claim will end (A2)."""

from __future__ import annotations

import pytest

from catalog.clock import ManualClock
from catalog.memory import MemoryCatalog
from catalog.port import new_operation_id
from catalog.records import (
    Candidate,
    Claimed,
    Finish,
    Holder,
    Lease,
    Outcome,
    Pause,
    Trigger,
    TriggerKind,
)
from reconciler.daemon.leftovers import end_left_open
from tests.loop_kit import pipeline, project

pytestmark = pytest.mark.anyio

_PROJECT = project(pipeline("shop"), pipeline("paused"), pipeline("parked"))


async def _claimed(catalog: MemoryCatalog, name: str, holder: str = "killed") -> Lease:
    state = await catalog.pipeline(name)
    candidate = Candidate(name, state.version, Trigger(TriggerKind.TICK, tick=1), "due")
    by = Holder(holder, "host", 1)
    (run,) = await catalog.claim(new_operation_id(), by, [candidate], ttl=60, limits={})
    assert isinstance(run, Claimed)
    return run.lease


async def test_what_is_put_aside_or_not_in_the_config_stays_open_no_longer_than_its_lease() -> None:
    clock = ManualClock()
    catalog = MemoryCatalog(clock)
    parked = Finish(Outcome.FAILED, "failed", park="its password is refused")
    await catalog.finish(new_operation_id(), await _claimed(catalog, "parked"), parked)
    for name in ("gone", "parked", "paused", "shop"):
        await _claimed(catalog, name)
    await catalog.edit(new_operation_id(), "ann", "", Pause("paused"))
    await end_left_open(catalog, _PROJECT, "daemon-2")
    aside = ("gone", "paused", "parked")
    assert [(await catalog.pipeline(name)).holder for name in aside] == ["killed"] * 3
    clock.advance(60)
    for _ in range(2):
        await end_left_open(catalog, _PROJECT, "daemon-2")
    for name in aside:
        state = await catalog.pipeline(name)
        assert (state.holder, state.last_outcome) == ("", Outcome.INTERRUPTED)
        assert state.tick == (1 if name == "parked" else None), "what it answered stands"
    assert (await catalog.pipeline("shop")).holder == "killed", "its next run ends it"
    *ended, _ = await catalog.edits()
    assert [(edit.by, edit.pipeline) for edit in ended] == [
        ("daemon-2", name) for name in ("gone", "parked", "paused")
    ]
    assert all("holder killed stopped" in edit.why for edit in ended)


async def test_a_daemon_that_overslept_does_not_end_its_own_run() -> None:
    """Its lease lapsed while the machine slept; the renewal, which is due now, takes it on."""
    clock = ManualClock()
    catalog = MemoryCatalog(clock)
    lease = await _claimed(catalog, "paused", "daemon-1")
    await catalog.edit(new_operation_id(), "ann", "", Pause("paused"))
    clock.advance(3600)
    await end_left_open(catalog, _PROJECT, "daemon-1")
    run = await catalog.run(lease.epoch)
    assert run is not None
    assert run.outcome is None
