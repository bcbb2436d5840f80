"""What has to be at the destination, by a model that knows the documentation and not the code.

Three things are kept apart, since each can be lost alone: the source, what the catalog knows of the
stream, and what is at the destination with the place that its marker names.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Row = dict[str, Any]
numbers = itertools.count(1)
_WORDS = {"integer": "int64", "real": "float64", "text": "text"}
_WIDER = {("integer", "real")}


class Source(Protocol):
    """Where rows are read; ``at`` is the moment at which a row was written, and its cursor."""

    def after(self, at: int) -> list[Row]: ...

    def shown(self, rows: list[Row]) -> dict[str, str]:
        """The columns that a read of these rows shows, each with its kind."""

    def whole(self) -> object:
        """What tells a read of all from an earlier one; None: each counts as another."""


def wider(old: str, new: str) -> bool:
    """Whether a column of kind ``old`` may become one of kind ``new`` by itself."""
    return (old, new) in _WIDER


def fits(value: Any, kind: str) -> bool:
    """Whether a value can be cast to what the table has."""
    if value is None or kind == "text":
        return True
    try:
        number = float(value)
    except ValueError:
        return kind == "date" and str(value).startswith("2026-")
    return kind == "real" or (kind == "integer" and number.is_integer())


def canonical(value: Any) -> str | None:
    """One writing of a value, whether it is a number or was approved to become a text."""
    if value is None:
        return None
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return str(value)


@dataclass
class Known:
    """What the catalog knows: where the stream stands and which columns its table has."""

    cursor: int = -1
    whole: object = None
    batch: int = 0
    """The last one, by a number that no other ever has; 0: none was committed."""
    kinds: dict[str, str] = field(default_factory=dict)
    """What its columns hold."""
    let_in: set[tuple[str, str]] = field(default_factory=set)
    """Columns that a person let become text, each with the kind that was approved."""
    ignored: set[str] = field(default_factory=set)
    refused: set[tuple[str, str, str]] = field(default_factory=set)
    """Changes that a person rejected: column, old and new type."""

    def place(self, name: str, kind: str, reads: Reads) -> str:
        """The column of the table that takes the values of the source's column of this kind."""
        old = self.kinds.get(name, kind)
        same = (
            not kind
            or old == kind
            or wider(old, kind)
            or wider(kind, old)
            or (name, kind) in self.let_in
        )
        return name if same or reads.retyped != "new_column" else f"{name}__{_WORDS[kind]}"


@dataclass
class There:
    """A table at the destination, in order of arrival, and where its marker stands."""

    rows: list[Row] = field(default_factory=list)
    cursor: int = -1
    whole: object = None
    batch: int = 0

    def add(self, rows: list[Row], mode: str, *, anew: bool) -> None:
        """What a run brought; ``anew``: in the place of what was there."""
        self.rows = [*([] if anew else self.rows), *rows]
        if mode == "merge":
            self.rows = latest(self.rows)


def latest(rows: list[Row]) -> list[Row]:
    """The last of each key."""
    return list({row["id"]: row for row in rows}.values())


@dataclass(frozen=True)
class Reads:
    """How the config has the stream read and written."""

    mode: str
    by_cursor: bool
    added: str
    """The config's answer to a new column."""
    retyped: str
    """And to another type."""


def brought(source: Source, known: Known, there: There, reads: Reads, *, refresh: bool) -> None:
    """A run came to its end: what it read is there, once."""
    whole = source.whole()
    anew = refresh or (reads.mode == "replace" and (whole is None or whole != known.whole))
    if reads.mode == "replace" and not anew:
        return
    read = source.after(known.cursor if reads.by_cursor and not anew else -1)
    columns = source.shown(read)
    if read or (anew and whole is None):
        take_up(columns, known, reads)
    rows = []
    for row in read:
        placed = {
            known.place(name, columns.get(name, ""), reads): value
            for name, value in row.items()
            if name not in known.ignored
        }
        if all(fits(value, known.kinds.get(name, "text")) for name, value in placed.items()):
            rows.append(placed)
    there.add(copy.deepcopy(rows), reads.mode, anew=anew)
    newest = max((row["at"] for row in source.after(-1)), default=-1)
    known.cursor = there.cursor = max(newest, -1 if refresh else known.cursor)
    known.whole = there.whole = whole
    if read or (anew and (known.batch or whole is None)):
        known.batch = there.batch = next(numbers)


def take_up(columns: Mapping[str, str], known: Known, reads: Reads) -> None:
    """Columns that are new, and such as became wider, where nobody was to be asked."""
    first = not known.kinds
    known.kinds.setdefault("id", "integer")
    new = set(columns) - set(known.kinds)
    if reads.added == "ignore" and not first:
        known.ignored |= new
    elif reads.added == "add":
        known.ignored -= set(columns)
    for name, kind in columns.items():
        if name in known.ignored:
            continue
        old = known.kinds.setdefault(name, kind)
        if wider(old, kind):
            known.kinds[name] = kind


def answered(
    changes: Iterable[Mapping[str, str]], known: Known, columns: Mapping[str, str], *, approve: bool
) -> None:
    """A person answered these changes: what was approved is let in, as a text where nothing else
    holds both; what was rejected stays out."""
    for change in changes:
        name, kind = change["column"], columns.get(change["column"], "")
        this = (name, change["old"], change["new"])
        if this in known.refused:  # nothing is asked twice
            continue
        if not approve:
            known.refused.add(this)
        if change["kind"] == "added":
            known.ignored = known.ignored - {name} if approve else known.ignored | {name}
        elif change["kind"] == "retyped" and approve:
            known.let_in |= {(name, known.kinds[name]), (name, kind)}
            known.kinds[name] = "text"


def difference(there: There, found: Iterable[Mapping[str, Any]], ignored: set[str]) -> str:
    """How the rows found are not those that have to be there; empty: they are."""
    found = list(found)
    names = sorted({name for row in (*there.rows, *found) for name in row})
    have = {name for row in found for name in row}
    missing = [
        name
        for name in names
        if found
        and name not in have | ignored
        and any(row.get(name) is not None for row in there.rows)
    ]
    names = [name for name in names if name in have]
    wanted = Counter(tuple(canonical(row.get(n)) for n in names) for row in there.rows)
    got = Counter(tuple(canonical(row.get(n)) for n in names) for row in found)
    parts = [f"no column {name}" for name in missing]
    parts += [f"missing {n}x {row}" for row, n in list((wanted - got).items())[:5]]
    parts += [f"not wanted {n}x {row}" for row, n in list((got - wanted).items())[:5]]
    if not found and there.rows and not parts:
        parts = [f"{len(there.rows)} rows missing"]
    return f"columns {names}: " + "; ".join(parts) if parts else ""
