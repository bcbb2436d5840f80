"""An edited config is taken up, however its file came to be where it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from catalog.clock import SystemClock
from reconciler.config import load
from reconciler.config.desired import Project
from reconciler.daemon import reload
from reconciler.daemon.reload import Reloader
from reconciler.telemetry.metrics import Metrics
from tests.patience import PATIENCE

_CONFIG = """
project = "test"
[daemon]
max_runs = {}
"""


class _Watched:
    """A config that was read with ``max_runs = 3``, and what was taken up since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text(_CONFIG.format(3))
        self.read_ns = time.time_ns()
        self.project = load(path)
        self.adopted = anyio.Event()
        self.max_runs = 0

    async def adopt(self, project: Project) -> None:
        self.max_runs = project.daemon.max_runs
        self.adopted.set()

    def reloader(self) -> Reloader:
        return Reloader(
            *(self.path, self.project, self.adopt, SystemClock(), Metrics("0")), self.read_ns
        )


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Watched:
    monkeypatch.setattr(reload, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(reload, "load_apart", load)
    return _Watched(tmp_path / "config.toml")


def _in_place(path: Path) -> None:
    path.write_text(_CONFIG.format(5))


def _made_anew(path: Path) -> None:
    path.unlink()
    path.write_text(_CONFIG.format(5))  # often with the inode of the one removed


def _moved_in(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text(_CONFIG.format(5))
    fresh.rename(path)


_EDITS = pytest.mark.parametrize("edit", [_in_place, _made_anew, _moved_in])


@_EDITS
@pytest.mark.anyio
async def test_an_edit_that_keeps_the_time_of_the_content_is_taken_up(
    config: _Watched, edit: Callable[[Path], None]
) -> None:
    was = config.path.stat()
    config.read_ns = time.time_ns() + 10**9
    reloader = config.reloader()
    edit(config.path)
    os.utime(config.path, ns=(was.st_atime_ns, was.st_mtime_ns))
    await _taken_up(config, reloader)


@_EDITS
@pytest.mark.anyio
async def test_an_edit_made_while_the_daemon_was_starting_is_taken_up(
    config: _Watched, edit: Callable[[Path], None]
) -> None:
    edit(config.path)
    await _taken_up(config, config.reloader())


@pytest.mark.anyio
async def test_a_config_that_was_rejected_for_want_of_a_secret_is_taken_up_once_that_is_there(
    config: _Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "REJECTED_EVERY", 0.01)
    secret = config.path.with_name("secret")
    reads, said = 0, ""

    def read(path: Path) -> Project:
        nonlocal reads, said
        reads += 1
        if reads == 2:
            said = reloader.rejected
            secret.write_text("hunter2")
        return load(path)

    monkeypatch.setattr(reload, "load_apart", read)
    config.path.write_text(
        _CONFIG.format(5) + '[connections.db]\nconnector = "sql"\n'
        'url = "postgresql://reader@db/shop"\npassword = "file:secret"\n'
    )
    reloader = config.reloader()
    await _taken_up(config, reloader)
    assert "secret cannot be read" in said
    assert reloader.rejected == ""


@pytest.mark.anyio
async def test_an_edit_is_read_once(config: _Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []

    def read(path: Path) -> Project:
        reads.append(path)
        return load(path)

    monkeypatch.setattr(reload, "load_apart", read)
    config.read_ns += 10**10  # nothing was edited while it was read
    reloader = config.reloader()
    times, looks = reloader._times, [0]

    def look() -> tuple[tuple[str, int, int, int, int], ...]:
        looks[0] += 1
        return times()

    monkeypatch.setattr(reloader, "_times", look)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reloader.watch)
            _moved_in(config.path)
            await config.adopted.wait()
            looks[0] = 0
            while looks[0] < 5:  # noqa: ASYNC110 - nobody is told of a look
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert reads == [config.path]


async def _taken_up(config: _Watched, reloader: Reloader) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reloader.watch)
        with anyio.fail_after(PATIENCE):
            await config.adopted.wait()
        tasks.cancel_scope.cancel()
    assert config.max_runs == 5
