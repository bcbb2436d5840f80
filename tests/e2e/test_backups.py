"""A catalog backed up and restored under real runs and daemons: equality again (A1, B2, B5).

The rest of destinations, sources and choices: ``pytest -m slow tests/e2e/test_backups.py``.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli.main import main
from tests.crash.test_kill_points import _PARQUET
from tests.crash.test_stale_holder import _gone, _stopped, _workers
from tests.e2e.test_holds import _REWIND, Project, _copy, _quick, _remove
from tests.e2e.world import eventually


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Project]:
    project = Project(tmp_path, capsys)
    yield project
    project.close()


def _backup(project: Project) -> str:
    path = project.folder / "backup.db"
    project.do("catalog", "backup", str(path))
    return str(path)


def _restore(project: Project, backup: str, code: int = 0) -> dict[str, Any]:
    said = project.do("catalog", "restore", backup, "--json", code=code)
    return dict(json.loads(said)["restored"]) if code == 0 else {"said": said}


def _epochs(project: Project) -> list[int]:
    return [run["id"] for run in json.loads(project.do("runs", "--json"))]


def _later(project: Project) -> None:
    """Later rows arrive once."""
    project.add(500, 510)
    project.do("run", "p")
    assert project.equal()
    assert "No damage" in project.do("catalog", "check")


_CHOICES = [
    (destination, choice)
    for destination in ("duckdb", "parquet")
    for choice in ("refresh", "cursor adopt", _REWIND)
    if (destination, choice) != ("parquet", "cursor adopt")  # is not offered: rows are appended
]


@_quick("destination, choice", _CHOICES, [])
def test_what_is_ahead_of_a_restored_catalog_is_held_and_each_choice_works(
    project: Project, destination: str, choice: str
) -> None:
    """The lost timeline left a batch behind that was sealed and committed, and not published."""
    project.loads_into(destination)
    project.add(0, 50)
    project.do("run", "p")
    backup = _backup(project)
    for first in (50, 100):
        project.add(first, first + 50)
        project.do("run", "p")
    project.add(150, 200)
    project.cli("run", "p", code=1, RECONCILER_TEST_KILL_AT="worker.committed")
    assert [*project.folder.rglob("*.staged")]
    lost = max(_epochs(project))
    _restore(project, backup)
    hold = project.held()
    assert (hold["kind"], choice in hold["choices"]) == ("destination", True)
    project.answer(choice)
    assert project.equal()
    assert not [*project.folder.rglob("*.staged")], "what the lost catalog staged is discarded"
    assert lost < 10**9 < min(set(_epochs(project)) - {1})
    _later(project)


@_quick("destination", ["duckdb", "parquet"], [])
def test_a_batch_that_waits_in_the_backup_and_was_published_since_is_there_once(
    project: Project, destination: str
) -> None:
    project.loads_into(destination)
    project.add(0, 50)
    project.cli("run", "p", code=1, RECONCILER_TEST_KILL_AT="worker.committed")
    backup = _backup(project)
    project.do("run", "p")
    assert project.equal()
    _restore(project, backup)
    project.do("run", "p")
    assert project.equal()
    _later(project)


@pytest.mark.slow
def test_a_batch_sealed_by_the_lost_catalog_is_not_taken_for_the_new_ones(
    project: Project,
) -> None:
    """Its destination is not ahead, so that nothing is held: the rows are read again, once."""
    project.loads_into("parquet")
    project.add(0, 50)
    project.do("run", "p")
    backup = _backup(project)
    project.add(50, 100)
    project.cli("run", "p", code=1, RECONCILER_TEST_KILL_AT="worker.committed")
    (staged,) = project.folder.rglob("sealed.json")
    _restore(project, backup)
    project.do("run", "p")
    assert project.equal()
    assert not staged.exists()
    _later(project)


_POINTS = ("before_seal", "sealed", "committed", "before_publish", "published")


def _settle(project: Project, chance: random.Random) -> None:
    """Run, and answer each hold with any of its choices, until a run is content."""
    for _ in range(6):
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = main(["--config", str(project.config), "run", "p"])
        assert code in (0, 3), said.getvalue()
        if code == 0:
            return
        (hold,) = json.loads(project.do("why", "p.orders", "--json"))["held"]
        verb, *options = chance.choice(hold["choices"]).split(" --")
        project.do(*verb.split(), "p.orders", *(f"--{option}" for option in options))
    raise AssertionError("no run is ever content")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("RECONCILER_TEST_EXAMPLES", "4"))))
def test_after_any_story_of_runs_kills_backups_and_restores_each_row_is_there_once(
    project: Project, seed: int
) -> None:
    chance = random.Random(seed)
    project.loads_into("parquet" if seed % 2 else "duckdb")
    backups: list[str] = []
    epochs = [0]
    project.add(0, 10)
    _settle(project, chance)
    for first in range(10, 160, 10):
        match chance.choice(("add", "run", "kill", "kill", "backup", "restore", "restore")):
            case "add":
                project.add(first, first + 10)
            case "kill":
                project.add(first, first + 10)
                point = f"worker.{chance.choice(_POINTS)}"
                project.cli("run", "p", code=None, RECONCILER_TEST_KILL_AT=point)
            case "backup":
                backups.append(str(project.folder / f"backup{first}.db"))
                project.do("catalog", "backup", backups[-1])
            case "restore" if backups:
                epochs += _epochs(project)
                assert _restore(project, chance.choice(backups))["epoch"] > max(epochs)
            case _:
                _settle(project, chance)
    project.add(200, 210)
    _settle(project, chance)
    assert project.equal()
    assert not [*project.folder.rglob("*.staged")]
    _later(project)


_FILES = (
    _PARQUET.replace(
        'connector = "sql"\nurl = "sqlite:///source.db"', 'connector = "files"\npath = "inbox"'
    ).replace('cursor = ["updated_at"]\n', "")
    + 'path = "*.csv"\ncolumns = { id = "int64" }\n'
)


class Inbox(Project):
    """Its rows come in files."""

    def add(self, first: int, last: int, name: str = "") -> None:
        (self.folder / "inbox").mkdir(exist_ok=True)
        rows = "".join(f"{n},row {n}\n" for n in range(first, last))
        (self.folder / "inbox" / f"{first}.csv").write_text(f"id,name\n{rows}")

    def loads_files(self, destination: str, mode: str) -> None:
        self.destination = destination
        text = _FILES.replace('mode = "append"', f'mode = "{mode}"')
        if mode == "merge":
            text += 'key = ["id"]\n'
        if destination == "duckdb":
            text = text.replace('"parquet"\npath = "lake"', '"duckdb"\npath = "out.duckdb"')
        self.write_config(text)


@pytest.fixture
def inbox(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Inbox]:
    inbox = Inbox(tmp_path, capsys)
    yield inbox
    inbox.close()


_OF_FILES = [
    ("parquet", "append", "refresh"),
    ("duckdb", "append", "refresh"),
    *(("duckdb", "merge", choice) for choice in ("refresh", "cursor adopt", _REWIND)),
]


@_quick("destination, mode, choice", _OF_FILES, [])
def test_files_whose_ledger_was_put_back_are_held_and_each_choice_works(
    inbox: Inbox, destination: str, mode: str, choice: str
) -> None:
    inbox.loads_files(destination, mode)
    inbox.add(0, 10)
    inbox.do("run", "p")
    backup = _backup(inbox)
    inbox.add(10, 20)
    inbox.do("run", "p")
    _restore(inbox, backup)
    offered = {wanted for where, how, wanted in _OF_FILES if (where, how) == (destination, mode)}
    assert set(inbox.held()["choices"]) == offered
    inbox.answer(choice)
    inbox.add(20, 30)
    inbox.do("run", "p")
    assert inbox.rows() == [(n, f"row {n}") for n in range(30)]


@_quick(
    "destination, mode, choices",
    [
        ("parquet", "append", ["refresh"]),
        ("duckdb", "merge", [_REWIND, "refresh", "cursor adopt"]),
    ],
    [("duckdb", "merge", [_REWIND, "refresh", "cursor adopt"])],
)
def test_files_that_the_lost_catalog_read_are_not_taken_for_those_that_this_one_did(
    inbox: Inbox, destination: str, mode: str, choices: list[str]
) -> None:
    """A catalog and its destination are restored together, and later the destination to what it
    was before: its second batch is not the catalog's second one."""
    inbox.loads_files(destination, mode)
    inbox.add(0, 10)
    inbox.do("run", "p")
    backup = _backup(inbox)
    kept = {name: inbox.folder / name for name in ("old", "lost")}
    for folder in kept.values():
        folder.mkdir()
    _copy(inbox.there(), kept["old"])
    inbox.add(10, 20)
    inbox.do("run", "p")
    _copy(inbox.there(), kept["lost"])
    _restore(inbox, backup)
    _remove(inbox.there())
    _copy(kept["old"] / inbox.there().name, inbox.folder)
    for first in (20, 30):
        inbox.add(first, first + 10)
        inbox.do("run", "p")
    _remove(inbox.there())
    _copy(kept["lost"] / inbox.there().name, inbox.folder)
    assert inbox.held()["choices"] == choices
    inbox.answer(choices[0])
    assert inbox.rows() == [(n, f"row {n}") for n in range(40)]


