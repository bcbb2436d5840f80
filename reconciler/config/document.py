"""The config's text: which file, what it includes, and where each key stands. No pydantic here."""

from __future__ import annotations

import glob
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.config.positions import KeyPath, LineIndex, dotted
from reconciler.config.problems import ConfigError, Place, Problem, listed

RawTable = dict[str, Any]
SHARED_TABLES = ("connections", "pipelines")
"""Tables whose entries may come from any file; everything else stands in the first."""
SEARCHED = (Path("config.toml"), Path("/etc/reconciler/config.toml"))


def find_config(explicit: Path | None, env: Mapping[str, str]) -> Path:
    """The config file: the one named, else $RECONCILER_CONFIG, ./config.toml, /etc/reconciler.

    Raises ``ConfigError`` with one sentence when the file named, or each of these, is not there.
    """
    if explicit is not None:
        return _named(explicit, Place(), "--config")
    if from_env := env.get("RECONCILER_CONFIG"):
        place = Place(variable="RECONCILER_CONFIG")
        return _named(Path(from_env), place, "RECONCILER_CONFIG")
    for path in SEARCHED:
        if path.is_file():
            return path
    raise _single(
        Problem(
            Place(),
            "",
            "no config file: neither ./config.toml nor /etc/reconciler/config.toml is there",
            hint="name one with --config PATH or $RECONCILER_CONFIG, "
            'or start one with "reconciler init"',
        )
    )


def _named(path: Path, place: Place, by: str) -> Path:
    if path.is_file():
        return path
    what = "is a directory" if path.is_dir() else "is not there"
    raise _single(Problem(place, "", f"the config file {path}, named by {by}, {what}"))


def _single(problem: Problem) -> ConfigError:
    return ConfigError([problem])


@dataclass
class Source:
    """One file's text and values."""

    path: Path
    text: str
    values: RawTable
    index: LineIndex

    @property
    def base(self) -> Path:
        """What its relative paths are relative to."""
        return self.path.parent


@dataclass
class Document:
    """All files of one config as one table, knowing where each key was written."""

    first: Source
    values: RawTable
    sources: list[Source]
    include: list[str] = field(default_factory=list)
    """The globs of the files included, made absolute."""
    owners: dict[KeyPath, Source] = field(default_factory=dict)
    """Which included file an entry of a shared table comes from; absent: the first."""
    overrides: dict[KeyPath, str] = field(default_factory=dict)
    """Keys that an environment variable sets."""
    problems: list[Problem] = field(default_factory=list)

    def source(self, path: KeyPath) -> Source:
        """The file that ``path`` was written in."""
        return self.owners.get(path[:2], self.first)

    def place(self, path: KeyPath) -> Place:
        """Where ``path`` was written, or the table around it when it was not."""
        for length in range(len(path), 0, -1):
            if variable := self.overrides.get(path[:length]):
                return Place(variable=variable)
        source = self.source(path)
        return Place(source.path, source.index.line(path))

    def add(
        self, path: KeyPath, message: str, *, found: str = "", allowed: str = "", hint: str = ""
    ) -> None:
        """Note a problem of the key ``path``."""
        problem = Problem(self.place(path), dotted(path), message, found, allowed, hint)
        self.problems.append(problem)


Texts = Mapping[Path, str]
"""Files' texts by their absolute paths, the first file's first."""


def read_document(path: Path, include: object = None, kept: Texts | None = None) -> Document:
    """Read the first file and those that it includes.

    Raises ``ConfigError`` when the first cannot be read or is no TOML; problems of the others
    are collected in the document. ``include`` takes the place of the first file's own key.
    ``kept``: the files as they once were, and no others.
    """
    path = Path.cwd() / path
    first = _source(path, kept)
    document = Document(first, dict(first.values), [first])
    patterns = first.values.get("include") if include is None else include
    matching = _included(document, patterns) if kept is None else list(kept)[1:]
    for included in matching:
        try:
            source = _source(included, kept)
        except ConfigError as error:
            document.problems += error.problems
            continue
        document.sources.append(source)
        _merge(document, source)
    return document


def _source(path: Path, kept: Texts | None) -> Source:
    return read_source(path) if kept is None else _parsed(path, kept[path])


def read_source(path: Path) -> Source:
    """One file as TOML. Raises ``ConfigError`` naming file and, if known, line."""
    return _parsed(path, read_text(path))


def read_text(path: Path) -> str:
    """One file's text, lines ended by newlines alone. Raises ``ConfigError``."""
    try:
        return path.read_bytes().decode().replace("\r\n", "\n")
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise _single(Problem(Place(path), "", f"cannot be read: {reason}")) from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise _single(Problem(Place(path, line), "", "is not UTF-8 text")) from None


def _parsed(path: Path, text: str) -> Source:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _single(_syntax(path, text, str(error))) from None
    except RecursionError:
        raise _single(Problem(Place(path, 1), "", "nests tables or lists too deep")) from None
    return Source(path, text, values, LineIndex(text))


def _syntax(path: Path, text: str, message: str) -> Problem:
    found = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    line = text.count("\n") + 1
    column = ""
    if found is not None:
        message = message[: found.start()]
        if found[1]:
            line, column = int(found[1]), f" (column {found[2]})"
    hint = ""
    if message.startswith(("Cannot overwrite", "Cannot declare")):
        message, hint = "the same key or table stands here a second time", "keep one of them"
    return Problem(Place(path, line), "", f"is no TOML: {message}{column}", hint=hint)


def _included(document: Document, patterns: object) -> list[Path]:
    if isinstance(patterns, str):
        patterns = [patterns]
    if not isinstance(patterns, list | tuple):
        return []  # The models say what is wrong with it.
    paths: dict[Path, None] = {}
    for pattern in patterns:
        if not isinstance(pattern, str):
            continue
        full = os.path.normpath(document.first.base / pattern)
        document.include.append(full)
        matches = sorted(glob.glob(full, recursive=True))  # noqa: PTH207 - takes absolute patterns
        if not matches and not glob.has_magic(pattern):
            document.add(("include",), f'names "{pattern}", which is not there')
        paths |= dict.fromkeys(Path(m) for m in matches)
    return [path for path in paths if not _is_same(path, document.first.path)]


def _is_same(path: Path, first: Path) -> bool:
    """Whether a glob found the first file itself, by whichever name."""
    try:
        return path.samefile(first)
    except OSError:
        return False


def _merge(document: Document, source: Source) -> None:
    for key, table in source.values.items():
        if key not in SHARED_TABLES:
            _misplaced(document, source, key)
            continue
        if not isinstance(table, dict):
            place = Place(source.path, source.index.line((key,)))
            document.problems.append(Problem(place, key, "is no table"))
            continue
        known: object = document.values.get(key)
        known = dict(known) if isinstance(known, dict) else {}
        document.values[key] = known
        for name, entry in table.items():
            if name in known:
                _duplicate(document, source, (key, name))
                continue
            known[name] = entry
            document.owners[key, name] = source


def _misplaced(document: Document, source: Source, key: str) -> None:
    place = Place(source.path, source.index.line((key,)))
    document.problems.append(
        Problem(
            place,
            dotted((key,)),
            "has no place in an included file",
            allowed=listed(SHARED_TABLES),
            hint=f"move it to {document.first.path}",
        )
    )


def _duplicate(document: Document, source: Source, path: KeyPath) -> None:
    place = Place(source.path, source.index.line(path))
    other = document.place(path)
    message = f"is there already, at {other}"
    document.problems.append(
        Problem(place, dotted(path), message, hint="give one of the two another name")
    )
