"""Reading a config whole, with all of its problems at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reconciler.config import environment
from reconciler.config.desired import Project
from reconciler.config.document import Document, RawTable, Texts, read_document
from reconciler.config.locations import read_secret
from reconciler.config.positions import KeyPath
from reconciler.config.problems import ConfigError, Problem
from reconciler.config.resolve import Resolution
from reconciler.config.settings import Settings, json_schema, read_settings
from reconciler.config.tables import attempt, note


def load(
    path: Path, env: Mapping[str, str], *, secrets: bool, kept: Texts | None = None
) -> Project:
    """See ``reconciler.config.load``. ``kept``: from the files as they once were."""
    with _collector_paused():
        resolution = open_config(path, env, kept)
        project = resolution.project()
    if secrets:
        _check_secrets(resolution.document, project, env)
    refuse_problems(resolution.document)
    return project


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No search for cycles: a load makes millions of objects and no cycle, and takes a third less.

    What the interpreter did before it does again afterwards, whatever happens.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def open_config(path: Path, env: Mapping[str, str], kept: Texts | None = None) -> Resolution:
    """The config's tables, environment applied, before they are resolved."""
    variables = environment.candidates(env)
    document = read_document(path, environment.include_patterns(variables), kept)
    overlay: RawTable = {}
    if variables:
        overlay = environment.overrides(document, variables, json_schema())
    return Resolution(document, _settings(document, overlay))


def refuse_problems(document: Document) -> None:
    """Raise ``ConfigError`` if there are any: each once, in the order of the files."""
    if not document.problems:
        return
    order = {source.path: number for number, source in enumerate(document.sources)}

    def position(problem: Problem) -> tuple[int, str, int, str]:
        number = order.get(problem.file, len(order)) if problem.file else -1
        return number, str(problem.file), problem.line, problem.place.variable

    raise ConfigError(sorted(dict.fromkeys(document.problems), key=position))


def _settings(document: Document, overlay: RawTable) -> Settings:
    """The root model. Keys with problems are left out, so that the rest is checked as well."""
    files = document.values
    try:
        return read_settings(overlay, files)
    except ValidationError as error:
        faulty = note(error, document, ())
    values = {key: _without(table, faulty) for key, table in (("e", overlay), ("f", files))}
    values["f"] = {"project": "unnamed"} | values["f"]
    return read_settings(values["e"], values["f"])


def _without(table: RawTable, paths: list[KeyPath]) -> RawTable:
    """A copy of ``table`` without the keys ``paths``."""
    kept: dict[str, Any] = {}
    for key, value in table.items():
        inner = [path[1:] for path in paths if path[0] == key]
        if () in inner or (inner and not isinstance(value, dict)):
            continue
        kept[key] = _without(value, inner) if inner else value
    return kept


def _check_secrets(document: Document, project: Project, env: Mapping[str, str]) -> None:
    for connection in project.connections.values():
        for option, ref in connection.secrets.items():
            at = ("connections", connection.name, option)
            attempt(document, at, partial(read_secret, ref, env))
