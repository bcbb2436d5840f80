"""Verbs that steer: pause, resume, cancel, retry, approve, reject, refresh."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from catalog.port import Catalog, new_operation_id
from catalog.records import (
    AnswerSchema,
    CancelRun,
    EditAction,
    HoldKind,
    Pause,
    Refresh,
    Release,
    RequestRun,
    Resume,
    StreamState,
)
from reconciler.cli import desk, options
from reconciler.cli.desk import Place
from reconciler.cli.editing import How, Plan, edit
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.grammar import verb
from reconciler.cli.target import Target, name_of, parse, parse_pipeline
from reconciler.plan.why import commands

_PANEL = "Steer"
_NEEDS_MORE = (HoldKind.SCHEMA, HoldKind.DESTINATION, HoldKind.DEFINITION, HoldKind.LOST_BATCH)
"""Holds that come back at the next run unless a person decides something first."""


@verb("pause", _PANEL, 'pause shop --why "database moves tonight"')
def pause(
    pipeline: options.PipelineName,
    why: options.Why = "",
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Start no more runs of a pipeline until it is resumed. A run under way goes on."""
    target = parse_pipeline(pipeline)

    async def prepare(place: Place, catalog: Catalog) -> Plan:
        state = await desk.must_know(place, catalog, target)
        then = [f"reconciler resume {target}"]
        done = f"{target} is paused."
        if state.holder and not state.lapsed:
            done += f" Run {state.epoch} is under way and goes on; to end it too:"
            then = [f"reconciler cancel {target}", *then]
        return Plan((Pause(target.pipeline),), done, tuple(then))

    return edit(How(config, json, dry_run, why), prepare)


