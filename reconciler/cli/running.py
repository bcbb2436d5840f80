"""The verb ``run``: by the daemon where one is up, else here; then what arrived, and where.

The way of a run that finds nothing new, with the daemon up, loads neither the whole config nor
rich nor the argument parser.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.port import Catalog
from catalog.records import Outcome, Run
from reconciler.cli import desk, output
from reconciler.cli.desk import Place
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.target import Target, parse, unmatched

if TYPE_CHECKING:
    from reconciler.config.desired import Project

_CODES = {
    Outcome.SUCCEEDED: Exit.GOOD,
    Outcome.NOTHING_NEW: Exit.GOOD,
    Outcome.HELD: Exit.HELD,
    Outcome.FENCED: Exit.LEASED,
}


def run_target(text: str, config: Path | None, *, as_json: bool) -> int:
    """Run ``pipeline`` or ``pipeline.stream`` now and say what came of it; its exit code."""
    target = parse(text)
    place = desk.find(config)
    run = _by_daemon(place, target) if place.daemon_up() else _here(place, target)
    if as_json:
        output.emit(output.run_record(run))
    else:
        _tell(place, run)
    if target.stream and run.outcome is Outcome.NOTHING_NEW and not run.streams:
        output.note(f"{run.pipeline} reads no stream of the name {target.stream!r}.")
        return Exit.NOTHING
    return _CODES.get(run.outcome, Exit.FAILED) if run.outcome else Exit.FAILED


def would_run(text: str, config: Path | None, *, as_json: bool) -> int:
    """Say who would run it; change nothing."""
    target = parse(text)
    place = desk.find(config)
    state = desk.with_catalog(place, lambda catalog: desk.must_know(place, catalog, target))
    by = "daemon" if place.daemon_up() else "this process"
    if as_json:
        output.emit({"dry_run": True, "run": str(target), "by": by})
        return Exit.GOOD
    output.print_line(f"Nothing was done. {target} would be run by {by}.")
    if state.paused:
        output.print_line(f"But it is paused by {state.paused.by}.")
    return Exit.GOOD


def _by_daemon(place: Place, target: Target) -> Run:
    from reconciler.cli.progress import Progress
    from reconciler.cli.waiting import ask_and_wait

    async def work(catalog: Catalog) -> Run:
        with Progress(str(target)) as progress:
            return await ask_and_wait(place, catalog, target, progress)

    try:
        return desk.with_catalog(place, work, changes=True)
    except KeyboardInterrupt:
        output.note(f"\nThe daemon goes on with {target}. Look at it, or end it:")
        output.note("  " + output.as_typed(f"reconciler status {target.pipeline}"))
        output.note("  " + output.as_typed(f"reconciler cancel {target.pipeline}"))
        raise


def _here(place: Place, target: Target) -> Run:
    import asyncio

    from reconciler.cli.progress import Progress
    from reconciler.daemon.once import IsPaused, run_here
    from reconciler.daemon.session import open_hands

    _refuse_for_another_user(place, target)
    streams = (target.stream,) if target.stream else ()

    def load() -> Project:
        project = place.load(secrets=True)
        if target.pipeline not in project.pipelines:
            raise unmatched("pipeline", target.pipeline, set(project.pipelines))
        return project

    async def work() -> Run:
        hidden = _secret_variables(place.config)
        async with open_hands(place.state_dir, "cli", hidden) as hands:
            with Progress(str(target)) as progress:
                by, moved = desk.who(), progress.moved
                return await run_here(load, hands, target.pipeline, streams, by=by, on_moved=moved)

    try:
        return asyncio.run(work())
    except IsPaused as error:
        hint = "" if error.renamed else f"First: reconciler resume {target.pipeline}"
        raise Failure(str(error), Exit.HELD, hint) from None
    except KeyboardInterrupt:
        output.note(f"\nThe run of {target} was ended. What it committed stays; go on with:")
        output.note("  " + output.as_typed(f"reconciler run {target.typed}"))
        raise


def _refuse_for_another_user(place: Place, target: Target) -> None:
    """What root makes at a destination, a service that runs as another user cannot write: each of
    its pipelines that meets it is parked.
    """
    from catalog.open import owner

    user = owner(place.catalog)
    if os.geteuid() != 0 or not user:
        return
    as_user = f"setpriv --reuid {user} --regid {user} --clear-groups "
    raise Failure(
        f"The catalog belongs to user {user}, who could not write what a run of root's leaves at "
        "the destination: start the daemon, which then carries out the run, or run it as that "
        "user.",
        Exit.USAGE,
        as_user + output.as_typed(f"reconciler run {target.typed}"),
    )


def _secret_variables(config: Path) -> set[str]:
    """Every environment variable that the config may mean by a secret, before it is understood.

    All text that reads ``env:NAME``, wherever it stands: more than are secrets, never fewer.
    """
    from reconciler.config.document import read_document
    from reconciler.config.environment import candidates, include_patterns

    texts = list(os.environ.values())
    include = include_patterns(candidates(os.environ))
    left: list[object] = [read_document(config, include).values]
    while left:
        match left.pop():
            case str() as text:
                texts.append(text)
            case dict() as table:
                left += table.values()
            case list() as items:
                left += items
    return {text.removeprefix("env:") for text in texts if text.startswith("env:")}


def _tell(place: Place, run: Run) -> None:
    took = output.span(((run.finished_at or run.started_at) - run.started_at) / 1e6)
    what = (run.outcome or "running").replace("_", " ")
    output.print_line(f"{run.pipeline}: {what} in {took}, run {run.epoch}")
    if run.outcome is Outcome.NOTHING_NEW:
        from reconciler.plan.outcome import NOTHING_NEW

        if run.reason != NOTHING_NEW:
            output.print_line(run.reason)
        return
    if run.rows or run.rejected:
        _tell_arrival(place, run)
    if run.outcome is not Outcome.SUCCEEDED:
        _tell_trouble(run)


def _tell_arrival(place: Place, run: Run) -> None:
    from reconciler.cli.arrival import tell_arrival
    from reconciler.config import ConfigError

    try:
        project = place.load()
    except ConfigError:  # of an edit that the daemon has not taken up: where it is, nobody knows
        if run.outcome is Outcome.SUCCEEDED:
            output.print_line(run.reason)
    else:
        tell_arrival(project, run)


def _tell_trouble(run: Run) -> None:
    from reconciler.plan.why import commands

    sys.stdout.flush()
    output.print_line(run.reason)
    shown: list[str] = []
    for stream in run.streams:
        name = f"{run.pipeline}.{stream.stream}"
        if stream.hold is not None:
            shown += commands(name, stream.hold.choices)
        told = stream.reason in run.reason
        if not told and stream.outcome in (Outcome.HELD, Outcome.FAILED, Outcome.CANCELLED):
            held = " is held" if stream.outcome is Outcome.HELD else ""
            output.print_line(f"{name}{held}: {stream.reason}")
    if not shown:
        shown = [f"reconciler why {run.pipeline}"]
        shown += [f"reconciler logs {run.pipeline}"] if run.outcome is Outcome.FAILED else []
    output.print_line("Next:")
    output.next_step(*shown)
