"""All that is printed: records as JSON, and tables and sentences for people.

On a terminal tables are drawn by rich. Anywhere else they are plain aligned text, never cut, so
that ``grep`` and ``awk`` see all of it, and rich is not loaded at all.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from catalog.records import Micros, Run
from reconciler.cli.failure import tame

_TIMES = frozenset(("at", "tick"))
_COLOURS = {
    **dict.fromkeys(("succeeded", "nothing_new", "idle", "ok", "running"), "green"),
    **dict.fromkeys(("failed", "fenced", "interrupted", "problem", "parked"), "red"),
    **dict.fromkeys(("held", "paused", "cancelled", "warning", "orphaned"), "yellow"),
    **dict.fromkeys(("waiting",), "cyan"),
}


_LONG = frozenset(("reason", "note", "cursor", "finding", "why", "of", "value", "where", "options"))
"""Columns that may be broken into lines; the others are short words and numbers."""
_NARROW = 20
"""A column of text that is narrower than this is no longer read."""


# -- JSON ----------------------------------------------------------------------------------------


def iso(micros: Micros | None) -> str | None:
    """ISO 8601 in UTC with microseconds and ``Z``; None stays None."""
    if micros is None:
        return None
    seconds, rest = divmod(micros, 1_000_000)
    try:
        at = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return f"{at:%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"


def plain(value: Any) -> Any:
    """A record as JSON has it: its own field names, times as ISO 8601, bytes as hex."""
    if names := _field_names(value):
        return {name: _field(name, getattr(value, name)) for name in names}
    match value:
        case bytes():
            return value.hex()
        case Mapping():
            return {str(k): plain(v) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(v) for v in value]
        case Path():
            return str(value)
    return value


def _field_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, Struct):
        return value.__struct_fields__
    if is_dataclass(value) and not isinstance(value, type):
        return tuple(f.name for f in fields(value))
    return ()


def _field(name: str, value: Any) -> Any:
    if isinstance(value, int) and (name in _TIMES or name.endswith("_at")):
        return iso(value)
    return plain(value)


def run_record(run: Run) -> dict[str, Any]:
    """A run as ``--json`` shows it: its epoch is also its ``id``."""
    record: dict[str, Any] = plain(run)
    return {"id": run.epoch, **record}


def emit(record: Any) -> None:
    """Print one JSON document."""
    text = json.dumps(record, indent=2, ensure_ascii=False)
    sys.stdout.write(f"{text.translate(_CONTROLS_IN_JSON)}\n")


_CONTROLS_IN_JSON = {code: f"\\u{code:04x}" for code in range(127, 160)}


# -- sentences -----------------------------------------------------------------------------------


def print_line(text: str = "") -> None:
    """One line (or several) on standard output."""
    sys.stdout.write(f"{tame(text)}\n")


def note(text: str) -> None:
    """A remark on standard error, where it is in nobody's way."""
    sys.stderr.write(f"{tame(text)}\n")


named_config: ContextVar[str] = ContextVar("named_config", default="")
"""The config as ``--config`` named it; empty: it was found without."""


def as_typed(command: str) -> str:
    """A command to type next, for the config that this one was about."""
    name = named_config.get()
    told = command.startswith("reconciler ") and name and "--config" not in command
    return f"{command} --config {shlex.quote(name)}" if told else command


def next_step(*commands: str) -> None:
    """The commands to type next, as they would be typed."""
    for command in commands:
        print_line(f"  {as_typed(command)}")


def count(number: int, one: str, many: str = "") -> str:
    """``1 row``, ``1,234 rows``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size(number: int) -> str:
    """Bytes for people."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def span(seconds: float) -> str:
    """A duration in its two largest units, ``3m 20s``; a short one to the tenth of a second."""
    if seconds < 10:
        return f"{seconds}s" if isinstance(seconds, int) else f"{seconds:.1f}s"
    from reconciler.plan.words import span as in_units  # which a short run need not load

    return in_units(round(seconds))


def ago(at: Micros | None, now: Micros) -> str:
    """How long since (or until) an instant; ``-`` for none."""
    if at is None:
        return "-"
    seconds = (now - at) / 1e6
    if seconds >= 0:
        return "now" if seconds < 1 else f"{span(max(1, round(seconds)))} ago"
    return f"in {span(max(1, round(-seconds)))}"


def cursor_of(definition: str) -> str:
    """What a cursor is a position of, in words: ``updated_at (timestamp) of public.orders``.

    The definition is canonical JSON of the source's own making; what is not understood is shown
    as it is.
    """
    try:
        parts = json.loads(definition)
    except ValueError:
        return definition
    if not isinstance(parts, dict) or "column" not in parts:
        return definition
    kind = f" ({parts['type']})" if "type" in parts else ""
    table = f" of {parts['table']}" if "table" in parts else ""
    return f"{parts['column']}{kind}{table}"


# -- tables --------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under headings. A word for a state or an outcome is coloured on a terminal."""
    cells = [[str(cell) for cell in row] for row in rows]
    if on_terminal():
        _rich_table(columns, cells)
    else:
        _plain_table(columns, cells)


def on_terminal() -> bool:
    """Standard output is a person's terminal that can show more than plain text."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"


def _plain_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    flat = [[cell.replace("\n", " ") for cell in row] for row in cells]
    lines = [list(columns), *flat]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print_line("  ".join(padded).rstrip())


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    lines = (columns, *cells)
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    least = [min(w, _NARROW) if c in _LONG else w for c, w in zip(columns, widths, strict=True)]
    if sum(least) + 2 * (len(columns) - 1) > console.width:
        _records(columns, cells)
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold", no_wrap=column not in _LONG)
    for row in cells:
        # Text, not str: what comes from a catalog or a source is no markup.
        drawn.add_row(*(Text(tame(cell), style=_COLOURS.get(cell, "")) for cell in row))
    console.print(drawn)


def _records(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Row by row, for a terminal too narrow to have them side by side: rich would cut words."""
    for number, row in enumerate(cells):
        if number:
            print_line()
        pairs(zip(columns, row, strict=True))


def pairs(items: Iterable[tuple[str, object]]) -> None:
    """``name  value`` lines, aligned; values that are empty are left out."""
    shown = [(name, str(value)) for name, value in items if value not in ("", None)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print_line(f"{name.ljust(width)}  {value}")
