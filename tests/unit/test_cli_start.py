"""init, discover's text, and check's answers that need no connection."""

from __future__ import annotations

import sqlite3
import tomllib
from pathlib import Path

import pytest

from reconciler.cli.main import main
from reconciler.cli.start import Kind
from reconciler.cli.templates import config_for, pipeline_for
from reconciler.config import load
from reconciler.connectors.ports import FoundStream
from reconciler.schema.model import Field, Schema


@pytest.mark.parametrize("kind", list(Kind))
def test_what_init_writes_is_a_good_config(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--kind", kind.value]) == 0
    said = capsys.readouterr().out.splitlines()
    typed = [line.split()[1] for line in said if line.startswith("  reconciler ")]
    discover = [] if kind is Kind.CSV else ["discover"]  # a folder has no streams of its own
    assert typed == [*discover, "check", "run"]
    project = load(tmp_path / "config.toml", {"SHOP_DB_PASSWORD": "x"})
    assert list(project.pipelines) == ["shop"]


def test_check_finds_all_mistakes_at_once_those_of_the_first_keys_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'projct = "x"\nstate_dir = 5\n[daemon]\nmax_runs = "8"\n[pipelines.p]\nmod = 1\n'
    )
    assert main(["check", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    for word in ('did you mean "project"', "state_dir", "daemon.max_runs", "pipelines.p.mod"):
        assert word in said


def test_a_reader_of_a_wrong_config_is_asked_for_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOP_DB_PASSWORD", raising=False)
    path = tmp_path / "config.toml"
    path.write_text(config_for("postgres").replace('project = "shop"', "project = 5"))
    assert main(["status", "--config", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_init_says_to_type_can_be_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my project" / "config.toml"
    path.parent.mkdir()
    assert main(["init", str(path)]) == 0
    assert f"reconciler check --config '{path}'" in capsys.readouterr().out


def test_init_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text("mine")
    assert main(["init", str(path)]) == 1
    assert main(["init", str(tmp_path)]) == 1
    assert path.read_text() == "mine"
    assert "left as it is" in capsys.readouterr().err


def test_init_dry_run_shows_the_text_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().out == config_for("sqlite")
    assert list(tmp_path.iterdir()) == []


def test_init_into_a_folder_that_is_not_there_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "no" / "config.toml")]) == 1
    assert "no such file or directory" in capsys.readouterr().err


FOUND = [
    FoundStream(
        "public.orders",
        Schema((Field("id", "int64"), Field("updated_at", "timestamp")), ("id",)),
        cursors=("updated_at", "id"),
        indexed=("updated_at",),
        rows=1234567,
    ),
    FoundStream("public.log", Schema((Field("at", "timestamp"),)), cursors=("at",)),
    FoundStream('odd "name"\n', Schema((Field("x", "text"),))),
]


def test_discovered_streams_are_toml_to_paste(tmp_path: Path) -> None:
    text = pipeline_for("shop_db", FOUND)
    pipeline = tomllib.loads(text)["pipelines"]["shop_db"]
    assert pipeline["source"] == "shop_db"
    streams = pipeline["streams"]
    assert list(streams) == [stream.name for stream in FOUND]
    assert streams["public.orders"] == {"cursor": ["updated_at"], "mode": "merge"}
    assert streams["public.log"] == {"cursor": ["at"], "mode": "append"}
    assert streams['odd "name"\n'] == {"mode": "replace"}
    assert "# about 1,234,567 rows" in text
    assert "updated_at (index), id" in text
    assert "new rows only" not in text


def test_of_many_candidates_the_first_are_named() -> None:
    wide = FoundStream("t", Schema(()), cursors=tuple(f"c{n}" for n in range(300)))
    text = pipeline_for("shop_db", [wide])
    assert "candidates: c0, c1, c2, c3, c4, c5, c6, c7, and 292 more\n" in text


def test_discover_says_that_a_key_as_cursor_shows_no_changes() -> None:
    numbered = FoundStream("t", Schema((Field("id", "int64"),), ("id",)), cursors=("id",))
    text = pipeline_for("shop_db", [numbered])
    assert "# new rows only, not those that change" in text
    assert tomllib.loads(text)["pipelines"]["shop_db"]["streams"]["t"]["cursor"] == ["id"]


def test_what_discover_prints_loads_once_a_destination_is_named(tmp_path: Path) -> None:
    pasted = pipeline_for("shop_db", FOUND[:2]).replace("DESTINATION", "warehouse")
    path = tmp_path / "config.toml"
    path.write_text(config_for("sqlite").partition("[pipelines")[0] + pasted)
    project = load(path, {})
    assert list(project.pipelines["shop_db"].streams) == ["public.orders", "public.log"]


def test_a_source_without_cursors_to_choose_is_pasted_without(tmp_path: Path) -> None:
    text = pipeline_for(
        "own", [FoundStream("runs", FOUND[0].schema, cursors=("id",))], cursors=False
    )
    assert "1 stream found" in text
    path = tmp_path / "config.toml"
    head = config_for("sqlite").partition("[pipelines")[0]
    own = '[connections.own]\nconnector = "history"\n'
    path.write_text(head + own + text.replace("DESTINATION", "warehouse"))
    assert list(load(path, {}).pipelines["own"].streams) == ["runs"]


CONNECTIONS = """
project = "shop"

[connections.nofile]
connector = "sql"
url = "sqlite:///nofile.db"

[connections.nofolder]
connector = "files"
path = "nofolder"

[connections.inbox]
connector = "files"
path = "."

[connections.dead]
connector = "sql"
url = "postgresql://reader@127.0.0.1:1/shop"
password = "env:SHOP_DB_PASSWORD"

[connections.warehouse]
connector = "duckdb"
path = "warehouse.duckdb"
"""
Out = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SHOP_DB_PASSWORD", "hunter2")
    path = tmp_path / "config.toml"
    path.write_text(CONNECTIONS)
    return str(path)


@pytest.mark.parametrize(
    ("connection", "code", "sentence"),
    [
        ("nofile", 1, "connection 'nofile': there is no file"),
        ("nofolder", 1, "connection 'nofolder': there is no folder"),
        ("inbox", 5, "inbox is a folder: it has no streams of its own"),
        ("dead", 1, "connection 'dead': connection to server at"),
        ("warehouse", 1, "connector 'duckdb' cannot be read from"),
        ("deda", 5, 'Did you mean "dead"?'),
    ],
)
def test_what_cannot_be_discovered_is_a_sentence(
    config: str, connection: str, code: int, sentence: str, capsys: Out
) -> None:
    assert main(["discover", connection, "--config", config]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert "hunter2" not in said.err
    assert "Traceback" not in said.err


def test_check_has_a_problem_for_each_connection_that_fails(config: str, capsys: Out) -> None:
    assert main(["check", "--config", config]) == 1
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if " problem " in line]
    assert [line.split()[0] for line in lines] == ["nofile", "nofolder", "dead"]
    assert said.out.endswith("\n3 problems found.\n")
    assert "hunter2" not in said.out + said.err


def test_check_says_that_a_selection_finds_nothing(tmp_path: Path, capsys: Out) -> None:
    sqlite3.connect(tmp_path / "shop.db").close()
    path = tmp_path / "config.toml"
    path.write_text(
        CONNECTIONS.partition("[connections.nofolder")[0].replace("nofile", "shop")
        + '[connections.warehouse]\nconnector = "duckdb"\npath = "warehouse.duckdb"\n'
        + '[pipelines.shop]\nsource = "shop"\ndestination = "warehouse"\nselect = ["sales_*"]\n'
    )
    assert main(["check", "--config", str(path)]) == 0
    assert "warning  no stream matches `select` (sales_*) yet" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["check"], ["discover", "dead"]])
def test_a_config_or_a_secret_that_is_missing_is_exit_code_2(
    command: list[str], config: str, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    assert main([*command, "--config", f"{config}.not"]) == 2
    assert "is not there" in capsys.readouterr().err
    monkeypatch.delenv("SHOP_DB_PASSWORD")
    assert main([*command, "--config", config]) == 2
    assert "environment variable SHOP_DB_PASSWORD is not set" in capsys.readouterr().err
