"""Verbs that look back: runs, show, logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from catalog.port import Catalog
from catalog.records import Commit, Edit, Outcome, Run, RunQuery, StreamState
from reconciler.cli import desk, options, output
from reconciler.cli.desk import Place
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.grammar import verb
from reconciler.cli.holds import tell_hold
from reconciler.cli.target import Target, parse, parse_pipeline

_PANEL = "Look"
_LONGEST_NUMBER = 19
"""Digits; a run's number has fewer."""
_RECENT = 5


@verb("runs", _PANEL, "runs shop --outcome failed --limit 5")
def runs(
    pipeline: options.PipelineName = "",
    outcome: Annotated[
        Outcome | None, typer.Option(help="Only runs that ended so.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
    config: options.Config = None,
    json: options.Json = False,
) -> int:
    """List runs, newest first. Consecutive runs with nothing new are one line with a count."""
    place = desk.find(config)

    async def read(catalog: Catalog) -> tuple[tuple[Run, ...], dict[int, str]]:
        if pipeline:
            await desk.must_know(place, catalog, parse_pipeline(pipeline))
        found = await catalog.runs(RunQuery(pipeline=pipeline, outcome=outcome, limit=limit))
        return found, {run.epoch: await _outcome(catalog, run) for run in found}

    found, outcomes = desk.with_catalog(place, read)
    if json:
        output.emit([output.run_record(run) for run in found])
    elif found:
        _run_table(found, outcomes)
    else:
        output.note("No such run." if pipeline or outcome else "No runs yet.")
    return Exit.GOOD if found else Exit.NOTHING


async def _outcome(catalog: Catalog, run: Run) -> str:
    """How it ended, or that it is under way; one whose holder stopped is not, and stays open until
    the next run of its pipeline closes it."""
    if run.outcome is not None:
        return run.outcome
    return "lapsed" if (await catalog.pipeline(run.pipeline)).lapsed else "running"


def _run_table(found: tuple[Run, ...], outcomes: Mapping[int, str]) -> None:
    now = desk.now_us()
    output.table(
        ("run", "pipeline", "outcome", "started", "took", "rows", "count", "reason"),
        [
            (
                run.epoch,
                run.pipeline,
                outcomes[run.epoch],
                output.ago(run.started_at, now),
                output.span(((run.finished_at or now) - run.started_at) / 1e6),
                f"{run.rows:,}",
                run.count,
                run.reason,
            )
            for run in found
        ],
    )


@verb("show", _PANEL, "show shop.public.orders")
def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|PIPELINE[.STREAM]",
            help="A run by its number, a pipeline's last run, or a stream.",
            show_default=False,
        ),
    ],
    config: options.Config = None,
    json: options.Json = False,
) -> int:
    """Show one run, a pipeline's last run, or all that is known of a stream."""
    place = desk.find(config)
    if not _is_number(what) and parse(what).stream:
        return _show_stream(place, parse(what), as_json=json)

    async def read(catalog: Catalog) -> tuple[Run, str]:
        run = await _run_of(place, catalog, what)
        return run, await _outcome(catalog, run)

    run, outcome = desk.with_catalog(place, read)
    if json:
        output.emit(output.run_record(run))
    else:
        tell_run(run, outcome)
    return Exit.GOOD


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


async def _run_of(place: Place, catalog: Catalog, what: str) -> Run:
    if _is_number(what):
        run = await catalog.run(int(what)) if len(what) < _LONGEST_NUMBER else None
        if run is None:
            raise Failure(
                f"No run has the number {what}; it may be folded into a later one with nothing "
                "new, or past retention.",
                Exit.NOTHING,
                "List them: reconciler runs",
            )
        return run
    target = parse(what)
    await desk.must_know(place, catalog, target)
    newest = await catalog.runs(RunQuery(pipeline=target.pipeline, limit=1))
    if not newest:
        raise Failure(
            f"{target} has not run yet.", Exit.NOTHING, f"Run it: reconciler run {target.typed}"
        )
    return newest[0]


