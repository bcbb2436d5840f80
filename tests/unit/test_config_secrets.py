"""Secrets: where they are found, what is said when they are not, and that they show nowhere."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest

from reconciler.config import ConfigError, changes, explain, load, locate, resolve_secret
from reconciler.config.desired import SecretRef

SECRET = "hunter2-correct-horse"
TEXT = """
project = "shop"

[connections.by_env]
connector = "sql"
url = "postgresql://reader@db/shop"
password = "env:SHOP_DB_PASSWORD"

[connections.by_file]
connector = "sql"
url = "postgresql://reader@db/shop"
password = "file:secrets/shop"

[connections.by_credential]
connector = "sql"
url = "postgresql://reader@db/shop"
password = "credential:shop"

[connections.warehouse]
connector = "duckdb"
path = "w.duckdb"

[pipelines.shop]
source = "by_env"
destination = "warehouse"
select = "*"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "shop").write_text(SECRET + "\n")
    return path


@pytest.fixture
def env(config: Path) -> dict[str, str]:
    return {"SHOP_DB_PASSWORD": SECRET, "CREDENTIALS_DIRECTORY": str(config.parent / "secrets")}


def test_a_secret_is_found_in_each_of_three_places(config: Path, env: dict[str, str]) -> None:
    connections = load(config, env).connections
    for name in ("by_env", "by_file", "by_credential"):
        assert resolve_secret(connections[name].secrets["password"], env) == SECRET


def test_a_secret_file_is_relative_to_the_config(config: Path, env: dict[str, str]) -> None:
    ref = load(config, env).connections["by_file"].secrets["password"]
    assert ref == SecretRef("file", str(config.parent / "secrets/shop"))


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"a b \n", "a b "), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"a", "a")],
)
def test_one_newline_at_the_end_is_left_off(tmp_path: Path, content: bytes, value: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    assert resolve_secret(SecretRef("file", str(path)), {}) == value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"hunter2\xff", "is not UTF-8 text"),
        (b"hunter2" * 10_000, "is larger than 64 KiB"),
    ],
)
def test_a_file_that_holds_no_secret_is_a_sentence(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        resolve_secret(SecretRef("file", str(path)), {})
    assert "hunter2" not in f"{caught.value!r}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        (SecretRef("env", "NOT_SET"), "environment variable NOT_SET is not set"),
        (SecretRef("env", "EMPTY"), "environment variable EMPTY is empty"),
        (SecretRef("file", "/no/such"), "/no/such cannot be read: no such file"),
        (SecretRef("file", "/"), "/ cannot be read: is a directory"),
        (SecretRef("credential", "x"), r"credential x: \$CREDENTIALS_DIRECTORY is not set"),
    ],
)
def test_a_secret_that_is_not_there_is_a_sentence(ref: SecretRef, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_secret(ref, {"EMPTY": ""})


def test_each_missing_secret_is_a_problem_of_its_line(config: Path) -> None:
    (config.parent / "secrets" / "shop").unlink()
    with pytest.raises(ConfigError) as caught:
        load(config, {})
    assert [(p.key, p.line) for p in caught.value.problems] == [
        ("connections.by_env.password", 7),
        ("connections.by_file.password", 12),
        ("connections.by_credential.password", 17),
    ]


def test_a_reader_that_connects_to_nothing_needs_no_secrets(config: Path) -> None:
    (config.parent / "secrets" / "shop").unlink()
    assert load(config, {}, secrets=False).name == "shop"
    assert explain(config, "shop", {}).pipeline == "shop"


def test_no_secret_is_in_anything_that_is_made_of_a_config(
    config: Path, env: dict[str, str]
) -> None:
    project = load(config, env)
    config.write_text(TEXT.replace("env:SHOP_DB_PASSWORD", "file:secrets/shop"))
    other = load(config, env)
    made = (project, explain(config, "shop", env), locate(config, env), changes(project, other))
    for thing in made:
        assert SECRET not in f"{thing!r}{thing}"
        assert SECRET.encode() not in pickle.dumps(thing)
    assert SECRET not in json.dumps(asdict(project), default=str)


@pytest.mark.parametrize(
    "line",
    [
        f'password = "{SECRET}"',
        f'password = "env:{SECRET}"',
        f'password = ["{SECRET}"]',
        f'password = {{ value = "{SECRET}" }}',
        f'pasword = "{SECRET}"',
        f'url = "postgresql://reader:{SECRET}@db/shop"',
        f'url = ["postgresql://reader:{SECRET}@db/shop"]',
        f'url = "postgresql://reader@db/shop?password={SECRET}"',
        f'url = "mysql://reader:{SECRET}@db/shop"',
    ],
)
def test_a_secret_that_was_written_down_is_refused_and_not_shown(tmp_path: Path, line: str) -> None:
    path = tmp_path / "config.toml"
    url = "" if line.startswith("url") else 'url = "postgresql://db/shop"\n'
    path.write_text(f'project = "shop"\n[connections.db]\nconnector = "sql"\n{url}{line}\n')
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    error = caught.value
    assert SECRET not in f"{error}{error!r}{error.problems}{error.__cause__}"
    assert str(path) in str(error)


@pytest.mark.parametrize(
    "text", ['connections = "{}"', 'connections.db = "{}"', 'catalog = "{}"', 'catalog = ["{}"]']
)
def test_a_url_in_the_wrong_place_is_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text('project = "shop"\n' + text.format(f"postgresql://me:{SECRET}@db/shop"))
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert SECRET not in f"{caught.value!r}{caught.value.problems}"


@pytest.mark.parametrize("key", ["PASSWORD", "URL", "PASSWROD"])
def test_a_secret_in_a_variable_is_refused_and_not_shown(
    config: Path, env: dict[str, str], key: str
) -> None:
    value = f"postgresql://reader:{SECRET}@db/shop"
    with pytest.raises(ConfigError) as caught:
        load(config, env | {f"RECONCILER_CONNECTIONS__BY_ENV__{key}": value})
    assert SECRET not in f"{caught.value!r}{caught.value.problems}"
    assert f"RECONCILER_CONNECTIONS__BY_ENV__{key}" in str(caught.value)
