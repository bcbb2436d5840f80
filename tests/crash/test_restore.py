"""A restore that is killed, or loses power, at any step: all old, all new, or refused with words.

The catalog that stood there is never lost, its log never taken for the new one's, and carrying the
restore out again ends well, under epochs that were never issued (A1, D6, rule 3).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import apsw
import pytest

from catalog.copies import Restored
from catalog.errors import CannotOpen, Unavailable
from catalog.open import back_up, open_catalog, restore
from catalog.port import Catalog
from catalog.records import RunQuery
from catalog.sqlite import files
from tests.cli_kit import claim, commit, ran
from tests.memory import tmp_path

__all__ = ["tmp_path"]  # what is killed here, or loses power in a model, needs no disk

T = TypeVar("T")
_STEPS = ("rename", "unlink", "fsync")


def on(path: Path, work: Callable[[Catalog], Awaitable[T]]) -> T:
    async def opened() -> T:
        async with open_catalog(f"sqlite:///{path}") as catalog:
            return await work(catalog)

    return asyncio.run(opened())


@dataclass
class Story:
    """A catalog, a backup of it with a run open, and what came after: the lost timeline."""

    path: Path
    backup: Path
    killed_in: str = ""

    def restore(self, **how: Any) -> Restored:
        return restore(f"sqlite:///{self.path}", self.backup, by="ann@host", why="lost", **how)

    def epochs(self, path: Path | None = None) -> list[int]:
        runs = on(path or self.path, lambda c: c.runs(RunQuery()))
        return [run.epoch for run in runs]


_AT_BACKUP, _AT_LOSS = [2, 1], [5, 4, 3, 2, 1]


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return tell(tmp_path)


def tell(folder: Path) -> Story:
    story = Story(folder / "state" / "catalog.db", folder / "backup.db")

    async def before(catalog: Catalog) -> None:
        await ran(catalog)
        await commit(catalog, await claim(catalog, ttl=0.0), at=20)

    async def after(catalog: Catalog) -> None:
        for at in (30, 40, 50):
            await ran(catalog, at=at)
        os.kill(os.getpid(), signal.SIGKILL)  # so that its log stays

    on(story.path, before)
    back_up(f"sqlite:///{story.path}", story.backup)
    in_a_process(lambda: on(story.path, after))
    assert story.path.with_name("catalog.db-wal").stat().st_size
    return story


def in_a_process(work: Callable[[], object]) -> int:
    """Its exit code; negative: the signal that ended it. No connection crosses the fork (D4)."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_before(step: int, work: Callable[[], object]) -> bool:
    """Whether a process that does ``work`` came to that step, and was killed before it."""

    def dying() -> None:
        steps = itertools.count()

        def counted(do: Callable[..., Any]) -> Callable[..., Any]:
            def first(*args: Any, **how: Any) -> Any:
                if next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return do(*args, **how)

            return first

        for name in _STEPS:
            setattr(os, name, counted(getattr(os, name)))
        work()

    code = in_a_process(dying)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def standing(story: Story) -> str:
    """``old``, ``new``, or ``refused`` in words; anything else is wrong."""
    try:
        epochs = story.epochs()
    except CannotOpen as error:
        if "restored" not in str(error):
            raise
        return "refused"
    assert epochs in (_AT_BACKUP, _AT_LOSS)
    assert on(story.path, lambda c: c.check()).problems == ()
    return "old" if epochs == _AT_LOSS else "new"


def ends_well(story: Story) -> None:
    """Carried out again, unless it is done: nothing is lost, and no epoch comes again."""
    if standing(story) != "new":
        story.restore()
    assert standing(story) == "new"
    kept = [*story.path.parent.glob("catalog.db.replaced-*")]
    found = [story.epochs(copy(path)) for path in kept if not path.name.endswith("-wal")]
    assert found.count(_AT_LOSS) == 1, "what stood there is kept"

    async def next_epoch(catalog: Catalog) -> int:
        return (await claim(catalog)).lease.epoch

    assert on(story.path, next_epoch) > 10**9


def copy(kept: Path) -> Path:
    """Of a catalog and its log, so that looking at it changes nothing."""
    to = kept.with_name(f"look-{kept.name}")
    for end in ("", "-wal"):
        if (old := kept.with_name(kept.name + end)).exists():
            shutil.copy(old, to.with_name(to.name + end))
    return to


def test_a_restore_killed_before_any_step_is_all_old_all_new_or_refused(tmp_path: Path) -> None:
    seen = []
    for step in itertools.count():
        story = tell(tmp_path / str(step))
        killed = killed_before(step, story.restore)
        seen.append(standing(story))
        ends_well(story)
        if not killed:
            break
    assert seen == sorted(seen, key=["old", "refused", "new"].index)
    assert {*seen} == {"old", "refused", "new"}