def tell_run(run: Run, outcome: str) -> None:
    """A run in full, for people."""
    took = ((run.finished_at or desk.now_us()) - run.started_at) / 1e6
    rejected = output.count(run.rejected, "row") if run.rejected else ""
    output.pairs(
        (
            ("run", run.epoch),
            ("pipeline", run.pipeline),
            ("outcome", outcome),
            ("reason", run.reason),
            ("error", run.error),
            ("trigger", run.trigger.kind),
            ("started", output.iso(run.started_at)),
            ("finished", output.iso(run.finished_at)),
            ("took", output.span(took)),
            ("rows", f"{run.rows:,}"),
            ("bytes", output.size(run.bytes)),
            ("rejected", rejected),
            ("holder", run.holder),
            ("count", f"{run.count} runs with nothing new" if run.count > 1 else ""),
            ("since", output.iso(run.first_started_at) if run.count > 1 else ""),
        )
    )
    if run.streams:
        output.print_line()
        output.table(
            ("stream", "outcome", "rows", "bytes", "rejected", "reason"),
            [
                (s.stream, s.outcome, f"{s.rows:,}", output.size(s.bytes), s.rejected, s.reason)
                for s in run.streams
            ],
        )


@dataclass(frozen=True, slots=True)
class _StreamStory:
    stream: StreamState
    commits: tuple[Commit, ...]
    edits: tuple[Edit, ...]


def _show_stream(place: Place, target: Target, *, as_json: bool) -> int:
    async def read(catalog: Catalog) -> _StreamStory:
        stream = await desk.must_know_stream(place, catalog, target)
        commits = await catalog.commits(target.pipeline, target.stream, limit=_RECENT)
        edits = await catalog.edits(target.pipeline, limit=100)
        mine = tuple(e for e in edits if e.stream in ("", target.stream))[:_RECENT]
        return _StreamStory(stream, commits, mine)

    story = desk.with_catalog(place, read)
    if as_json:
        record = output.plain(story)
        output.emit({**record.pop("stream"), **record})
        return Exit.GOOD
    _tell_stream(story.stream)
    if story.commits:
        output.print_line("\nlast batches")
        output.table(
            ("batch", "run", "rows", "rejected", "schema", "committed", "published"),
            [
                (
                    c.seq,
                    c.epoch,
                    f"{c.rows:,}",
                    c.rejected,
                    c.schema_version,
                    output.iso(c.committed_at),
                    "yes" if c.published else "not yet marked",
                )
                for c in story.commits
            ],
        )
    if story.edits:
        output.print_line("\nlast edits")
        output.table(
            ("when", "by", "what", "why"),
            [(output.iso(e.at), e.by, e.action, e.why) for e in story.edits],
        )
    tell_hold(story.stream)
    return Exit.GOOD


def _tell_stream(stream: StreamState) -> None:
    cursor = stream.cursor
    output.pairs(
        (
            ("pipeline", stream.pipeline),
            ("stream", stream.stream),
            ("last run", stream.last_outcome),
            ("reason", stream.last_reason),
            ("rows", f"{stream.rows:,}"),
            ("batch", f"{stream.seq} committed, {stream.published} published"),
            ("cursor", cursor.position.text if cursor else "none"),
            (
                "cursor is",
                f"{cursor.kind}, {output.cursor_of(cursor.definition)}" if cursor else "",
            ),
            ("schema", f"version {stream.schema_version}" if stream.schema_version else ""),
            ("data up to", output.iso(stream.data_at)),
            ("next run will", stream.directive),
        )
    )


@verb("logs", _PANEL, "logs shop")
def logs(
    pipeline: options.PipelineName,
    run: Annotated[
        int | None,
        typer.Option("--run", metavar="RUN", help="Of this run; else of the last that printed."),
    ] = None,
    config: options.Config = None,
    json: options.Json = False,
) -> int:
    """Print what a run's worker printed. Most runs print nothing and leave no log."""
    place = desk.find(config)
    target = parse_pipeline(pipeline)
    found = desk.with_catalog(place, lambda catalog: _log(place, catalog, target, run))
    if found is None and run is not None:
        raise Failure(f"Run {run} of {pipeline} printed nothing.", Exit.NOTHING)
    if found is None:
        raise Failure(
            f"No run of {pipeline} printed anything.",
            Exit.NOTHING,
            f"How it ended: reconciler show {pipeline}",
        )
    run, path = found
    text = path.read_bytes().decode(errors="replace")
    if json:
        output.emit({"pipeline": pipeline, "id": run, "path": str(path), "text": text})
    else:
        output.print_line(text.rstrip("\n"))
    return Exit.GOOD


async def _log(
    place: Place, catalog: Catalog, target: Target, number: int | None
) -> tuple[int, Path] | None:
    """The newest log of the pipeline's, or that of run ``number``, also by a name it had before."""
    from reconciler.daemon import runlogs

    await desk.must_know(place, catalog, target)
    for epoch, path in runlogs.newest_first(place.state_dir):
        if number in (None, epoch):
            run = await catalog.run(epoch)
            # One that was folded into a later run is not known any more.
            if target.pipeline == (run.pipeline if run else path.parent.name):
                return epoch, path
    return None
