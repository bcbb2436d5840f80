"""Verbs of upkeep: config show|schema, catalog check, bench."""

from __future__ import annotations

from typing import Annotated

import typer

from catalog.port import Catalog
from catalog.records import CatalogStats, Check, Edit
from reconciler.cli import desk, grammar, options, output
from reconciler.cli.failure import Exit
from reconciler.cli.grammar import verb
from reconciler.cli.target import unmatched

_PANEL = "Config and upkeep"
_EDITS = 1000
"""Among so many of the newest edits it is looked whether the catalog was restored."""
grammar.app.add_typer(grammar.config, name="config", rich_help_panel=_PANEL)
grammar.app.add_typer(grammar.catalog, name="catalog", rich_help_panel=_PANEL)


@verb("show", _PANEL, "config show shop", under=grammar.config)
def config_show(
    pipeline: Annotated[
        str,
        typer.Argument(
            metavar="PIPELINE", help="Every value of it, and its origin.", show_default=False
        ),
    ] = "",
    config: options.Config = None,
    json: options.Json = False,
) -> int:
    """Show the project as its config is understood, or a pipeline's every value and its origin."""
    place = desk.find(config)
    if pipeline:
        known = place.load().pipelines
        if pipeline not in known:
            raise unmatched("pipeline", pipeline, set(known))
        return _explain(place, pipeline, as_json=json)
    return _show_project(place, as_json=json)


def _show_project(place: desk.Place, *, as_json: bool) -> int:
    project = place.load()
    if as_json:
        output.emit(output.plain(project))
        return Exit.GOOD
    output.pairs(
        (
            ("project", project.name),
            ("files", ", ".join(map(str, project.files))),
            ("state_dir", project.state_dir),
            ("catalog", project.catalog),
            ("listen", project.daemon.listen),
            ("max_runs", project.daemon.max_runs),
        )
    )
    output.print_line()
    output.table(
        ("connection", "connector", "options", "secrets"),
        [
            (
                c.name,
                c.connector,
                " ".join(f"{k}={v}" for k, v in c.options.items()),
                " ".join(f"{k}={v}" for k, v in c.secrets.items()),
            )
            for c in project.connections.values()
        ],
    )
    output.print_line()
    output.table(
        ("pipeline", "source", "destination", "streams"),
        [
            (p.name, p.source, p.destination, ", ".join((*p.select, *p.streams)))
            for p in project.pipelines.values()
        ],
    )
    return Exit.GOOD


def _explain(place: desk.Place, pipeline: str, *, as_json: bool) -> int:
    import os

    from reconciler.config import explain

    explained = explain(place.config, pipeline, os.environ)
    if as_json:
        output.emit(output.plain(explained))
        return Exit.GOOD
    for title, values in (("", explained.values), *explained.streams.items()):
        output.print_line(f"\n{pipeline}.{title}" if title else pipeline)
        output.table(
            ("key", "value", "from", "where"),
            [
                (v.key, _toml(v.value), v.origin, v.place if v.origin != "default" else "")
                for v in values
            ],
        )
    return Exit.GOOD


def _toml(value: object) -> str:
    import json

    return "-" if value is None else json.dumps(value, ensure_ascii=False)


@verb("schema", _PANEL, "config schema > reconciler.schema.json", under=grammar.config)
def config_schema() -> int:
    """Print the JSON Schema of the config file, for editors."""
    from reconciler.config import json_schema

    output.emit(json_schema())
    return Exit.GOOD


@verb("check", _PANEL, "catalog check", under=grammar.catalog)
def catalog_check(config: options.Config = None, json: options.Json = False) -> int:
    """Look for damage in the catalog: its file's integrity, and the rules between its rows."""
    place = desk.find(config)

    async def read(catalog: Catalog) -> tuple[Check, CatalogStats, list[Edit]]:
        edits = [e for e in await catalog.edits(limit=_EDITS) if e.action == "restore_catalog"]
        return await catalog.check(), await catalog.stats(), edits

    found, stats, restored = desk.with_catalog(place, read)
    if json:
        output.emit(
            {
                "problems": list(found.problems),
                "stats": output.plain(stats),
                "restored": output.plain(restored),
            }
        )
        return Exit.FAILED if found.problems else Exit.GOOD
    output.pairs(
        (
            ("catalog", place.catalog),
            ("backend", stats.backend),
            ("size", f"{output.size(stats.size_bytes)} of {output.size(stats.limit_bytes)}"),
            ("pipelines", stats.pipelines),
            ("open runs", stats.open_runs),
            *(("restored", _restored(edit)) for edit in restored[:1]),
        )
    )
    for problem in found.problems:
        output.print_line(f"problem: {problem}")
    if not found.problems:
        output.print_line("No damage found.")
    return Exit.FAILED if found.problems else Exit.GOOD


def _restored(edit: Edit) -> str:
    from json import loads

    source = loads(edit.new)["from"]
    return f"{output.iso(edit.at)} by {edit.by} from {source}{edit.why and f': {edit.why}'}"


@verb("bench", _PANEL, "bench --only commits")
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Only this measurement; may be repeated."),
    ] = None,
    json: options.Json = False,
) -> int:
    """Measure on this machine what the documentation promises, beside what the machine can do."""
    from reconciler.cli import bench as benches

    return benches.main(json=json, only=only or [])
