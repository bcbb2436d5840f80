"""Each call to the disk under each verb of the catalog fails in turn, once and for good (D1, D2).

Whatever fails, the verb is carried out wholly or not at all, and what it answers is true of the
file: an answer is there, a refusal is not, ``Unknown`` is the one or the other. While the disk is
bad the catalog says so; once it is well again the same open catalog goes on by itself, and the same
operation id gives the answer that it would have given, once.
"""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from catalog.conformance.kit import batch, dump, op
from catalog.errors import CannotOpen, CatalogError, Full, Unavailable, Unknown
from catalog.port import Catalog
from catalog.records import Pause
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.database import Tuning
from tests.crash.catalog_story import LIMIT, Ask, Base, base, claim, clock, verbs
from tests.crash.sqlite_disk import Fault, FaultyDisk, faults_of, passed_over
from tests.patience import PATIENCE

pytestmark = pytest.mark.anyio
CHECKPOINT_CALLS = 60
ID = "0" * 31 + "1"
"""The operation id under test."""
VERBS = tuple(verbs(Base(b"", dict.fromkeys(("shop", "mine", "busy", "lost"), None))))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Trial:
    """One way for the disk to fail."""

    at: int
    fault: Fault
    lasting: bool

    def __str__(self) -> str:
        return f"call {self.at}: {self.fault.value} {'for good' if self.lasting else 'once'}"


@dataclass
class Story:
    """A verb on a copy of the base, again and again."""

    base: Base
    ask: Ask
    folder: Path
    path: Path = Path()
    """The copy that is open."""
    number: int = 0
    old: dict[str, Any] = field(default_factory=dict)
    new: dict[str, Any] = field(default_factory=dict)
    answer: Any = None

    @asynccontextmanager
    async def opened(self, disk: FaultyDisk | None) -> AsyncIterator[SqliteCatalog]:
        """A copy of the base, open, with one acknowledged commit in its log."""
        self.number += 1
        self.path = self.base.lay(self.folder / str(self.number))
        catalog = await open_at(self.path, disk)
        try:
            await catalog.commit(op(), self.base.leases["busy"], [batch(1)], {})
            yield catalog
        finally:
            await catalog.aclose()

    async def clean(self) -> list[str]:
        """Carry it out on a good disk; the calls that it makes."""
        disk = FaultyDisk()
        async with self.opened(disk) as catalog:
            self.old = await dump(catalog)
            disk.arm(lasting=False, thread="")
            self.answer = await self.ask(catalog, ID)
            disk.heal()
            self.new = await dump(catalog)
            assert self.new != self.old
            assert await self.ask(catalog, ID) == self.answer
        return disk.calls

    async def attempt(self, trial: Trial) -> list[str]:
        """The calls that failed; every promise is checked on the way."""
        disk = FaultyDisk()
        async with self.opened(disk) as catalog:
            disk.arm(trial.at, trial.fault, lasting=trial.lasting, thread="")
            outcome = await outcome_of(self.ask, catalog)
            await self.check_what_is_left(disk, outcome, random.Random(trial.at))
            if disk.struck and trial.lasting and outcome is not None:
                await check_it_says_so(catalog, outcome)
            disk.heal()
            await self.check_it_goes_on(catalog)
            path = self.path
        await self.check_file(path, (self.new,))
        return disk.struck

    async def check_what_is_left(
        self, disk: FaultyDisk, outcome: CatalogError | None, rng: random.Random
    ) -> None:
        """At this moment the process is killed, or the power fails: what is found then?"""
        allowed: tuple[dict[str, Any], ...] = (self.old, self.new)
        if outcome is None:
            allowed = (self.new,)
        elif not isinstance(outcome, Unknown):
            allowed = (self.old,)
        for way in (None, rng):
            self.number += 1
            folder = self.folder / f"left{self.number}"
            folder.mkdir()
            disk.image(folder, way)
            await self.check_file(folder / "catalog.db", allowed)

    async def check_file(self, path: Path, allowed: tuple[dict[str, Any], ...]) -> None:
        catalog = await open_at(path, None)
        try:
            found = await dump(catalog)
            assert any(found == one for one in allowed), differences(found, allowed[-1])
            assert (await catalog.check()).problems == ()
        finally:
            await catalog.aclose()

    async def check_it_goes_on(self, catalog: SqliteCatalog) -> None:
        """By itself, and with the same answer to the same id, however often it is sent."""
        with anyio.fail_after(PATIENCE):
            while await outcome_of(self.ask, catalog) is not None:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        for _ in range(2):
            assert await self.ask(catalog, ID) == self.answer
        assert (found := await dump(catalog)) == self.new, differences(found, self.new)
        assert (await catalog.check()).problems == ()
        assert (await catalog.stats()).last_error == ""


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Short, for whoever has to find out why."""
    names = sorted(found.keys() | wanted.keys())
    return [name for name in names if found.get(name) != wanted.get(name)]


async def open_at(path: Path, disk: FaultyDisk | None) -> SqliteCatalog:
    return await SqliteCatalog.open(path, clock(), LIMIT, Tuning(vfs=disk.name if disk else None))


async def outcome_of(ask: Callable[[Catalog, str], Awaitable[Any]], catalog: Catalog) -> Any:
    """None: it answered. Otherwise the error, which must be a sentence of the catalog's own."""
    try:
        await ask(catalog, ID)
    except (Unavailable, Unknown, Full) as error:
        text = str(error)
        assert "catalog.db" in text
        assert "apsw" not in text
        assert "fault of this program" not in text
        assert " " in text
        return error
    return None


