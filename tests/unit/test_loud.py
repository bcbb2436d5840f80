"""What the daemon's log says of runs: what is new, once."""

from __future__ import annotations

import time
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
        self.noted: list[tuple[str, str]] = []

    def debug(self, event: str, **fields: Any) -> None:
        """What is no news."""

    def info(self, event: str, **fields: Any) -> None:
        if event == "run_note":
            self.noted.append((fields["stream"], fields["note"]))

    def warning(self, event: str, **fields: Any) -> None:
        self.said.append((event, fields.get("reason")))


def _hold(reason: str) -> Hold:
    return Hold(HoldKind.DESTINATION, reason, 1, ("refresh",))


def _run(loud: Loud, before: Hold | None, now: Hold, last_reason: str = "") -> None:
    result = StreamResult("orders", Outcome.HELD, now.reason, hold=now)
    run = Run(2, "shop", "me", Trigger(TriggerKind.TICK, tick=1), "held", 0)
    ended = Run(2, "shop", "me", run.trigger, "held", 0, (), 1, Outcome.HELD, streams=(result,))
    claimed = Claimed(
        Lease("shop", 2, "me"),
        run,
        PipelineState("shop", last_reason=last_reason),
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


def test_what_a_read_assumes_is_said_once_also_after_a_run_of_another_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loud, log = Loud(Metrics("0")), Log()
    monkeypatch.setattr(loud, "_log", log)

    def run(*notes: tuple[str, str]) -> None:
        results = tuple(StreamResult(stream, Outcome.NOTHING_NEW) for stream, _ in notes)
        tick = Trigger(TriggerKind.TICK, tick=1)
        ended = Run(2, "shop", "me", tick, "", 0, outcome=Outcome.NOTHING_NEW, streams=results)
        claimed = Claimed(Lease("shop", 2, "me"), ended, PipelineState("shop"), ())
        loud.ended(claimed, ended, Finish(Outcome.NOTHING_NEW, ""), Done(results, {}, notes=notes))

    both = (("orders", "no index"), ("lines", "no index"))
    for notes in (both, both[:1], both, (("orders", "no key"), both[1])):
        run(*notes)
    assert log.noted == [*both, ("orders", "no key")]


def test_a_hold_that_nobody_answers_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    loud, log = Loud(Metrics("0")), Log()
    monkeypatch.setattr(loud, "_log", log)
    _run(loud, None, _hold("no marker"))
    _run(loud, _hold("no marker"), _hold("no marker"), last_reason="held")
    finished = [reason for event, reason in log.said if event == "run_finished"]
    assert finished == ["held"]


def test_many_notes_do_not_keep_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What took seconds here took the leases of all runs."""
    loud, log = Loud(Metrics("0")), Log()
    monkeypatch.setattr(loud, "_log", log)
    streams = [f"public.table_{number}" for number in range(5_000)]
    notes = tuple((name, f"{name}: {what}") for name in streams for what in range(4))
    notes += tuple(("inbox", f"file {number} waits") for number in range(20_000))
    results = tuple(StreamResult(name, Outcome.NOTHING_NEW) for name in streams)
    trigger = Trigger(TriggerKind.TICK, tick=1)
    run = Run(2, "shop", "me", trigger, "", 0, (), 1, Outcome.NOTHING_NEW, streams=results)
    claimed = Claimed(Lease("shop", 2, "me"), run, PipelineState("shop"), ())
    for _ in range(2):
        begun = time.process_time()
        loud.ended(claimed, run, Finish(run.outcome or Outcome.FAILED, ""), Done((), {}, notes))
        assert time.process_time() - begun < 2
    assert len(log.noted) == len(notes)
