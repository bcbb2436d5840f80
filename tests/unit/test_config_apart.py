"""The config loaded in a process of its own is the config, and its problems are the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.config import ConfigError, apart, load
from reconciler.config.apart import load_apart

_ROOT = Path(__file__).parents[2]


def test_a_project_loaded_apart_equals_one_loaded_here() -> None:
    example = _ROOT / "config.example.toml"
    assert load_apart(example) == load(example)


def test_problems_arrive_whole() -> None:
    wrong = _ROOT / "tests" / "config_bad" / "many_at_once.toml"
    with pytest.raises(ConfigError) as here:
        load(wrong)
    with pytest.raises(ConfigError) as apart:
        load_apart(wrong)
    assert apart.value.problems == here.value.problems


def test_the_daemon_never_loads_the_models_that_check_the_config() -> None:
    code = "import sys, reconciler.daemon.serve; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_child_that_dies_does_not_take_its_daemon_along(monkeypatch: pytest.MonkeyPatch) -> None:
    example = _ROOT / "config.example.toml"
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert load_apart(example) == load(example)


def test_a_child_that_cannot_be_started_does_not_take_its_daemon_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its interpreter may be gone, as while an upgrade puts another one there; or there are too
    many processes."""
    example = _ROOT / "config.example.toml"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert load_apart(example) == load(example)


def test_what_another_version_sends_is_not_taken_for_a_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that was installed while this process ran: the child is of the new version."""
    with_another_field = [*apart._layout(), ("Retention", ["keep"])]
    monkeypatch.setattr(apart, "_layout", lambda: with_another_field)
    with pytest.raises(ConfigError, match="another version of this program was installed"):
        load_apart(_ROOT / "config.example.toml")
