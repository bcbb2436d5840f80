"""An edited config is taken up, however its file came to be where it is."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import anyio
import pytest
from structlog.testing import capture_logs

from catalog.clock import SystemClock
from reconciler.config import ConfigError, Place, Problem, last_kept, load
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
        self.served = self.project
        self.metrics = Mock(spec=Metrics)
        self.looks = 0

    async def adopt(self, project: Project) -> None:
        self.max_runs, self.served = project.daemon.max_runs, project
        self.adopted.set()

    def reloader(self) -> Reloader:
        return Reloader(
            *(self.path, self.project, self.adopt, SystemClock(), self.metrics), self.read_ns
        )

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Reloader]:
        """Nothing was edited while it was read."""
        self.read_ns += 10**12
        reloader, times = self.reloader(), Reloader._times

        def look() -> tuple[tuple[str, int, int, int, int], ...]:
            self.looks += 1
            return times(reloader)

        with anyio.fail_after(PATIENCE), pytest.MonkeyPatch.context() as patch:
            patch.setattr(reloader, "_times", look)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(reloader.watch)
                yield reloader
                tasks.cancel_scope.cancel()

    async def looked(self, times: int = 5) -> None:
        until = self.looks + times
        while self.looks < until:  # noqa: ASYNC110 - nobody is told of a look
            await anyio.sleep(0.01)

    async def takes_up(self, max_runs: int, *connections: str) -> None:
        while self.max_runs != max_runs or self.served.connections.keys() != set(connections):
            self.adopted = anyio.Event()
            await self.adopted.wait()


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


def _moved_in(path: Path, text: str = _CONFIG.format(5)) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text(text)
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
    async with config.watched() as reloader:
        _moved_in(config.path)
        await config.takes_up(5)
        await config.looked()
        assert reads == [config.path]
        reloader.ask()
        await config.looked()
        assert len(reads) == 2, "asked for once, it is read once"


@pytest.mark.anyio
async def test_an_edit_made_while_the_one_before_is_read_is_taken_up(
    config: _Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> Project:
        found = load(path)
        if found.daemon.max_runs == 5:
            _moved_in(path, _CONFIG.format(7))
        return found

    monkeypatch.setattr(reload, "load_apart", read)
    async with config.watched():
        _moved_in(config.path)
        await config.takes_up(7)


_INCLUDES = 'include = ["more/**/*.toml"]\n' + _CONFIG.format(5)
_SQL = '[connections.{}]\nconnector = "sql"\nurl = "sqlite:///{}.db"\n'


@pytest.fixture
def more(config: _Watched) -> Path:
    """A file that the config includes."""
    config.path.write_text(_INCLUDES)
    more = config.path.with_name("more") / "a.toml"
    more.parent.mkdir()
    more.write_text(_SQL.format("a", "a"))
    config.project = config.served = load(config.path)
    return more


@pytest.mark.anyio
async def test_one_file_of_several_that_was_edited_while_the_daemon_was_starting_is_taken_up(
    config: _Watched, more: Path
) -> None:
    await anyio.sleep(0.1)
    config.read_ns = time.time_ns()
    await anyio.sleep(0.1)
    _moved_in(more, _SQL.format("b", "b"))
    os.utime(more, (0, 0))  # as what copies a file with its times does
    await _taken_up(config, config.reloader())


@pytest.mark.anyio
async def test_files_are_looked_at_now_and_then_and_at_once_when_asked(
    config: _Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "LOOK_EVERY", 3600)
    async with config.watched() as reloader:
        _moved_in(config.path)
        await anyio.sleep(0.05)
        assert config.looks == 0
        reloader.ask()
        await config.takes_up(5)


@pytest.mark.anyio
async def test_a_rejected_config_is_not_read_at_each_look(
    config: _Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "REJECTED_EVERY", 0.5)
    began = time.monotonic()
    async with config.watched():
        await anyio.sleep(0.6)
        _moved_in(config.path, "")
        await config.looked(20)
    reads = len(config.metrics.config_read.call_args_list)
    assert 1 <= reads <= 2 + (time.monotonic() - began) / 0.5


@pytest.mark.anyio
async def test_a_rejected_config_is_said_once_and_the_mended_one_taken_up(
    config: _Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    def read(path: Path) -> Project:
        nonlocal reads
        reads += 1
        if path.exists() and path.read_text() == "of the environment":
            raise ConfigError([Problem(Place(), "", "a variable is wrong")])
        return load(path)

    monkeypatch.setattr(reload, "load_apart", read)
    with capture_logs() as said:
        async with config.watched() as reloader:
            _moved_in(config.path, _CONFIG.format('"many"'))
            await config.looked()
            assert "max_runs" in reloader.rejected
            reloader.ask()
            await config.looked()
            _moved_in(config.path, "of the environment")
            await config.looked()
            assert "a variable is wrong" in reloader.rejected
            config.path.unlink()
            await config.looked()
            _moved_in(config.path)
            await config.takes_up(5)
            assert reloader.rejected == ""
    assert reads < 10, "what nobody edited is read again in half a minute, not at each look"
    rejected = [line["reason"] for line in said if line["event"] == "config_rejected"]
    assert len(rejected) == len(set(rejected)) == 3
    good = [call.args[0] for call in config.metrics.config_read.call_args_list]
    assert good == [False] * (reads - 1) + [True]


@pytest.mark.anyio
async def test_files_that_the_config_includes_are_watched_those_to_come_too(
    config: _Watched, more: Path
) -> None:
    async with config.watched() as reloader:
        _moved_in(more.with_name("b.toml"), _SQL.format("b", "b"))
        await config.takes_up(5, "a", "b")
        (config.path.parent / "other").mkdir()
        other = config.path.parent / "other" / "d.toml"
        _moved_in(other, "connector = 1")
        _moved_in(config.path, _INCLUDES.replace("more/**", "other"))
        await config.looked()
        assert "d.toml" in reloader.rejected
        _moved_in(other, _SQL.format("d", "d"))
        await config.takes_up(5, "d")
        _moved_in(config.path, _INCLUDES)
        await config.takes_up(5, "a", "b")
        _moved_in(more, _SQL.format("c", "c"))
        await config.takes_up(5, "b", "c")
        _moved_in(more, "connector = 1")
        await config.looked()
        assert "a.toml" in reloader.rejected
        os.unlink(more)  # noqa: PTH108
        await config.takes_up(5, "b")


_OTHER = """
project = "other"
state_dir = "elsewhere"
catalog = "sqlite:///elsewhere.db"
[daemon]
max_runs = 5
listen = "127.0.0.1:1"
lease_ttl = "1h"
"""


@pytest.mark.anyio
async def test_what_needs_a_restart_stays_and_is_said_and_the_rest_is_served_and_kept(
    config: _Watched,
) -> None:
    old = config.project
    old.state_dir.mkdir(exist_ok=True)
    with capture_logs() as said:
        async with config.watched():
            _moved_in(config.path, _OTHER)
            await config.takes_up(5)
    new = config.served
    assert (new.name, new.state_dir, new.catalog) == (old.name, old.state_dir, old.catalog)
    assert new.daemon.listen == old.daemon.listen
    assert new.daemon.lease_ttl == old.daemon.lease_ttl
    kept = last_kept(old.state_dir)
    assert kept is not None
    assert kept.daemon.max_runs == 5
    events = [line["event"] for line in said]
    assert events == ["config_rejected", "config_reloaded"]
    assert (said[1]["key"], said[1]["old"], said[1]["new"]) == ("daemon.max_runs", "3", "5")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "warned"),
    [
        (_CONFIG.format(3).replace("test", "other"), 1),
        (_CONFIG.format(3) + 'listen = "127.0.0.1:1"', 1),
        (_CONFIG.format(3) + "# a remark", 0),
    ],
)
async def test_an_edit_that_changes_nothing_here_is_no_news_but_for_what_needs_a_restart(
    config: _Watched, text: str, warned: int
) -> None:
    with capture_logs() as said:
        async with config.watched():
            _moved_in(config.path, text)
            await config.looked()
    assert [entry["event"] for entry in said] == ["config_rejected"] * warned
    assert not config.adopted.is_set()


@pytest.mark.anyio
async def test_a_rejected_config_that_is_put_back_is_said_to_be_good_again(
    config: _Watched,
) -> None:
    with capture_logs() as said:
        async with config.watched():
            for text in (_CONFIG.format('"many"'), _CONFIG.format(3), _CONFIG.format(3) + "# ok"):
                _moved_in(config.path, text)
                await config.looked()
    assert [entry["event"] for entry in said] == ["config_rejected", "config_reloaded"]
    assert said[1]["change"] == "Its mistakes are gone; nothing else changed."
    assert not config.adopted.is_set()


@pytest.mark.anyio
async def test_each_edit_is_told_against_the_one_before(config: _Watched) -> None:
    with capture_logs() as said:
        async with config.watched():
            for number in (5, 6):
                _moved_in(config.path, _CONFIG.format(number))
                await config.takes_up(number)
    assert [(line["old"], line["new"]) for line in said] == [("3", "5"), ("5", "6")]


async def _taken_up(config: _Watched, reloader: Reloader) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reloader.watch)
        with anyio.fail_after(PATIENCE):
            await config.adopted.wait()
        tasks.cancel_scope.cancel()
    assert config.max_runs == 5
