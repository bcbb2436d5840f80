"""Runs that killed holders left open, and that no claim will end (A2)."""

from __future__ import annotations

import pytest

from catalog.clock import ManualClock
from catalog.memory import MemoryCatalog
from catalog.port import new_operation_id
from catalog.records import Candidate, Claimed, Holder, Outcome, Pause, Trigger, TriggerKind
from reconciler.daemon.leftovers import end_left_open
from tests.crash.whole_world import PROJECT

pytestmark = pytest.mark.anyio


async def test_what_is_paused_or_not_in_the_config_stays_open_no_longer_than_its_lease() -> None:
    clock = ManualClock()
    catalog = MemoryCatalog(clock)
    for name in ("gone", "paused", "shop"):
        candidate = Candidate(name, 0, Trigger(TriggerKind.TICK, tick=1), "due")
        holder = Holder("killed", "host", 1)
        (run,) = await catalog.claim(new_operation_id(), holder, [candidate], ttl=60, limits={})
        assert isinstance(run, Claimed)
    await catalog.edit(new_operation_id(), "ann", "", Pause("paused"))
    await end_left_open(catalog, PROJECT, "daemon-2")
    assert [(await catalog.pipeline(name)).holder for name in ("gone", "paused")] == ["killed"] * 2
    clock.advance(60)
    for _ in range(2):
        await end_left_open(catalog, PROJECT, "daemon-2")
    for name in ("gone", "paused"):
        state = await catalog.pipeline(name)
        assert (state.holder, state.last_outcome) == ("", Outcome.INTERRUPTED)
        assert state.tick is None, "what it answered stands"
    assert (await catalog.pipeline("shop")).holder == "killed", "its next run ends it"
    assert [(edit.by, edit.pipeline) for edit in await catalog.edits()] == [
        *(("daemon-2", "gone"), ("daemon-2", "paused"), ("ann", "paused")),
    ]
