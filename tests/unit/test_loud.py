"""What the daemon's log says of runs: what is new, once."""

from __future__ import annotations

from typing import Any

import pytest

from catalog.records import (
    Claimed,
    Finish,
    Hold,
    HoldKind,
    Lease,
    Outcome,
    PipelineState,
    Run,
    StreamResult,
    StreamState,
    Trigger,
    TriggerKind,
)
from reconciler.daemon.loud import Loud
from reconciler.run.messages import Done
from reconciler.telemetry.metrics import Metrics


class Log:
    """Keeps the names of events and the reasons that went with them."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        """What a run that is not held would say."""

    def warning(self, event: str, **fields: Any) -> None:
        self.said.append((event, fields.get("reason")))


def _hold(reason: str) -> Hold:
    return Hold(HoldKind.DESTINATION, reason, 1, ("refresh",))


def _run(loud: Loud, before: Hold | None, now: Hold) -> None:
    result = StreamResult("orders", Outcome.HELD, now.reason, hold=now)
    run = Run(2, "shop", "me", Trigger(TriggerKind.TICK, tick=1), "held", 0)
    ended = Run(2, "shop", "me", run.trigger, "held", 0, (), 1, Outcome.HELD, streams=(result,))
    claimed = Claimed(
        Lease("shop", 2, "me"),
        run,
        PipelineState("shop"),
        (StreamState("shop", "orders", hold=before),),
    )
    loud.ended(claimed, ended, Finish(Outcome.HELD, "held"), Done((result,), {}))


def test_a_hold_is_opened_once_and_again_when_its_reason_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loud, log = Loud(Metrics("0")), Log()
    monkeypatch.setattr(loud, "_log", log)
    _run(loud, None, _hold("no marker"))
    _run(loud, _hold("no marker"), _hold("no marker"))
    _run(loud, _hold("no marker"), _hold("fits again"))
    opened = [reason for event, reason in log.said if event == "hold_opened"]
    assert opened == ["no marker", "fits again"]
