"""Where the catalog is, in milliseconds: for commands that need nothing else of the config."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from reconciler.config.document import Document, RawTable, Source, read_source
from reconciler.config.environment import variable_for
from reconciler.config.locations import absolute, catalog_url
from reconciler.config.positions import LineIndex
from reconciler.config.problems import ConfigError
from reconciler.config.words import Wrong, name, size

DEFAULT_LIMIT = 10 * 2**30
_LARGE = 64 * 1024
_HEADER = re.compile(r"^[ \t]*\[", re.MULTILINE)


class Located(NamedTuple):
    """What a command needs to open the catalog, and to see whether a daemon is up."""

    project: str
    state_dir: Path
    catalog: str
    """URL."""
    catalog_limit: int = DEFAULT_LIMIT
    """Bytes; whoever opens the catalog has to open it with its ceiling."""


def locate(path: Path, env: Mapping[str, str]) -> Located:
    """Read just this much of the config, environment included; the rest is not checked.

    Raises ``ConfigError`` as ``load`` would for these keys.
    """
    source = _quick(Path.cwd() / path)
    document = Document(source, source.values, [source])
    base = source.base
    project = _value(document, ("project",), env, "")
    state = _value(document, ("state_dir",), env, "state")
    url = _value(document, ("catalog",), env, "")
    limit = _value(document, ("catalog_limit",), env, f"{DEFAULT_LIMIT >> 30}GiB")
    checks: dict[tuple[str, ...], Callable[[], str]] = {
        ("project",): partial(name, project, "project"),
        ("state_dir",): partial(absolute, state, base),
        ("catalog",): partial(catalog_url, url, base) if url else str,
    }
    found: list[str] = []
    for key, check in checks.items():
        try:
            found.append(check())
        except Wrong as wrong:
            document.add(key, wrong.message, allowed=wrong.allowed, hint=wrong.hint)
    ceiling = DEFAULT_LIMIT
    try:
        ceiling = size(limit)
    except Wrong as wrong:
        document.add(("catalog_limit",), wrong.message, allowed=wrong.allowed)
    if document.problems:
        raise ConfigError(document.problems)
    project, state, url = found
    catalog = url or f"sqlite:///{state}/catalog.db"
    return Located(project, Path(state), catalog, ceiling)


def _value(document: Document, key: tuple[str, ...], env: Mapping[str, str], default: str) -> str:
    if variable := variable_for(key, env):
        document.overrides[key] = variable
        return env[variable]
    value: object = document.values
    for part in key:
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        if not default and key == ("project",):
            document.add(key, "is missing", hint='name of the project, such as project = "shop"')
            return "missing"
        return default
    if not isinstance(value, str):
        document.add(key, "has the wrong type", allowed="a string")
        return default
    return value


def _quick(path: Path) -> Source:
    """The file; of a large one only the keys before the first table."""
    try:
        large = path.stat().st_size > _LARGE
        text = path.read_text(encoding="utf-8") if large else ""
    except (OSError, UnicodeDecodeError):
        large, text = False, ""
    if large and (values := _head(text)) is not None:
        return Source(path, text, values, LineIndex(text))
    return read_source(path)


def _head(text: str) -> RawTable | None:
    """Top-level keys; None when a string of many lines might hide a header."""
    if '"""' in text or "'''" in text:
        return None
    first = _HEADER.search(text)
    if first is None:
        return None
    try:
        return tomllib.loads(text[: first.start()])
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
