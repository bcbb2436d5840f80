"""init, discover's text, and check's answers that need no connection."""

from __future__ import annotations

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
    assert len([line for line in said if line.startswith("  reconciler ")]) == 3
    project = load(tmp_path / "config.toml", {"SHOP_DB_PASSWORD": "x"})
    assert list(project.pipelines) == ["shop"]


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


def test_what_discover_prints_loads_once_a_destination_is_named(tmp_path: Path) -> None:
    pasted = pipeline_for("shop_db", FOUND[:2]).replace("DESTINATION", "warehouse")
    path = tmp_path / "config.toml"
    path.write_text(config_for("sqlite").partition("[pipelines")[0] + pasted)
    project = load(path, {})
    assert list(project.pipelines["shop_db"].streams) == ["public.orders", "public.log"]
