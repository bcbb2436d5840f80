"""Verbs to start with: init, discover, check; and what typing nothing shows."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reconciler.cli import desk, options, output
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.grammar import verb
from reconciler.cli.target import unmatched

if TYPE_CHECKING:
    from reconciler.connectors.ports import Finding

_PANEL = "Start"


class Kind(StrEnum):
    """What ``init`` writes a config for: a source and a destination."""

    SQLITE = "sqlite"
    POSTGRES = "postgres"
    CSV = "csv"


@verb("init", _PANEL, "init --kind postgres")
def init(
    path: Annotated[
        Path, typer.Argument(help="Where to write it; a file there is never overwritten.")
    ] = Path("config.toml"),
    kind: Annotated[Kind, typer.Option(help="Where the data comes from.")] = Kind.SQLITE,
    dry_run: options.DryRun = False,
) -> int:
    """Write a small commented config to start from."""
    from reconciler.cli.templates import config_for

    text = config_for(kind.value)
    if path.is_dir():
        path /= "config.toml"
    if path.exists():
        raise Failure(
            f"{path} is there already and is left as it is.",
            Exit.FAILED,
            "Write it elsewhere: reconciler init other.toml",
        )
    if dry_run:
        output.print_line(text.rstrip("\n"))
        return Exit.GOOD
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    option = "" if path == Path("config.toml") else f" --config {shlex.quote(str(path))}"
    output.print_line(f"Wrote {path}. Put your own names into it, then:")
    discover = {f"reconciler discover shop_db{option}": "what is there to load"}
    _steps(
        {
            **({} if kind is Kind.CSV else discover),  # a folder has no streams of its own
            f"reconciler check{option}": "is all of it in order",
            f"reconciler run shop{option}": "load it",
        }
    )
    return Exit.GOOD


@verb("discover", _PANEL, 'discover shop_db --select "public.*"')
def discover(
    connection: Annotated[
        str,
        typer.Argument(help="A connection of the config to read from.", show_default=False),
    ],
    select: Annotated[
        list[str] | None,
        typer.Option("--select", metavar="GLOB", help="Only these streams; ! takes away."),
    ] = None,
    config: options.Config = None,
    json: options.Json = False,
) -> int:
    """Look what streams a source has, and print them as config to paste."""
    import asyncio

    from reconciler.daemon import inspect
    from reconciler.run.pool import WorkerGone

    project = desk.find(config).load(secrets=False)
    if connection not in project.connections:
        raise unmatched("connection", connection, set(project.connections))
    connector = project.connections[connection].connector
    try:
        found = asyncio.run(inspect.discover(project, connection, select or []))
    except WorkerGone as error:
        raise Failure(f"{connection} cannot be looked at: {error}") from None
    if json:
        output.emit([output.plain(stream) for stream in found])
    elif found:
        from reconciler.cli.templates import pipeline_for

        text = pipeline_for(connection, found, cursors=connector == "sql")
        output.print_line(text.rstrip("\n"))
    elif connector == "files":
        output.note(
            f"{connection} is a folder: it has no streams of its own. Name them in a pipeline, "
            'each with the glob of its files: [pipelines.NAME.streams.NAME], path = "*.csv".'
        )
    else:
        output.note(f"{connection} has no stream that matches.")
    return Exit.GOOD if found else Exit.NOTHING


@verb("check", _PANEL, "check")
def check(config: options.Config = None, json: options.Json = False) -> int:
    """Validate the config and connect to everything it names. 2: config, 1: a problem found."""
    import asyncio

    from reconciler.daemon import inspect

    place = desk.find(config)
    project = place.load(secrets=True)
    if not json:
        pipelines = output.count(len(project.pipelines), "pipeline")
        connections = output.count(len(project.connections), "connection")
        output.print_line(f"{place.config}: good, {pipelines}, {connections}\n")
    found = {"catalog": _check_catalog(place)}
    found |= asyncio.run(inspect.check(project))
    problems = sum(f.level == "problem" for findings in found.values() for f in findings)
    if json:
        output.emit({"problems": problems, "findings": output.plain(found)})
        return Exit.FAILED if problems else Exit.GOOD
    output.table(
        ("connection", "level", "finding"),
        [(name, f.level, _finding(f)) for name, findings in found.items() for f in findings],
    )
    if problems:
        output.print_line(f"\n{output.count(problems, 'problem')} found.")
        return Exit.FAILED
    output.print_line("\nAll in order. Next:")
    first = next(iter(project.pipelines), "PIPELINE")
    output.next_step("reconciler plan", f"reconciler run {first}", "reconciler serve")
    return Exit.GOOD


def _finding(finding: Finding) -> str:
    return f"{finding.text} ({finding.hint})" if finding.hint else finding.text


def _check_catalog(place: desk.Place) -> list[Finding]:
    """The catalog can be opened, and its disk has room and is this user's to write."""
    from reconciler.connectors.destinations.checks import check_folder

    return [*_open_catalog(place), *check_folder(place.state_dir)]


def _open_catalog(place: desk.Place) -> list[Finding]:
    from catalog.errors import CatalogError
    from reconciler.connectors.ports import Finding

    if place.never_ran():
        return [Finding("ok", f"{place.catalog} will be made by the first run")]
    try:
        stats = desk.with_catalog(place, lambda catalog: catalog.stats())
    except CatalogError as error:
        return [Finding("problem", str(error))]
    used = f"{output.size(stats.size_bytes)} of {output.size(stats.limit_bytes)}"
    found = [Finding("ok", f"{stats.backend}, {used}")]
    if stats.last_error:
        found.append(Finding("problem", stats.last_error))
    return found


# -- typing nothing ------------------------------------------------------------------------------


def welcome() -> int:
    """The five next things to type, as things stand here."""
    from reconciler.config import ConfigError, find_config

    try:
        path = find_config(None, os.environ)
    except ConfigError:
        path = None
    if path is None or not path.exists():
        title = "No config here yet. Type next:"
        steps = {
            "reconciler init": "write a small config.toml to start from",
            "reconciler discover CONNECTION": "see what a source has",
            "reconciler check": "check the config and connect to everything",
            "reconciler run PIPELINE": "load it now",
            "reconciler --help": "all that can be typed",
        }
    else:
        title = f"Config: {path}. Type next:"
        steps = {
            "reconciler status": "how the pipelines stand",
            "reconciler plan": "what would run now, and why",
            "reconciler run PIPELINE": "bring one up to date now",
            "reconciler serve": "keep all of them up to date",
            "reconciler --help": "all that can be typed",
        }
    output.print_line(title)
    _steps(steps)
    return Exit.GOOD


def _steps(steps: Mapping[str, str]) -> None:
    """Commands to type next, each with what it is for."""
    width = max(map(len, steps))
    output.next_step(*(f"{command.ljust(width)}  {what}" for command, what in steps.items()))
