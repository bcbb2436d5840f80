"""The entry of the command line: dispatch, usage errors, and what becomes of errors."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli import grammar, main
from reconciler.cli.failure import Exit, describe
from reconciler.cli.templates import config_for
from tests.cli_kit import Shop, make_shop
from tests.patience import PATIENCE

VERBS = (
    *("init", "discover", "check", "run", "serve"),
    *("status", "why", "plan", "runs", "show", "logs", "leases"),
    *("pause", "resume", "cancel", "retry", "approve", "reject", "refresh", "schema", "bench"),
    *("cursor", "cursor get", "cursor set", "cursor adopt", "cursor rewind"),
    *("config", "config show", "config schema", "catalog", "catalog check"),
)


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    return make_shop(tmp_path, capsys)


def test_what_another_user_owns_is_said_to_be_theirs(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "state" / "c.db"))
    found = describe(error)
    assert found is not None
    assert str(found) == f"{tmp_path}/state/c.db: permission denied."
    assert f"belongs to {tmp_path.owner()}" in found.hint


def test_what_the_system_refuses_is_said_in_its_words(shop: Shop) -> None:
    assert main.main(["status", "--config", "x" * 300]) == Exit.FAILED
    assert shop.capsys.readouterr().err == f"reconciler: {'x' * 300}: file name too long.\n"
    found = describe(OSError(errno.ENOSPC, "No space left on device"))
    assert str(found) == "Input or output failed: no space left on device."


def test_typing_nothing_shows_five_next_things(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RECONCILER_CONFIG", raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, step in ((empty, "reconciler init"), (tmp_path, "reconciler status")):
        monkeypatch.chdir(folder)
        assert main.main([]) == Exit.GOOD
        steps = shop.capsys.readouterr().out.splitlines()[1:]
        assert len(steps) == 5
        assert steps[0].strip().startswith(step)


def test_the_version_is_told(shop: Shop) -> None:
    result = shop.cli("--version")
    assert result.code == Exit.GOOD
    assert re.fullmatch(r"reconciler [0-9.]+, Python 3\.[0-9.]+\S*\n", result.out)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_exit_codes(shop: Shop, verb: str) -> None:
    result = shop.cli(*verb.split(), "--help")
    assert result.code == Exit.GOOD
    if verb not in ("cursor", "config", "catalog"):
        assert f"Example: reconciler {verb}" in result.out
        assert "5 nothing matched" in " ".join(result.out.split())


@pytest.mark.parametrize(
    ("wrong", "right"), [("stauts", "status"), ("pasue", "pause"), ("cursro", "cursor")]
)
def test_a_wrong_verb_gets_the_nearest_right_word(shop: Shop, wrong: str, right: str) -> None:
    result = shop.cli(wrong)
    assert result.code == Exit.USAGE
    assert f"Did you mean '{right}'?" in result.err


@pytest.mark.parametrize(
    "args", [("pause",), ("status", "--nope"), ("runs", "--limit", "0"), ("cursor", "frob", "a.b")]
)
def test_a_usage_error_is_two_lines_and_code_2(shop: Shop, args: tuple[str, ...]) -> None:
    result = shop.cli(*args)
    assert result.code == Exit.USAGE
    assert result.err.startswith("reconciler: ")
    assert "--help" in result.err


@pytest.mark.parametrize("verb", ["pause", "why", "runs", "run", "show", "retry", "logs", "status"])
def test_a_wrong_pipeline_gets_the_nearest_right_name(shop: Shop, verb: str) -> None:
    result = shop.cli(verb, "shpo")
    assert result.code == Exit.NOTHING
    assert 'Did you mean "shop"?' in result.err


def test_a_mistake_in_the_config_is_named_with_code_2(shop: Shop) -> None:
    config = shop.folder / "config.toml"
    config.write_text(config.read_text().replace('schedule = "every 15m"', 'schedule = "often"'))
    result = shop.cli("plan")
    assert result.code == Exit.USAGE
    assert f"{config}:" in result.err
    assert '"often"' in result.err


def test_a_config_that_is_not_there_is_named_with_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["status", "--config", "/nowhere/config.toml"]) == Exit.USAGE
    assert "/nowhere/config.toml" in capsys.readouterr().err


def test_config_may_stand_before_or_after_the_verb(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(shop.folder / "config.toml")
    assert main.main(["--config", path, "config", "show"]) == Exit.GOOD
    before = capsys.readouterr().out
    assert main.main(["config", "show", "--config", path]) == Exit.GOOD
    assert capsys.readouterr().out == before
    assert main.main(["--config", "/nowhere", "config", "show", "--config", path]) == Exit.GOOD


def test_an_unforeseen_error_is_a_sentence(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> int:
        raise KeyError("odd")

    monkeypatch.setattr("reconciler.cli.start.welcome", broken)
    monkeypatch.delenv("RECONCILER_DEBUG", raising=False)
    assert main.main([]) == Exit.FAILED
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert "RECONCILER_DEBUG=1" in shown
    monkeypatch.setenv("RECONCILER_DEBUG", "1")
    assert main.main([]) == Exit.FAILED
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "plain"),
    [
        (["run", "shop"], ("shop", None, False)),
        (["run", "shop", "--json"], ("shop", None, True)),
        (["run", "--json", "shop.a.b", "--config", "x"], ("shop.a.b", Path("x"), True)),
        (["--config=x", "run", "shop"], ("shop", Path("x"), False)),
    ],
)
def test_a_plain_run_is_read_as_the_parser_would(
    args: list[str], plain: tuple[str, Path | None, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Path | None, bool]] = []

    def run_target(target: str, config: Path | None, *, as_json: bool) -> int:
        from reconciler.cli.desk import config_before_verb

        seen.append((target, config or config_before_verb.get(), as_json))
        return 0

    monkeypatch.setattr("reconciler.cli.running.run_target", run_target)
    assert main.plain_run(args) == plain
    assert main.main(args) == 0
    from reconciler.cli.app import invoke

    assert invoke(args) == 0
    assert seen == [plain, plain]


@pytest.mark.parametrize(
    "args",
    [
        *(["run"], ["run", "a", "b"], ["run", "a", "--dry-run"], ["run", "--help"], ["status"]),
        *(["run", "a", "--config"], ["--json", "run", "a"], ["run", "--", "a"]),
    ],
)
def test_anything_else_is_for_the_parser(args: list[str]) -> None:
    assert main.plain_run(args) is None


def test_a_reader_that_has_enough_ends_the_command_quietly() -> None:
    program = "from reconciler.cli.main import main; raise SystemExit(main(['config', 'schema']))"
    command = f'{sys.executable} -c "{program}" | head -c 10'
    shown = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert len(shown.stdout) == 10
    assert shown.stderr == ""


def test_the_help_lists_verbs_in_the_order_of_their_use() -> None:
    import reconciler.cli.app  # noqa: F401 - declares the verbs

    names = [command.name for command in grammar.app.registered_commands]
    assert names == [v for v in VERBS if " " not in v and v not in ("cursor", "config", "catalog")]


def test_a_plain_run_loads_neither_parser_nor_rich_nor_models() -> None:
    program = (
        "import sys; from reconciler.cli import main, running, waiting, progress; "
        "heavy = {'typer', 'rich', 'pydantic', 'structlog', 'prometheus_client', 'pyarrow', "
        "'duckdb', 'starlette'}; print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert shown.stdout == "[]\n"


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", ">&-"])
def test_what_would_be_printed_where_a_stream_is_closed_is_lost_and_nothing_else(
    shop: Shop, closed: str
) -> None:
    for args, code in ((("status",), Exit.GOOD), (("show", "1"), Exit.NOTHING)):
        config = ("--config", f"{shop.folder}/config.toml")
        command = shlex.join((sys.executable, "-m", "reconciler", *args, *config))
        done = subprocess.run(
            ["sh", "-c", f"exec {command} {closed}"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == code
        assert ("project shop" in done.stdout) == (closed == "2>&-" and code is Exit.GOOD)


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        # Python's own help against it left out: so it is in each locale of another encoding.
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "Bücher"),
        ({"PYTHONIOENCODING": "ascii"}, r"B\xfccher"),
    ],
)
def test_names_are_utf8_whatever_the_locale_says(
    tmp_path: Path, asked: dict[str, str], shown: str
) -> None:
    folder = tmp_path / "Bücher"
    (folder / "Eingang").mkdir(parents=True)
    text = config_for("csv").replace('path = "inbox"', 'path = "Eingang"')
    (folder / "config.toml").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "reconciler", "check"],
        cwd=folder,
        env=os.environ | asked,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (Exit.GOOD, "")
    assert f"{shown}/Eingang" in done.stdout