async def check_it_says_so(catalog: Catalog, outcome: CatalogError) -> None:
    """The reason is there for metrics, unless no write came so far that anything was written."""
    assert (await catalog.stats()).last_error or "cannot be read" in str(outcome)


@pytest.fixture
def quiet() -> Iterator[None]:
    with passed_over():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return anyio.run(base, tmp_path_factory.mktemp("base"))


def trials(calls: list[str]) -> list[Trial]:
    return [
        Trial(at, fault, lasting)
        for at, call in enumerate(calls, start=1)
        for fault in faults_of(call)
        for lasting in (False, True)
    ]


async def fail_all(story: Story, *, first: int = 0, every: int = 1) -> int:
    """Each ``every``-th trial, from the last, the sync, backwards; how many struck."""
    struck = 0
    for trial in trials(await story.clean())[::-1][first::every]:
        try:
            struck += bool(await story.attempt(trial))
        except Exception as error:
            pytest.fail(f"{trial}: {error!r}")
    return struck


@pytest.mark.usefixtures("quiet")
async def test_a_call_to_the_disk_fails_under_each_verb(made: Base, tmp_path: Path) -> None:
    """A few of all that the slow proof below goes through."""
    for number, (name, ask) in enumerate(verbs(made).items()):
        folder = tmp_path / name
        folder.mkdir()
        await fail_all(Story(made, ask, folder), first=number % 2, every=197 + number)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("verb", VERBS)
async def test_each_call_of_each_verb_fails(verb: str, made: Base, tmp_path: Path) -> None:
    assert await fail_all(Story(made, verbs(made)[verb], tmp_path)) > 20


# -- opening and closing -------------------------------------------------------------------------


async def opening(path: Path, trial: Trial | None, *, closing: bool) -> FaultyDisk:
    """Open and close what is at the path, with one of the two on a disk that fails."""
    disk = FaultyDisk()
    at, fault, lasting = (trial.at, trial.fault, trial.lasting) if trial else (0, Fault.EIO, False)
    if not closing:
        disk.arm(at, fault, lasting=lasting, thread="")
    try:
        catalog = await open_at(path, disk)
    except (CannotOpen, Unavailable) as error:
        text = str(error)
        assert disk.struck
        assert str(path) in text
        assert "apsw" not in text
    else:
        if closing:
            disk.arm(at, fault, lasting=lasting, thread="")
        else:
            disk.heal()
        await catalog.aclose()
    disk.heal()
    assert [one.name for one in threading.enumerate() if one.name.startswith("catalog")] == []
    assert opened_files(path.parent) == []
    return disk