@verb("resume", _PANEL, "resume shop")
def resume(
    pipeline: options.PipelineName,
    why: options.Why = "",
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Plan a paused or parked pipeline again; its count of failures starts anew."""
    target = parse_pipeline(pipeline)

    async def prepare(place: Place, catalog: Catalog) -> Plan:
        state = await desk.must_know(place, catalog, target)
        if not (state.paused or state.parked):
            done = f"{target} was neither paused nor parked; its count of failures is 0 now."
        else:
            done = f"{target} is planned again."
        return Plan((Resume(target.pipeline),), done, (f"reconciler why {target}",))

    return edit(How(config, json, dry_run, why), prepare)


@verb("cancel", _PANEL, "cancel shop")
def cancel(
    pipeline: options.PipelineName,
    why: options.Why = "",
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """End the run that is under way. What it committed stays; the next run goes on from there."""
    target = parse_pipeline(pipeline)

    async def prepare(place: Place, catalog: Catalog) -> Plan:
        state = await desk.must_know(place, catalog, target)
        if not state.holder or state.lapsed:
            told = f" Run {state.epoch} has lapsed: {state.holder} stopped."
            raise Failure(
                f"No run of {target} is under way.{told if state.holder else ''}",
                Exit.NOTHING,
                f"Start none for a while: reconciler pause {target}",
            )
        done = f"Run {state.epoch} of {target} was asked to end."
        then = (f"reconciler show {state.epoch}", f"reconciler pause {target}")
        return Plan((CancelRun(target.pipeline, state.epoch),), done, then)

    return edit(How(config, json, dry_run, why), prepare)


@verb("retry", _PANEL, "retry shop.public.orders")
def retry(
    target: options.AnyTarget,
    why: options.Why = "",
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Try a pipeline again now: a failed, parked or held one. Naming a stream ends its hold."""
    wanted = parse(target)

    async def prepare(place: Place, catalog: Catalog) -> Plan:
        state = await desk.must_know(place, catalog, wanted)
        streams = (wanted.stream,) if wanted.stream else ()
        actions: list[EditAction] = []
        if wanted.stream:
            stream = await desk.must_know_stream(place, catalog, wanted)
            actions += _release(wanted, stream)
        actions.append(RequestRun(wanted.pipeline, new_operation_id(), streams))
        warning = ""
        if state.paused:
            warning = f"{wanted.pipeline} is paused: it runs once it is resumed."
        elif state.held and not wanted.stream:
            warning = f"Held streams stay held: {', '.join(state.held)}."
        follow = "status" if place.daemon_up() else "run"
        then = (f"reconciler {follow} {wanted.pipeline}",)
        return Plan(tuple(actions), f"A run of {wanted} is asked for.", then, warning)

    return edit(How(config, json, dry_run, why), prepare)


def _release(target: Target, stream: StreamState) -> list[EditAction]:
    if stream.hold is None:
        return []
    if stream.hold.kind in _NEEDS_MORE and "retry" not in stream.hold.choices:
        raise Failure(
            f"{target} is held and trying again changes nothing: {stream.hold.reason}",
            Exit.HELD,
            "Answer with one of: " + "; ".join(commands(str(target), stream.hold.choices)),
        )
    return [Release(target.pipeline, target.stream)]


Fingerprint = Annotated[
    str,
    typer.Option(
        "--fingerprint",
        metavar="HEX",
        help="Answer only if the proposal is still this one; else the answer is refused.",
        show_default=False,
    ),
]


@verb("approve", _PANEL, "approve shop.public.orders")
def approve(
    target: options.StreamName,
    fingerprint: Fingerprint = "",
    why: options.Why = "",
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Accept a held schema change: the destination's table follows it with the next run."""
    return _answer(target, "approved", fingerprint, How(config, json, dry_run, why))


@verb("reject", _PANEL, "reject shop.public.orders")
def reject(
    target: options.StreamName,
    fingerprint: Fingerprint = "",
    why: options.Why = "",
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Refuse a held schema change: the stream goes on with the schema it has."""
    return _answer(target, "rejected", fingerprint, How(config, json, dry_run, why))


def _answer(text: str, answer: Literal["approved", "rejected"], fingerprint: str, how: How) -> int:
    async def prepare(place: Place, catalog: Catalog) -> Plan:
        stream = await desk.one_stream(place, catalog, text)
        target, hold = name_of(stream), stream.hold
        if hold is None or hold.kind is not HoldKind.SCHEMA:
            raise Failure(
                f"{target} waits for no answer about its schema.",
                Exit.NOTHING,
                f"How it stands: reconciler show {target.typed}",
            )
        if fingerprint and fingerprint != hold.fingerprint:
            raise Failure(
                f"The proposal for {target} is {hold.fingerprint} now and no longer "
                f"{fingerprint}: the source moved on.",
                Exit.FAILED,
                f"See what it is now: reconciler schema diff {target.typed}",
            )
        if {"approved": "approve", "rejected": "reject"}[answer] not in hold.choices:
            raise Failure(
                f"{target} cannot be {answer}: {hold.reason}",
                Exit.HELD,
                f"Its answers: reconciler show {target.typed}",
            )
        action = AnswerSchema(target.pipeline, target.stream, hold.fingerprint, answer)
        done = f"The schema change of {target} ({hold.fingerprint}) is {answer}."
        return Plan((action,), f"{done} To go on at once:", (f"reconciler run {target.typed}",))

    return edit(how, prepare)


@verb("refresh", _PANEL, "refresh shop.public.orders")
def refresh(
    target: options.AnyTarget,
    why: options.Why = "",
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Read a stream again from its beginning with the next run, or all streams of a pipeline."""
    wanted = parse(target)

    async def prepare(place: Place, catalog: Catalog) -> Plan:
        await desk.must_know(place, catalog, wanted)
        known = [s.stream for s in await catalog.streams(wanted.pipeline)]
        if wanted.stream:
            await desk.must_know_stream(place, catalog, wanted)
        elif not known:
            raise Failure(
                f"{wanted} has read nothing yet: its first run reads all anyway.", Exit.NOTHING
            )
        chosen = [wanted.stream] if wanted.stream else known
        actions = tuple(Refresh(wanted.pipeline, stream) for stream in chosen)
        done = f"The next run of {wanted.pipeline} reads {', '.join(chosen)} from the beginning."
        return Plan(actions, done, (f"reconciler run {wanted.typed}",))

    return edit(How(config, json, dry_run, why), prepare)