# -- with a daemon -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_daemon_goes_on_while_it_is_backed_up_and_its_backups_are_whole(
    project: Project,
) -> None:
    """Backups of a catalog that is busy, each put in the place of another project's."""
    project.loads_into("parquet", lambda text: text.replace("every 1s", "every 100ms"))
    project.add(0, 10)
    daemon = project.start()
    daemon.finished("p", "succeeded")
    epochs = []
    for number in range(3):
        path = project.folder / f"backup{number}.db"
        said = project.do("catalog", "backup", str(path), "--json")
        epochs.append(json.loads(said)["backup"]["epoch"])
        seen = len(daemon.events)
        other = _elsewhere(project, number)
        _restore(other, str(path))
        assert max(_epochs(other)) == epochs[-1]
        assert "No damage" in other.do("catalog", "check")
        project.add(100 * (number + 1), 100 * (number + 1) + 10)
        daemon.finished("p", "succeeded", after=seen)
    assert epochs == sorted({*epochs})
    refused = _restore(project, str(path), code=4)
    assert "daemon-" in refused["said"]
    assert daemon.stop() == 0


def _elsewhere(project: Project, number: int) -> Project:
    """A project of the same name on a machine without a catalog."""
    folder = project.folder / f"elsewhere{number}"
    folder.mkdir()
    other = Project(folder, project._capsys)
    other.loads_into("parquet")
    return other