@pytest.mark.slow
def test_a_restore_over_a_damaged_catalog_killed_before_any_step_keeps_its_bytes(
    tmp_path: Path,
) -> None:
    for step in itertools.count():
        story = tell(tmp_path / str(step))
        with story.path.open("r+b") as file:
            file.write(b"no database at all")
        before, log = story.path.read_bytes(), story.path.with_name("catalog.db-wal").read_bytes()
        killed = killed_before(step, story.restore)
        if killed:
            story.restore()
        assert standing(story) == "new"
        (kept,) = (
            file
            for file in story.path.parent.glob("catalog.db.replaced-*")
            if not file.name.endswith("-wal") and file.read_bytes() == before
        )
        assert kept.with_name(f"{kept.name}-wal").read_bytes() == log
        if not killed:
            break
    assert step > 5


@pytest.mark.slow
def test_a_disk_that_is_full_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    """At every point of it: the room left grows by a page from one try to the next."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs takes rights that are not here")
    try:
        story = tell(disk)
        story.restore(dry_run=True)  # SQLite puts its log in order
        ballast = disk / "ballast"
        said: list[str] = []
        for pages in range(1, 500):
            with suppress(OSError), ballast.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            os.truncate(ballast, max(0, ballast.stat().st_size - 4096 * pages))
            with patch.object(files, "see_room"):  # it finds out only on the way
                try:
                    back_up(f"sqlite:///{story.path}", disk / "second.db")
                    story.restore()
                    break
                except Unavailable as error:
                    said.append(str(error))
            (disk / "second.db").unlink(missing_ok=True)
            ballast.unlink()
            assert not [*disk.rglob("*.part*")]
            assert standing(story) == "old"
        assert len(said) > 10
        assert all(re.search("full|room|disk I/O error", words) for words in said)
        assert standing(story) == "new"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@dataclass
class Disk:
    """What a restore did to the folder: names given and taken away, and when that was synced."""

    steps: list[tuple[str, ...]] = field(default_factory=list)
    synced: set[int] = field(default_factory=set)
    """Inodes of files whose bytes are on the disk."""

    def watch(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        rename, unlink, fsync = os.rename, os.unlink, os.fsync

        def noted_rename(old: Path, new: Path) -> None:
            assert Path(old).stat().st_ino in self.synced or ".part" not in str(old)
            rename(old, new)
            self.steps.append(("rename", Path(old).name, Path(new).name))

        def noted_unlink(path: Path) -> None:
            unlink(path)
            self.steps.append(("unlink", Path(path).name))

        def noted_fsync(fd: int) -> None:
            fsync(fd)
            self.synced.add(os.fstat(fd).st_ino)
            if os.fstat(fd).st_ino == folder.stat().st_ino:
                self.steps.append(("sync",))

        for name, noted in (
            ("rename", noted_rename),
            ("unlink", noted_unlink),
            ("fsync", noted_fsync),
        ):
            monkeypatch.setattr(os, name, noted)

    def cuts(self, first: Iterable[tuple[str, ...]]) -> Iterable[list[tuple[str, ...]]]:
        """What may be on the disk after a loss of power: all that was synced, and of what was not
        any part. ``first``: what was pending already."""
        steps = [*first, *self.steps]
        for end in range(len(steps) + 1):
            done = steps[:end]
            last = max((i for i, step in enumerate(done) if step == ("sync",)), default=-1)
            certain, pending = done[: last + 1], done[last + 1 :]
            for some in range(len(pending) + 1):
                for chosen in itertools.combinations(pending, some):
                    yield [step for step in (*certain, *chosen) if step != ("sync",)]


def carry_out(folder: Path, steps: Iterable[tuple[str, ...]]) -> None:
    for what, *names in steps:
        with suppress(FileNotFoundError):
            if what == "rename":
                (folder / names[0]).rename(folder / names[1])
            else:
                (folder / names[0]).unlink()


@pytest.mark.parametrize(
    "forgotten",
    [
        pytest.param(False, id="as it is"),
        pytest.param(True, id="without its syncs", marks=pytest.mark.slow),
    ],
)
def test_no_loss_of_power_mixes_the_old_with_the_new(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, forgotten: bool
) -> None:
    """And a sync of the folder that is left out is found."""
    log = story.path.with_name("catalog.db-wal")
    logged = log.read_bytes()
    disk = Disk()
    with monkeypatch.context() as patched:
        disk.watch(patched, story.path.parent)
        done = story.restore()
    part = next(step[1] for step in disk.steps if step[0] == "rename")
    kept = Path(done.kept).name
    if forgotten:
        disk.steps = [step for step in disk.steps if step != ("sync",)]

    # SQLite copied the old log and took it away, which may not be on the disk yet.
    pending = [("unlink", log.name)]
    wrong, found = 0, set()
    for number, steps in enumerate({tuple(cut): cut for cut in disk.cuts(pending)}.values()):
        again = Story(tmp_path / f"cut{number}" / "catalog.db", story.backup)
        again.path.parent.mkdir()
        shutil.copy(story.path.with_name(kept), again.path)
        shutil.copy(story.path, again.path.with_name(part))
        again.path.with_name(log.name).write_bytes(logged)
        carry_out(again.path.parent, steps)
        try:
            found.add(standing(again))
            ends_well(again)
        except (AssertionError, apsw.Error):
            wrong += 1
    assert (wrong > 0) == forgotten
    if not forgotten:
        assert found == {"old", "refused", "new"}
