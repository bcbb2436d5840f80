"""Why a pipeline does or does not run now, what is not the cause, and the one command to type.

Pure: it words what the plan decided and what the caller saw. The record is for ``--json`` as it
is; ``lines`` is how a terminal shows it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from msgspec.structs import replace

from catalog.records import Micros, Outcome, PipelineState, StreamState
from reconciler.config.desired import Pipeline
from reconciler.plan.plan import Action, Code, Dispatch, Wait, decide, held_streams
from reconciler.plan.standing import fresh_at
from reconciler.plan.words import schedule_words, since, span, these, when

_VERBS = ("approve", "reject", "refresh", "retry", "cursor")


@dataclass(frozen=True, slots=True)
class Room:
    """A connection, its open runs across all pipelines, and how many it allows (None: any)."""

    connection: str
    open: int
    limit: int | None = None

    @property
    def full(self) -> bool:
        return self.limit is not None and self.open >= self.limit


@dataclass(frozen=True, slots=True)
class Facts:
    """What the planner does not know and the answer needs."""

    now: Micros
    streams: tuple[StreamState, ...] = ()
    rooms: tuple[Room, ...] = ()
    upstream: Mapping[str, int] = field(default_factory=dict)
    daemon: Literal["up", "down", "unknown"] = "unknown"
    open_runs: int = 0
    """Of the whole project."""
    max_runs: int | None = None
    stream: str = ""
    """Asked about this stream; empty: about the pipeline."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that could have been the cause. ``ok``: it is not."""

    what: str
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class HeldStream:
    """A stream that waits for a person, and what can be typed to answer."""

    stream: str
    kind: str
    reason: str
    choices: tuple[str, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Why:
    """The whole answer; ``lines`` shows it."""

    target: str
    runs: bool
    """A run is under way."""
    code: str
    """The cause: a ``Code``, or ``daemon_down``, ``connection_full``, ``max_runs``, ``held``."""
    answer: str
    checked: tuple[Checked, ...]
    next: str
    next_at: Micros | None
    freshness: str
    fresh: bool | None
    """Within ``fresh_within``; None: nothing is promised."""
    last: str
    """The last run that ended."""
    held: tuple[HeldStream, ...]
    command: str
    """Empty: there is nothing to type."""


@dataclass(frozen=True, slots=True)
class _Cause:
    code: str
    answer: str
    command: str


def why(desired: Pipeline | None, state: PipelineState, action: Action, facts: Facts) -> Why:
    """Word the plan's decision. ``desired`` None: the config has no such pipeline."""
    state = replace(state, held=held_streams(desired, state))
    held = _held(state, facts)
    cause = _cause(desired, state, action, facts, held)
    fresh, freshness = _freshness(desired, state, facts.now)
    following, next_at = _next(desired, state, action, facts)
    return Why(
        target=_target(state.name, facts.stream),
        runs=_runs(action),
        code=cause.code,
        answer=cause.answer,
        checked=tuple(_checked(desired, state, action, facts)),
        next=following,
        next_at=next_at,
        freshness=freshness,
        fresh=fresh,
        last=_last(state, facts),
        held=held,
        command=cause.command,
    )


def lines(answer: Why) -> list[str]:
    """The answer as a terminal shows it: the cause first, the command last."""
    shown = [answer.answer, ""]
    ruled_out = [c.text for c in answer.checked if c.ok]
    if ruled_out:
        shown += ["Not the cause:", *(f"  {text}" for text in ruled_out), ""]
    others = [c.text for c in answer.checked if not c.ok]
    if others:
        shown += ["Seen:", *(f"  {text}" for text in others), ""]
    shown += [f"Next: {answer.next}", f"Last: {answer.last}", f"Data: {answer.freshness}"]
    for hold in answer.held:
        told = hold.reason in answer.answer
        words = [] if told else [f"{hold.stream} is held: {hold.reason}"]
        shown += ["", *words, "Answer with one of:"]
        shown += [f"  {command}" for command in hold.commands]
    if answer.command:
        shown += ["", f"Type: {answer.command}"]
    return shown


def commands(target: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    """A hold's choices as they are typed for ``pipeline.stream``; one that is no verb as it is.

    ``VALUE`` is for the person to say.
    """
    target = shlex.quote(target)
    typed: list[str] = []
    for choice in choices:
        words = choice.split()
        if not words or words[0] not in _VERBS:
            typed.append(choice)
            continue
        at = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
        value = ["VALUE"] if words == ["cursor", "set"] else []
        typed.append(" ".join(("reconciler", *words[:at], target, *words[at:], *value)))
    return tuple(typed)


# -- the cause -------------------------------------------------------------------------------------


def _target(pipeline: str, stream: str) -> str:
    return f"{pipeline}.{stream}" if stream else pipeline


def _runs(action: Action) -> bool:
    if isinstance(action, Dispatch):
        return False
    return not isinstance(action, Wait) or action.reason.code in (Code.RUNNING, Code.LEASED)


def _cause(
    desired: Pipeline | None,
    state: PipelineState,
    action: Action,
    facts: Facts,
    held: tuple[HeldStream, ...],
) -> _Cause:
    name = state.name
    mine = next((h for h in held if h.stream == facts.stream), None)
    if mine is not None:
        answer = f"{_target(name, mine.stream)} is not loaded: it is held. {mine.reason}"
        return _Cause("held", answer, next(iter(mine.commands), ""))
    if _runs(action):
        cancelled = bool(state.cancel) and state.cancel == state.epoch
        end = "; a person asked to cancel it, and it is ending" if cancelled else ""
        where = f"by {state.holder}" if state.holder else "here"
        answer = f"{name} runs now: run {state.epoch}, conducted {where}{end}."
        return _Cause(action.reason.code, answer, f"reconciler show {state.epoch}")
    if desired is None:
        answer = f"{name} does not run: it is {action.reason.text}."
        return _Cause(Code.ORPHANED, answer, "")
    if isinstance(action, Dispatch):
        return _due(name, action, facts)
    answer = f"{name} does not run now: {_because(action.reason.code, action.reason.text)}."
    return _Cause(action.reason.code, answer, _command(name, state, action.reason.code, held))


def _because(code: Code, text: str) -> str:
    match code:
        case Code.PAUSED | Code.PARKED:
            return f"it is {text}"
        case Code.NO_TRIGGER | Code.UPSTREAM:
            return f"it {text}"
        case Code.NEXT_TICK:
            return f"it is {text}"
        case _:
            return text


def _due(name: str, action: Dispatch, facts: Facts) -> _Cause:
    reason = action.reason.text
    full = [room for room in facts.rooms if room.full]
    if full:
        seen = these(tuple(f"{r.connection} has {r.open} of {r.limit} runs" for r in full))
        answer = f"{name} is due and waits for room: connection {seen}. ({reason})"
        return _Cause("connection_full", answer, "reconciler leases")
    if facts.daemon == "down":
        answer = f"{name} is due, but no daemon serves this project. ({reason})"
        return _Cause("daemon_down", answer, f"reconciler run {name}")
    if facts.max_runs is not None and facts.open_runs >= facts.max_runs:
        answer = (
            f"{name} is due and waits for room: {facts.open_runs} of {facts.max_runs} runs are "
            f"under way (`daemon.max_runs`). ({reason})"
        )
        return _Cause("max_runs", answer, "reconciler leases")
    return _Cause(action.reason.code, f"{name} runs at once: {reason}.", "")


def _command(name: str, state: PipelineState, code: Code, held: tuple[HeldStream, ...]) -> str:
    if state.is_vacant:  # to resume it would begin another one by a name that it had
        return ""
    if code in (Code.PAUSED, Code.PARKED):
        return f"reconciler resume {name}"
    if code is Code.BACKING_OFF or state.last_outcome is Outcome.FAILED:
        return f"reconciler retry {name}"
    for hold in held:
        if hold.commands:
            return hold.commands[0]
    return f"reconciler run {name}"


# -- what was looked at ----------------------------------------------------------------------------


def _checked(
    desired: Pipeline | None, state: PipelineState, action: Action, facts: Facts
) -> Iterator[Checked]:
    if desired is None:
        yield Checked("config", False, "not in the config")
    yield _mark("paused", state)
    yield _mark("parked", state)
    yield _lease(state)
    if desired is not None:
        yield _failures(desired, state, facts.now)
        if not _runs(action):
            yield _trigger(desired, state, action, facts)
    for room in facts.rooms:
        yield _room(room)
    if facts.daemon != "unknown":
        up = facts.daemon == "up"
        text = "a daemon serves this project" if up else "no daemon serves this project"
        yield Checked("daemon", up, text)
    if facts.max_runs is not None:
        free = facts.open_runs < facts.max_runs
        text = f"{facts.open_runs} of {facts.max_runs} runs are under way (`daemon.max_runs`)"
        yield Checked("max_runs", free, text)
    yield _holds(state)


def _mark(what: Literal["paused", "parked"], state: PipelineState) -> Checked:
    mark = state.paused if what == "paused" else state.parked
    if mark is None:
        return Checked(what, True, f"not {what}")
    return Checked(what, False, f"{what} by {mark.by} since {when(mark.at)}")


def _lease(state: PipelineState) -> Checked:
    if not state.holder:
        return Checked("lease", True, "lease free")
    if state.lapsed:
        text = f"lease of run {state.epoch} lapsed: its holder {state.holder} stopped"
        return Checked("lease", True, text)
    return Checked("lease", False, f"lease held by {state.holder} for run {state.epoch}")


def _failures(desired: Pipeline, state: PipelineState, now: Micros) -> Checked:
    if state.retry_at is not None and state.retry_at > now:
        return Checked("failures", False, f"waits until {when(state.retry_at)} to try again")
    if state.failures:
        times = "1 run" if state.failures == 1 else f"{state.failures} runs in a row"
        spent = ", no retry is left" if state.failures > desired.retries else ""
        return Checked("failures", True, f"{times} failed, but it waits for no retry{spent}")
    return Checked("failures", True, "no failed run to wait for")


def _trigger(desired: Pipeline, state: PipelineState, action: Action, facts: Facts) -> Checked:
    now = replace(state, retry_at=None)  # which is looked at by itself
    due = action if isinstance(action, Dispatch) else _if_free(desired, now, facts)
    if isinstance(due, Dispatch):
        return Checked("trigger", True, due.reason.text)
    if desired.schedule is not None:
        text = f"nothing is due ({schedule_words(desired.schedule)})"
    elif desired.after:
        text = f"nothing new from upstream (after {these(desired.after)})"
    else:
        text = "neither `schedule` nor `after`"
    return Checked("trigger", False, text)


def _room(room: Room) -> Checked:
    if room.limit is None:
        text = f"connection {room.connection} has no limit ({room.open} open)"
    elif room.full:
        text = f"connection {room.connection} is full: {room.open} of {room.limit} runs"
    else:
        text = f"connection {room.connection} has room: {room.open} of {room.limit} runs"
    return Checked(f"connection {room.connection}", not room.full, text)


def _holds(state: PipelineState) -> Checked:
    if not state.held:
        return Checked("held", True, "no stream is held")
    streams = "stream is" if len(state.held) == 1 else "streams are"
    text = f"{len(state.held)} {streams} held ({these(state.held)}); the others run"
    return Checked("held", False, text)


def _held(state: PipelineState, facts: Facts) -> tuple[HeldStream, ...]:
    return tuple(
        HeldStream(
            stream.stream,
            stream.hold.kind,
            stream.hold.reason,
            stream.hold.choices,
            commands(_target(state.name, stream.stream), stream.hold.choices),
        )
        for stream in facts.streams
        if stream.hold is not None
        and stream.stream in state.held
        and facts.stream in ("", stream.stream)
    )


# -- then and before -------------------------------------------------------------------------------


def _if_free(desired: Pipeline, state: PipelineState, facts: Facts) -> Action:
    """What would be decided if nobody had put it aside and nothing ran."""
    free = replace(state, paused=None, parked=None, holder="", lapsed=False)
    return decide(desired, free, facts.upstream, facts.now, running=False)


def _next(
    desired: Pipeline | None, state: PipelineState, action: Action, facts: Facts
) -> tuple[str, Micros | None]:
    if desired is None:
        return "never, unless the config has it again", None
    if isinstance(action, Dispatch):
        return "as soon as there is room and a daemon", facts.now
    offline = ", if a daemon serves the project then" if facts.daemon == "down" else ""
    if isinstance(action, Wait) and action.until is not None and not _runs(action):
        return since(action.until, facts.now) + offline, action.until
    condition = ""
    if _runs(action):
        condition = "after this run, "
        # It answers what is due by now.
        state = replace(state, tick=facts.now, request=None, retry_at=None)
    elif action.reason.code in (Code.PAUSED, Code.PARKED):
        condition = "once resumed, "
    later = _if_free(desired, state, facts)
    if isinstance(later, Dispatch):
        return f"{condition}at once: {later.reason.text}{offline}", None
    until = later.until if isinstance(later, Wait) else None
    if until is not None:
        return f"{condition}{since(until, facts.now)}{offline}", until
    return f"{condition}it {later.reason.text}", None


def _freshness(
    desired: Pipeline | None, state: PipelineState, now: Micros
) -> tuple[bool | None, str]:
    reached = fresh_at(state.data_at, state.last_success_at)
    within = desired.fresh_within if desired is not None else None
    if reached is None:
        promise = f"; wanted within {span(within)}" if within is not None else ""
        return (None if within is None else False), f"none yet{promise}"
    age = max((now - reached) / 1e6, 0.0)
    text = f"{span(round(age)) or '0s'} old, of {when(reached)}"
    if within is None:
        return None, text
    if age <= within:
        return True, f"{text}; fresh (wanted within {span(within)})"
    return False, f"{text}; late by {span(round(age - within))} (wanted within {span(within)})"


def _last(state: PipelineState, facts: Facts) -> str:
    stream = next((s for s in facts.streams if s.stream == facts.stream), None)
    if stream is not None and stream.last_outcome is not None:
        held = stream.hold.reason if stream.hold is not None else ""
        said = f": {stream.last_reason}" if stream.last_reason not in ("", held) else ""
        return f"{stream.last_outcome}{said}"
    if state.last_outcome is None:
        return "it has never run to an end"
    at = f" at {since(state.last_finished_at, facts.now)}" if state.last_finished_at else ""
    said = f": {state.last_reason}" if state.last_reason else ""
    return f"run {state.last_epoch} {state.last_outcome}{at}{said}"
