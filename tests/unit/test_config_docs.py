"""docs/configuration.md and config.example.toml say what the code does."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from reconciler.config import ConfigError, json_schema, load, words
from reconciler.config.desired import (
    Daemon,
    FileFormat,
    Pipeline,
    RetentionSettings,
    SchemaPolicy,
    StreamSettings,
)

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "configuration.md").read_text()


def schema_keys(schema: object) -> set[str]:
    found: set[str] = set()
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            found |= set(schema["properties"])
        for inner in schema.values():
            found |= schema_keys(inner)
    elif isinstance(schema, list):
        for inner in schema:
            found |= schema_keys(inner)
    return found


@pytest.mark.parametrize("key", sorted(schema_keys(json_schema())))
def test_every_key_is_documented(key: str) -> None:
    assert re.search(rf"^\|( `\w+` \|)?[^|]*`{key}`", TEXT, re.MULTILINE)


def rows(section: str) -> dict[str, tuple[str, str]]:
    """Key to default and example, of the table under a heading."""
    body = re.split(r"^#+ ", TEXT.partition(f"{section}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \| .* \| `(.*)` \|$", body, re.MULTILINE)
    return {key: (default, example) for key, default, example in found}


def literal(default: str) -> object:
    """A default as the docs write it, as the records hold it."""
    value = tomllib.loads(f"value = {default.strip('`')}")["value"]
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and re.fullmatch(words.DURATION, value):
        return words.duration(value)
    return value


@pytest.mark.parametrize(
    ("section", "record"),
    [
        ("## `[daemon]`", Daemon),
        ("## `[retention]`", RetentionSettings),
        ("## `[pipelines.NAME]`", Pipeline),
        ("## Streams", StreamSettings),
        ("### `format`", FileFormat),
        ("### `schema_changes`", SchemaPolicy),
    ],
)
def test_a_default_in_the_docs_is_the_default(section: str, record: type) -> None:
    defaults = {f.name: f.default for f in fields(record)}
    compared = 0
    for key, (default, _) in rows(section).items():
        if re.fullmatch(r"`(\"[^`]*\"|'[^`]*'|\d+|true|false|\[[^`]*\])`", default):
            if key == "timezone":
                continue  # part of a schedule, not of the pipeline's record
            assert literal(default) == defaults[key], key
            compared += 1
    assert compared


@pytest.mark.parametrize(
    "example", sorted(set(re.findall(r"\| `(\w+ = [^|]*)` \|$", TEXT, re.MULTILINE)))
)
def test_an_example_in_the_docs_is_toml(example: str) -> None:
    tomllib.loads(example)


def test_the_example_file_is_a_config() -> None:
    path = ROOT / "config.example.toml"
    try:
        project = load(path, {}, secrets=False)
    except ConfigError as error:
        pytest.fail(str(error))
    assert project.pipelines
