"""Environment variables that take the place of values in the file: ``RECONCILER_A__B__C``.

What a variable addresses is looked up in the JSON Schema of the file and in the names that the
file has, so there is one list of keys. The value of a variable is never shown.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from reconciler.config.document import Document, RawTable
from reconciler.config.positions import KeyPath, dotted
from reconciler.config.problems import Place, Problem, listed, nearest

PREFIX = "RECONCILER_"
RESERVED = ("RECONCILER_CONFIG", "RECONCILER_DEBUG", "RECONCILER_PORT")
"""Variables that are no part of the file's values."""
RESERVED_PREFIXES = (
    "RECONCILER_TEST_",
    # Kubernetes sets these in each pod next to a Service of the name "reconciler".
    "RECONCILER_SERVICE_",
    "RECONCILER_PORT_",
)

_OF_NAMES = ("connections", "pipelines", "streams")
"""Tables of tables: a variable makes no new entry of them."""

JsonSchema = dict[str, Any]


class Unaddressed(Exception):
    """The variable names nothing that the config has."""

    def __init__(self, message: str, *, allowed: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.allowed = allowed
        self.hint = hint


def candidates(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that have to address something, in order of name."""
    return {
        name: env[name]
        for name in sorted(env)
        if name.startswith(PREFIX)
        and name not in RESERVED
        and not name.startswith(RESERVED_PREFIXES)
    }


def variable_for(key: KeyPath, env: Mapping[str, str]) -> str | None:
    """The variable that sets ``key``, for keys that are no one's free names."""
    wanted = "__".join(key)
    for name in env:
        if name.startswith(PREFIX) and name[len(PREFIX) :].casefold() == wanted:
            return name
    return None


def include_patterns(variables: Mapping[str, str]) -> object:
    """What ``include`` is set to by a variable; None: by none. Needed before all else is read."""
    variable = variable_for(("include",), variables)
    if variable is None:
        return None
    try:
        return _decode(variables[variable], [{"type": "array"}])
    except Unaddressed:
        return ()  # Said when all variables are looked at.


def overrides(document: Document, variables: Mapping[str, str], schema: JsonSchema) -> RawTable:
    """The values that ``variables`` set, nested as in the file.

    Notes in ``document`` which keys they set, and as problems those that address nothing.
    """
    values: RawTable = {}
    for variable, text in variables.items():
        if f"env:{variable}" in _secret_names(document):
            continue
        try:
            path, kinds = _address(variable, document.values, schema)
            value = _decode(text, kinds)
        except Unaddressed as error:
            document.problems.append(
                Problem(
                    Place(variable=variable),
                    "",
                    error.message,
                    allowed=error.allowed,
                    hint=error.hint,
                )
            )
            continue
        if other := document.overrides.get(path):
            message = f"sets {dotted(path)}, as {other} does"
            document.problems.append(Problem(Place(variable=variable), "", message))
            continue
        document.overrides[path] = variable
        _set(values, path, value)
    return values


def _secret_names(document: Document) -> set[str]:
    """Variables that a connection's password names: they hold a secret and set no key."""
    connections = document.values.get("connections")
    if not isinstance(connections, dict):
        return set()
    tables = [c for c in connections.values() if isinstance(c, dict)]
    return {c["password"] for c in tables if isinstance(c.get("password"), str)}


def _set(values: RawTable, path: KeyPath, value: object) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            return  # A variable for the whole table is there already, and is no table.
        values = inner
    values[path[-1]] = value


def canonical(name: str) -> str:
    """A name as a variable can spell it: capitals and small letters alike, odd characters ``_``."""
    return re.sub(r"[^a-z0-9]", "_", name.casefold())


def _address(variable: str, values: object, root: JsonSchema) -> tuple[KeyPath, list[JsonSchema]]:
    """The key that a variable means, and the schemas its value may have."""
    rest = variable.removeprefix(PREFIX).casefold()
    path: KeyPath = ()
    schemas = [root]
    while rest:
        properties, free = _tables(schemas, root)
        named = values if isinstance(values, dict) else {}
        name, rest = _first(rest, path, properties, named if free else {})
        schemas = properties.get(name, free)
        schemas = _expand(schemas, root)
        values = named.get(name)
        path += (name,)
    if not path:
        raise Unaddressed("names no key")
    if path[-1] in _OF_NAMES:
        raise Unaddressed(
            f"sets all of {dotted(path)} at once", hint="set keys of one of them, by its name"
        )
    return path, schemas


def _expand(schemas: list[JsonSchema], root: JsonSchema) -> list[JsonSchema]:
    """Every schema that a value may have: references followed, alternatives laid flat."""
    flat: list[JsonSchema] = []
    for schema in schemas:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            flat += _expand([root["$defs"][name]], root)
        elif "anyOf" in schema or "oneOf" in schema:
            flat += _expand(schema.get("anyOf") or schema["oneOf"], root)
        else:
            flat.append(schema)
    return flat


def _tables(
    schemas: list[JsonSchema], root: JsonSchema
) -> tuple[dict[str, list[JsonSchema]], list[JsonSchema]]:
    """Keys that these schemas know, and the schemas of the entries of free name."""
    properties: dict[str, list[JsonSchema]] = {}
    free: list[JsonSchema] = []
    for schema in _expand(schemas, root):
        for name, inner in schema.get("properties", {}).items():
            properties.setdefault(name, []).append(inner)
        free += schema.get("patternProperties", {}).values()
        if isinstance(schema.get("additionalProperties"), dict):
            free.append(schema["additionalProperties"])
    return properties, free


def _first(
    rest: str, path: KeyPath, properties: Mapping[str, object], named: Mapping[str, object]
) -> tuple[str, str]:
    """The key or name that ``rest`` begins with (the longest of them), and what follows it."""
    fits: dict[str, list[str]] = {}
    for name in {*properties, *named}:
        spelled = canonical(name)
        if rest == spelled or rest.startswith(spelled + "__"):
            fits.setdefault(spelled, []).append(name)
    if not fits:
        known = [canonical(name).upper() for name in {*properties, *named}]
        where = dotted(path) or "the config"
        word = rest.partition("__")[0]
        raise Unaddressed(
            f'addresses nothing: {where} has no "{word}"',
            allowed=listed(known),
            hint=nearest(word, known) or "a variable sets keys of tables that the file names",
        )
    longest = max(fits, key=len)
    if len(fits[longest]) > 1:
        both = " and ".join(sorted(fits[longest]))
        raise Unaddressed(
            f"may mean more than one: {both}", hint="set the value in the file instead"
        )
    return fits[longest][0], rest[len(longest) + 2 :]


def _decode(text: str, schemas: list[JsonSchema]) -> object:
    """The text of a variable as a value of the kind that its key has."""
    kinds = {schema.get("type", "string") for schema in schemas}
    if ("array" in kinds and text.startswith("[")) or ("object" in kinds and text.startswith("{")):
        return _toml(text)
    if kinds & {"integer", "number"} and re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if "boolean" in kinds and text in {"true", "false"}:
        return text == "true"
    return text


def _toml(text: str) -> object:
    try:
        values = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        values = {}
    if values.keys() != {"value"}:
        raise Unaddressed("holds no TOML value", allowed='such as ["a", "b"] or { added = "hold" }')
    return values["value"]
