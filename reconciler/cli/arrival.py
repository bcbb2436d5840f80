"""What a run brought: rows by stream, the tables they are in, and how to look at them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from catalog.records import Outcome, Run
from reconciler.cli import output
from reconciler.config.desired import Connection, Project, table_name
from reconciler.connectors.destinations.names import encode_name

_SHOWN = 10


def tell_arrival(project: Project, run: Run) -> None:
    """Rows per stream with their table, and one command that shows some of them."""
    pipeline = project.pipelines.get(run.pipeline)
    place = project.connections.get(pipeline.destination) if pipeline else None
    if pipeline is None or place is None:
        return
    brought = [s for s in run.streams if s.rows or s.rejected]
    tables = {s.stream: pipeline.settings(s.stream).table or table_name(s.stream) for s in brought}
    rejected = any(s.rejected for s in brought)
    output.table(
        ("stream", "rows", "table", *(("rejected",) if rejected else ())),
        [
            (
                s.stream,
                f"{s.rows:,}",
                _shown(place, tables[s.stream]),
                *((_set_aside(s.rejected, tables[s.stream]),) if rejected else ()),
            )
            for s in brought[:_SHOWN]
        ],
    )
    if len(brought) > _SHOWN:
        rest = output.as_typed(f"reconciler show {run.epoch}")
        output.print_line(f"and {len(brought) - _SHOWN} more: {rest}")
    if brought and run.outcome not in (Outcome.SUCCEEDED, Outcome.HELD):
        output.print_line("What of this is not in its table yet comes there with the next run.")
    if brought:
        most = max(brought, key=lambda s: s.rows)
        output.print_line("Look at it:")
        output.next_step(look_command(place, tables[most.stream]))


def _set_aside(rows: int, table: str) -> str:
    return f"{rows:,}, in {table}__rejected" if rows else "0"


def _shown(place: Connection, table: str) -> str:
    path = nearby(str(place.options["path"]))
    if place.connector == "duckdb":
        return f"{place.options['schema']}.{table} in {path}"
    return f"{path}/{encode_name(table)}/"


def look_command(place: Connection, table: str) -> str:
    """A command that shows five rows: duckdb's own where it is installed, else one that needs
    only this installation."""
    path = nearby(str(place.options["path"]))
    file, query = "", f"from {_text(f'{path}/{encode_name(table)}/**/*.parquet')} limit 5"
    if place.connector == "duckdb":
        file = path
        query = f"from {_name(str(place.options['schema']))}.{_name(table)} limit 5"
    if shutil.which("duckdb"):
        return " ".join(filter(None, ("duckdb", shlex.quote(file) if file else "", _quoted(query))))
    opened = f"duckdb.connect({file!r}, read_only=True)" if file else "duckdb"
    program = f"import duckdb; {opened}.sql({query!r}).show()"
    return f"{shlex.quote(sys.executable)} -c {_quoted(program)}"


def _quoted(text: str) -> str:
    """In double quotes for a shell where that is enough, as a person would type it."""
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(name: str) -> str:
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        return name
    return '"' + name.replace('"', '""') + '"'


def nearby(path: str) -> str:
    """The path as short as it can be said from here."""
    relative = os.path.relpath(path, Path.cwd())
    return path if relative.startswith("..") else relative