def opened_files(folder: Path) -> list[str]:
    """What this process still has open in a folder."""
    gc.collect()
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(str(fd.readlink()))
    return [name for name in found if name.startswith(f"{folder}/")]


@dataclass
class Left:
    """What is at the path before it is opened, laid out anew for each try."""

    folder: Path
    files: dict[str, bytes]
    wanted: dict[str, Any] | None
    """All that is to be found in it."""
    number: int = 0

    def lay(self) -> Path:
        self.number += 1
        folder = self.folder / f"try {self.number}"
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder / "catalog.db"

    async def check(self, path: Path) -> None:
        catalog = await open_at(path, None)
        found = await dump(catalog)
        assert self.wanted is None or found == self.wanted, differences(found, self.wanted)
        assert (await catalog.check()).problems == ()
        await catalog.aclose()


@pytest.fixture(params=["new", "after a kill"])
async def left(request: pytest.FixtureRequest, made: Base, tmp_path: Path) -> Left:
    if request.param == "new":
        return Left(tmp_path, {}, None)
    disk, story = FaultyDisk(), Story(made, verbs(made)["commit"], tmp_path)
    async with story.opened(disk) as catalog:
        wanted = await dump(catalog)
        files = {Path(name).name: bytes(one.written) for name, one in disk.files.items()}
    assert len(files["catalog.db-wal"]) > 4096
    return Left(tmp_path, files, wanted)


async def fail_opening(left: Left, every: int, *, closing: bool) -> None:
    calls = (await opening(left.lay(), None, closing=closing)).calls
    struck = 0
    for trial in trials(calls)[::every]:
        path = left.lay()
        try:
            struck += bool((await opening(path, trial, closing=closing)).struck)
            await left.check(path)
        except Exception as error:
            pytest.fail(f"{trial} of {len(calls)}: {error!r}")
    assert struck


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("closing", [False, True], ids=["open", "close"])
async def test_a_call_fails_while_it_is_opened_or_closed(closing: bool, left: Left) -> None:
    """A file is made and migrated wholly or not at all, a log that was left is kept, nothing of
    a failed try stays open, and the next one works."""
    await fail_opening(left, 83, closing=closing)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("closing", [False, True], ids=["open", "close"])
async def test_each_call_fails_while_it_is_opened_or_closed(closing: bool, left: Left) -> None:
    await fail_opening(left, 1, closing=closing)


# -- checkpoints ---------------------------------------------------------------------------------


async def under_checkpoints(path: Path, trial: Trial | None) -> FaultyDisk:
    """Commit while the log is copied back and cut, on a disk that fails under those; what was
    acknowledged is there after a loss of power then, and the catalog goes on."""
    disk = FaultyDisk()
    tuning = Tuning(vfs=disk.name, checkpoint_pages=8, truncate_bytes=60_000)
    catalog = await SqliteCatalog.open(path, clock(), LIMIT, tuning)
    lease, seq = await claim(catalog, "story"), 0

    async def commit() -> None:
        nonlocal seq
        id_, answer = op(), None
        with anyio.fail_after(PATIENCE):
            while answer is None:
                try:
                    answer = await catalog.commit(id_, lease, [batch(seq)], {"orders": seq})
                except (Unknown, Unavailable, Full):
                    disk.heal()
        seq += 1

    thread = "catalog-checkpoint"
    at, fault, lasting = (trial.at, trial.fault, trial.lasting) if trial else (0, Fault.EIO, False)
    disk.arm(at, fault, lasting=lasting, thread=thread)
    while len(disk.calls) < CHECKPOINT_CALLS and not disk.struck:
        await commit()
    for _ in range(3):
        await commit()
    disk.heal()
    for _ in range(20):
        await commit()
    image = path.parent / "image"
    image.mkdir()
    disk.image(image, random.Random(at))
    found = await open_at(image / "catalog.db", None)
    (state,) = await found.streams("story")
    assert state.seq == seq
    assert (await found.check()).problems == ()
    await found.aclose()
    assert (await catalog.stats()).last_error == ""
    await catalog.aclose()
    return disk


