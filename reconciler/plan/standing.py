"""How a pipeline stands, in one word: for the page, the metrics and ``status`` alike. Pure."""

from __future__ import annotations

from enum import StrEnum

from catalog.records import Micros, PipelineState
from reconciler.config.desired import Pipeline
from reconciler.plan.plan import Action, Code, Dispatch, Wait, held_streams


class State(StrEnum):
    """Where a pipeline stands now; exactly one of these."""

    IDLE = "idle"
    """Nothing to do until its next run is due."""
    RUNNING = "running"
    WAITING = "waiting"
    """Due, and kept back: a limit, a retry's delay, another holder, the catalog."""
    PAUSED = "paused"
    """A person paused it."""
    PARKED = "parked"
    """Not planned until a person acts."""
    HELD = "held"
    """At least one stream waits for a person's answer; the others go on."""


def state_of(
    desired: Pipeline | None,
    state: PipelineState,
    action: Action | None,
    *,
    running: bool = False,
) -> State:
    """``action``: what the plan decided; None: the config cannot be read. ``running``: here."""
    if running or (state.holder and not state.lapsed):
        return State.RUNNING
    if state.paused:
        return State.PAUSED
    if state.parked:
        return State.PARKED
    if held_streams(desired, state):
        return State.HELD
    if isinstance(action, Dispatch) or state.retry_at is not None:
        return State.WAITING
    return State.IDLE


def next_run(action: Action) -> Micros | None:
    """When the next run is due, if not now: the end of another's lease is when to look again."""
    if not isinstance(action, Wait) or action.reason.code is Code.LEASED:
        return None
    return action.until


def fresh_at(data_at: Micros | None, last_success_at: Micros | None) -> Micros | None:
    """How far the data reaches: to the newest cursor time, or the last run to its bound."""
    return max((at for at in (data_at, last_success_at) if at is not None), default=None)