@_quick("destination", ["duckdb", "parquet"], ["parquet"])
def test_a_daemon_of_the_lost_catalog_that_wakes_up_writes_nothing_into_the_restored_one(
    project: Project, destination: str
) -> None:
    """Its state directory was lost under it while it slept, before its commit."""
    project.loads_into(destination)
    project.add(0, 50)
    project.do("run", "p")
    backup = _backup(project)
    project.add(50, 100)
    sleeper = project.start(RECONCILER_TEST_PAUSE_AT="daemon.before_commit")
    pid = sleeper.process.pid
    eventually(lambda: _stopped(pid), "the daemon stops before its commit")
    assert "daemon-" in _restore(project, backup, code=4)["said"], "it still has the catalog"
    workers = _workers(pid)
    state = project.folder / "state"
    state.rename(project.folder / "lost")
    _restore(project, backup)
    project.do("run", "p")
    assert project.equal()
    before = _epochs(project)
    seen = len(sleeper.events)
    os.kill(pid, signal.SIGCONT)
    sleeper.wait_for(
        "catalog_unavailable", lambda e: "was replaced or removed" in str(e), after=seen
    )
    sleeper.kill()
    eventually(lambda: all(map(_gone, workers)), "its workers end")
    assert _epochs(project) == before
    assert project.equal()
    _later(project)


@pytest.mark.slow
def test_a_worker_of_the_lost_catalog_that_wakes_up_publishes_nothing(project: Project) -> None:
    """It slept with a batch that the lost catalog had committed, and has a long lease."""
    project.loads_into("parquet")
    project.add(0, 50)
    project.do("run", "p")
    backup = _backup(project)
    project.add(50, 100)
    daemon = project.start(RECONCILER_TEST_PAUSE_AT="worker.before_publish")
    pid = daemon.process.pid
    eventually(lambda: any(map(_stopped, _workers(pid))), "the worker stops before it publishes")
    (worker,) = filter(_stopped, _workers(pid))
    project.folder.joinpath("state").rename(project.folder / "lost")
    _restore(project, backup)
    project.do("run", "p")
    assert project.equal()
    seen = len(daemon.events)
    os.kill(worker, signal.SIGCONT)
    daemon.wait_for("catalog_unavailable", after=seen)  # the run is over, and cannot be recorded
    daemon.kill()
    eventually(lambda: _gone(worker), "it ends with its daemon")
    assert project.equal()
    _later(project)