@pytest.mark.usefixtures("quiet")
async def test_a_call_of_a_checkpoint_fails(tmp_path: Path) -> None:
    await fail_checkpoints(tmp_path, 29)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
async def test_each_call_of_a_checkpoint_fails(tmp_path: Path) -> None:
    await fail_checkpoints(tmp_path, 1)


async def fail_checkpoints(folder: Path, every: int) -> None:
    (folder / "good").mkdir()
    calls = (await under_checkpoints(folder / "good" / "catalog.db", None)).calls
    assert {call.split()[0] for call in calls} >= {"xRead", "xWrite", "xSync", "xTruncate"}
    struck = 0
    for number, trial in enumerate(trials(calls[:CHECKPOINT_CALLS])[::every]):
        place = folder / str(number)
        place.mkdir()
        try:
            struck += bool((await under_checkpoints(place / "catalog.db", trial)).struck)
        except Exception as error:
            pytest.fail(f"{trial}: {error!r}")
    assert struck


# -- many at once, and reading -------------------------------------------------------------------


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("fault", list(Fault))
async def test_a_group_that_fails_answers_each_of_it_truly(
    fault: Fault, made: Base, tmp_path: Path
) -> None:
    """What was acknowledged is there after a kill, what was refused is not; sent again under its
    own id each is done once."""
    story = Story(made, verbs(made)["pause"], tmp_path)
    wishes = {f"p{number}": f"{number:032x}" for number in range(1, 30)}

    async def send(catalog: Catalog, name: str) -> None:
        try:
            await catalog.edit(wishes[name], "ann", "because", Pause(name))
            outcomes[name] = "done"
        except (Unknown, Unavailable, Full) as error:
            outcomes[name] = error.code

    async def send_all(catalog: Catalog) -> None:
        async with anyio.create_task_group() as tasks:
            for name in wishes:
                tasks.start_soon(send, catalog, name)

    for at in range(1, 60, 4):
        for lasting in (False, True):
            disk, outcomes = FaultyDisk(), dict[str, str]()
            async with story.opened(disk) as catalog:
                disk.arm(at, fault, lasting=lasting, thread="")
                await send_all(catalog)
                folder = tmp_path / f"left {at} {lasting}"
                folder.mkdir()
                disk.image(folder, random.Random(at))
                there = await paused(folder / "catalog.db")
                disk.heal()
                for name, outcome in outcomes.items():
                    if outcome != "unknown":
                        assert (name in there) is (outcome == "done"), (at, lasting, outcome)
                while set(outcomes.values()) != {"done"}:
                    await send_all(catalog)
                edits = [edit.pipeline for edit in await catalog.edits(limit=100)]
                assert sorted(name for name in edits if name in wishes) == sorted(wishes)


async def paused(path: Path) -> set[str]:
    catalog = await open_at(path, None)
    found = {state.name for state in await catalog.changed(0) if state.paused}
    assert (await catalog.check()).problems == ()
    await catalog.aclose()
    return found


@pytest.mark.usefixtures("quiet")
async def test_a_read_that_fails_says_so_and_the_next_one_is_right(
    made: Base, tmp_path: Path
) -> None:
    story, refused = Story(made, verbs(made)["pause"], tmp_path), list[str]()
    async with story.opened(None) as catalog:
        wanted = await dump(catalog)
    for at in range(1, 40):
        disk = FaultyDisk()
        catalog = await open_at(story.path, disk)
        disk.arm(at, Fault.EIO, lasting=True, thread="")
        try:
            found = await dump(catalog)
        except Unavailable as error:
            refused.append(str(error))
        else:
            assert found == wanted
        disk.heal()
        assert (found := await dump(catalog)) == wanted, differences(found, wanted)
        await catalog.aclose()
    assert len(refused) > 3
    assert all("catalog.db cannot be read" in words for words in refused), refused
