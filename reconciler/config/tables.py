"""One table after another through its model, and pydantic's findings as sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from reconciler.config import models
from reconciler.config.document import Document
from reconciler.config.positions import KeyPath, dotted
from reconciler.config.problems import listed, nearest
from reconciler.config.rules import DESTINATIONS, SOURCES
from reconciler.config.settings import Settings
from reconciler.config.words import NAME_ALLOWED, Wrong

Model = TypeVar("Model")
_SHOWN_OF_CONNECTIONS = {"connector", "path", "schema", "max_runs"}
_KINDS = {
    "string_type": "a string",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "tuple_type": "a list",
}
ONLY_IN_STREAM = models.StreamTable.model_fields.keys() - models.StreamKeys.model_fields.keys()
ONLY_IN_PIPELINE = models.PipelineTable.model_fields.keys() - models.RunKeys.model_fields.keys()
CONNECTION: TypeAdapter[models.AnyConnection] = TypeAdapter(models.ConnectionTable)
PIPELINE = TypeAdapter(models.PipelineTable)


def checked(
    adapter: TypeAdapter[Model], raw: object, document: Document, at: KeyPath, base: Path
) -> Model | None:
    """``raw`` as its model; None when problems were noted in ``document``."""
    try:
        return adapter.validate_python(raw, context=base)
    except ValidationError as error:
        note(error, document, at)
        return None


def note(error: ValidationError, document: Document, at: KeyPath) -> list[KeyPath]:
    """Turn what pydantic found in the table ``at`` into problems; returns the keys at fault."""
    paths: list[KeyPath] = []
    for detail in error.errors(include_url=False):
        path = at + _keys(detail["loc"], at)
        if detail["type"].startswith("union_tag_"):
            path += ("connector",)
        paths.append(path)
        document.add(path, **_sentence(detail, path, document))
    return paths


def _keys(loc: tuple[int | str, ...], at: KeyPath) -> KeyPath:
    keys = [str(part) for part in loc if part != "[key]"]
    if at[:1] == ("connections",) and len(at) == 2 and keys and keys[0] in SOURCES + DESTINATIONS:
        keys = keys[1:]  # Which kind of connection was looked at is no key of the file.
    return tuple(keys)


def _sentence(detail: Mapping[str, Any], path: KeyPath, document: Document) -> dict[str, str]:
    kind, context = detail["type"], detail.get("ctx", {})
    if (wrong := context.get("error")) is not None and isinstance(wrong, Wrong):
        found = "" if wrong.secret or _hidden(path) else shown(detail["input"])
        return {
            "message": wrong.message,
            "found": found,
            "allowed": wrong.allowed,
            "hint": wrong.hint,
        }
    if kind == "extra_forbidden":
        return _unknown(path, document, detail["input"])
    if kind == "missing":
        return {"message": "is missing", "hint": _description(path)}
    if kind == "union_tag_not_found":
        return {"message": "is missing", "allowed": _connectors()}
    found = "" if _hidden(path) else shown(detail["input"])
    return {"found": found} | _plain(kind, context, detail)


def _hidden(path: KeyPath) -> bool:
    """Whether a secret may stand there, be it by a slip."""
    return path[-1] == "catalog" or (
        path[0] == "connections" and path[-1] not in _SHOWN_OF_CONNECTIONS
    )


def _plain(kind: str, context: Mapping[str, Any], detail: Mapping[str, Any]) -> dict[str, str]:
    if kind == "union_tag_invalid":
        tag = str(context["tag"])
        hint = nearest(tag, SOURCES + DESTINATIONS)
        return {
            "message": "names no connector",
            "found": shown(tag),
            "allowed": _connectors(),
            "hint": hint,
        }
    if kind == "literal_error":
        allowed = str(context["expected"]).replace("'", '"')
        words = [w.strip('"') for w in allowed.replace(" or ", ", ").split(", ")]
        given = detail["input"]
        hint = nearest(given, words) if isinstance(given, str) else ""
        return {"message": "has no such choice", "allowed": allowed, "hint": hint}
    if kind == "string_pattern_mismatch":
        return {"message": "is no name that can be given", "allowed": NAME_ALLOWED}
    if kind == "string_too_short":
        return {"message": "is empty"}
    limits = {"greater_than_equal": ("ge", "or more"), "less_than_equal": ("le", "or less")}
    if kind in limits:
        name, words_after = limits[kind]
        return {"message": "is out of range", "allowed": f"{context[name]} {words_after}"}
    return {"message": "has the wrong type", "allowed": _KINDS.get(kind, str(detail["msg"]))}


def shown(value: object) -> str:
    """A value as TOML would show it, cut when it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if len(value) > 8 else _list(value)
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 80 else text[:77] + '..."'


