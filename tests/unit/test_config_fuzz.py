"""Whatever stands in the file: a project or a ``ConfigError`` with places, never a crash."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.config import ConfigError, Problem, json_schema, load, locate
from reconciler.config.positions import dotted

GOOD: dict[str, Any] = {
    "project": "shop",
    "state_dir": "state",
    "daemon": {"max_runs": 3, "listen": "127.0.0.1:1"},
    "defaults": {"retries": 2, "schema_changes": {"added": "hold"}},
    "retention": {"runs": "1d"},
    "connections": {
        "db": {"connector": "sql", "url": "sqlite:///x.db"},
        "in": {"connector": "files", "path": "in"},
        "out": {"connector": "duckdb", "path": "x.duckdb"},
        "lake": {"connector": "parquet", "path": "lake", "max_runs": 1},
    },
    "pipelines": {
        "a": {
            "source": "db",
            "destination": "out",
            "schedule": "every 1m",
            "select": ["*"],
            "streams": {"main.t": {"mode": "replace", "schema_changes": {"added": "add"}}},
        },
        "b": {
            "source": "in",
            "destination": "lake",
            "after": ["a"],
            "streams": {
                "s": {"path": "*.csv", "format": {"type": "csv"}, "columns": {"x": "text"}}
            },
        },
    },
}


def key_names(schema: object) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(key_names, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = set(schema["properties"]) if isinstance(schema.get("properties"), dict) else set()
    return own.union(*map(key_names, schema.values()))


TEXTS = ["", "*", "a", "every 1s", "0 0 * * *", "1h", "merge", "append", "replace", "reread", "db"]
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(TEXTS),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
KEYS = st.one_of(st.sampled_from(sorted(key_names(json_schema()))), st.text("ab.*", max_size=3))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


def tables(value: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [t for v in value.values() if isinstance(v, dict) for t in tables(v)]
    return [value, *inner]


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dotted((k,))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=True) if value.isascii() else quoted(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'


def refused(path: Path, env: dict[str, str]) -> tuple[Problem, ...]:
    """The problems; none: it was read. Any other exception is a fault."""
    try:
        load(path, env)
    except ConfigError as error:
        return error.problems
    return ()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_file_is_a_project_or_a_list_of_problems(data: st.DataObject) -> None:
    values = copy.deepcopy(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        found = tables(values)
        table = found[data.draw(st.integers(0, len(found) - 1))]
        key = data.draw(st.one_of(st.sampled_from(sorted(table) or ["x"]), KEYS))
        table[key] = data.draw(VALUES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text("".join(f"{dotted((k,))} = {toml(v)}\n" for k, v in values.items()))
        found_problems = refused(path, {})
        assert all(p.file == path and p.line >= 1 for p in found_problems)
        if not found_problems:
            assert locate(path, {}).catalog == load(path, {}).catalog


@settings(max_examples=100, deadline=None)
@given(KEYS, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_variable_is_a_value_or_a_problem(key: str, value: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text("".join(f"{dotted((k,))} = {toml(v)}\n" for k, v in GOOD.items()))
        for prefix in ("", "DAEMON__", "DEFAULTS__", "CONNECTIONS__DB__", "PIPELINES__B__"):
            variable = f"RECONCILER_{prefix}{key.upper()}"
            assert all(p.message for p in refused(path, {variable: value}))
