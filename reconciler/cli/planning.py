"""Verbs that say what will happen: plan and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from catalog.port import Catalog
from catalog.records import PipelineState, RunQuery
from reconciler.cli import desk, options, output
from reconciler.cli.desk import Place
from reconciler.cli.failure import Exit
from reconciler.cli.grammar import verb
from reconciler.cli.standing import plan_one
from reconciler.cli.target import Target, parse
from reconciler.config import changes, last_kept
from reconciler.config.desired import Project
from reconciler.config.edits import ConfigChange
from reconciler.plan.notes import Note, notes
from reconciler.plan.plan import Action, CancelRun, Dispatch, Wait, plan_project
from reconciler.plan.why import Facts, Room, Why, lines
from reconciler.plan.why import why as explain

_PANEL = "Look"


@verb("plan", _PANEL, "plan")
def plan(config: options.Config = None, json: options.Json = False) -> int:
    """Show what would be started now and what waits for what, each with its reason, and what
    edits of the config that no daemon or run has taken up yet will do."""
    place = desk.find(config)
    project = place.load()
    states, said = desk.with_catalog(place, lambda catalog: _states_and_notes(project, catalog))
    actions = plan_project(project, states, desk.now_us())
    before = last_kept(place.state_dir)
    edits = changes(before, project) if before else ()
    if json:
        records = [_record(name, action, said.get(name, [])) for name, action in actions]
        output.emit({"actions": records, "edits": [_edit(edit) for edit in edits]})
        return Exit.GOOD
    for edit in edits:
        output.print_line(f"edit: {edit}")
    if not actions:
        output.print_line("No pipelines yet.")
        return Exit.GOOD
    now = desk.now_us()
    output.table(
        ("pipeline", "action", "when", "reason"),
        [
            (name, _word(action), output.ago(_at(action), now), action.reason.text)
            for name, action in actions
        ],
    )
    for name, found in sorted(said.items()):
        for stream, text in found:
            output.print_line(f"note: {name}.{stream}: {text}")
    return Exit.GOOD


async def _states_and_notes(
    project: Project, catalog: Catalog
) -> tuple[dict[str, PipelineState], dict[str, list[Note]]]:
    """What the catalog says, and what each pipeline's reads assume or cannot see (rule 8)."""
    said = {
        name: notes(
            pipeline, project.connections[pipeline.source], await catalog.streams(pipeline.name)
        )
        for name, pipeline in project.pipelines.items()
    }
    return await desk.all_states(catalog), said


@verb("why", _PANEL, "why shop")
def why(
    target: options.AnyTarget, config: options.Config = None, json: options.Json = False
) -> int:
    """Say why a pipeline does or does not run now, what is not the cause, and what to type."""
    place = desk.find(config)
    wanted = parse(target)
    answer = desk.with_catalog(place, lambda catalog: _why(place, catalog, wanted))
    if json:
        output.emit(output.plain(answer))
    else:
        held = tuple(
            replace(hold, commands=tuple(map(output.as_typed, hold.commands)))
            for hold in answer.held
        )
        typed = replace(answer, command=output.as_typed(answer.command), held=held)
        output.print_line("\n".join(lines(typed)))
    return Exit.GOOD


async def _why(place: Place, catalog: Catalog, target: Target) -> Why:
    await desk.must_know(place, catalog, target)
    if target.stream:
        await desk.must_know_stream(place, catalog, target)
    project = place.load()
    states = await desk.all_states(catalog)
    state = await catalog.pipeline(target.pipeline)
    now = desk.now_us()
    pipeline = project.pipelines.get(target.pipeline)
    # One whose holder stopped takes nobody's room: ``claim`` does not count it.
    open_runs = [
        run
        for run in await catalog.runs(RunQuery(open_only=True, limit=10_000))
        if run.pipeline not in states or not states[run.pipeline].lapsed
    ]
    used = [connection for run in open_runs for connection in set(run.connections)]
    ends = () if pipeline is None else dict.fromkeys((pipeline.source, pipeline.destination))
    facts = Facts(
        now=now,
        streams=await catalog.streams(target.pipeline),
        rooms=tuple(
            Room(name, used.count(name), project.connections[name].max_runs) for name in ends
        ),
        upstream={name: s.news for name, s in states.items()},
        daemon="up" if place.daemon_up() else "down",
        open_runs=len(open_runs),
        max_runs=project.daemon.max_runs,
        stream=target.stream,
    )
    return explain(pipeline, state, plan_one(project, state, states, now), facts)


def _edit(edit: ConfigChange) -> dict[str, Any]:
    return {
        "kind": edit.kind.value,
        "subject": edit.subject,
        "key": edit.key,
        "old": edit.old,
        "new": edit.new,
        "effect": edit.effect,
    }


def _word(action: Action) -> str:
    match action:
        case Dispatch():
            return "run"
        case CancelRun():
            return "cancel"
        case Wait():
            return "wait"


def _at(action: Action) -> int | None:
    return action.until if isinstance(action, Wait) else None


def _record(name: str, action: Action, said: list[Note]) -> dict[str, Any]:
    record = {
        "pipeline": name,
        "notes": [{"stream": stream, "text": text} for stream, text in said],
        "action": _word(action),
        "code": action.reason.code.value,
        "reason": action.reason.text,
        "until": output.iso(_at(action)),
    }
    if isinstance(action, Dispatch):
        record["due_at"] = output.iso(action.due)
        record["trigger"] = output.plain(action.candidate.trigger)
    return record