def _list(values: list[Any] | tuple[Any, ...]) -> str:
    return "[" + ", ".join(shown(v) for v in values) + "]"


def _connectors() -> str:
    return f"sources {', '.join(SOURCES)}; destinations {', '.join(DESTINATIONS)}"


_CONNECTIONS: dict[str, type[BaseModel]] = {
    "sql": models.SqlConnection,
    "files": models.FilesConnection,
    "history": models.HistoryConnection,
    "duckdb": models.DuckdbConnection,
    "parquet": models.ParquetConnection,
}
_TABLES: dict[str, type[BaseModel]] = {
    "daemon": models.DaemonTable,
    "retention": models.RetentionTable,
    "defaults": models.DefaultsTable,
    "format": models.FormatTable,
    "schema_changes": models.SchemaChangesTable,
}


def _model_at(path: KeyPath, document: Document) -> type[BaseModel] | None:
    """The model of the table ``path``, as far as its own kind is known."""
    match path:
        case ():
            return Settings
        case ("connections", name):
            connector = document.values["connections"][name].get("connector")
            return _CONNECTIONS.get(str(connector))
        case ("pipelines", _):
            return models.PipelineTable
        case ("pipelines", _, "streams", _):
            return models.StreamTable
        case _:
            return _TABLES.get(path[-1])


def _fields(model: type[BaseModel] | None) -> dict[str, str]:
    if model is None:
        return {}
    return {f.alias or name: f.description or "" for name, f in model.model_fields.items()}


def _description(path: KeyPath) -> str:
    for model in (models.PipelineTable, models.SqlConnection, models.FilesConnection):
        if text := _fields(model).get(path[-1]):
            return text[0].lower() + text[1:].rstrip(".")
    return "name of the project" if path == ("project",) else ""


def _unknown(path: KeyPath, document: Document, value: object) -> dict[str, str]:
    """An unknown key. Its value is not shown: it may be a secret under a mistyped name."""
    key, known = path[-1], _fields(_model_at(path[:-1], document))
    hint = nearest(key, known)
    if path[0] in {"pipelines", "defaults"}:
        if key in ONLY_IN_STREAM and len(path) <= 3:
            hint = "it stands in a stream: [pipelines.NAME.streams.STREAM]"
        elif len(path) == 5 and path[2] == "streams" and isinstance(value, dict):
            whole = dotted((*path[:3], f"{path[3]}.{key}"))
            hint = f"a stream's name that has a dot is quoted: [{whole}]"
        elif key in ONLY_IN_PIPELINE:
            hint = "it stands in the pipeline itself: [pipelines.NAME]"
        elif key == "deletes":
            hint = "reserved: deletes are not read yet"
        elif key in models.RunKeys.model_fields and key not in known:
            hint = "it stands in the pipeline, or in [defaults]"
    if path[0] == "connections":
        connector = document.values["connections"][path[1]].get("connector")
        message = f"is no option of the {connector} connector"
    else:
        message = "unknown key"
    return {"message": message, "allowed": listed(known), "hint": hint}


Check = Callable[[], Any]


def attempt(document: Document, path: KeyPath, check: Check, found: object = None) -> Any:
    """What ``check`` returns; None, and a problem of ``path``, when it raises ``Wrong``."""
    try:
        return check()
    except Wrong as wrong:
        visible = shown(found) if found is not None and not wrong.secret else ""
        document.add(path, wrong.message, found=visible, allowed=wrong.allowed, hint=wrong.hint)
        return None
