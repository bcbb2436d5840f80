"""A catalog's file in any state: it works, or one sentence names it and it is not written to."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import CannotOpen, CatalogError
from catalog.open import open_catalog
from catalog.port import Catalog, new_operation_id
from catalog.records import Pause, RunQuery
from tests.bad_input import DAMAGE, WIDE, Damage, damaged, examples, is_plain
from tests.cli_kit import CONFIG, Shop, claim, commit, failed, held, ran
from tests.e2e.world import PATIENCE, RECONCILER

# -- a good one -----------------------------------------------------------------------------------


async def fill(catalog: Catalog) -> None:
    """Runs of every kind, a hold, and one that is under way."""
    for number in range(9):
        await ran(catalog, at=number)
    await failed(catalog)
    await held(catalog)
    await commit(catalog, await claim(catalog, "stock"), stream="stock")


def make(path: Path) -> None:
    async def made() -> None:
        async with open_catalog(f"sqlite:///{path}") as catalog:
            await fill(catalog)

    asyncio.run(made())


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "catalog.db"
    make(path)
    return path


@pytest.fixture(scope="module")
def foreign_wal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A write-ahead log that SQLite would take for whole, of another database."""
    path = tmp_path_factory.mktemp("other") / "other.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("create table notes (text)")
        db.execute("insert into notes values (zeroblob(9000))")
        shutil.copy(path.with_name("other.db-wal"), path.with_name("wal"))
    return path.with_name("wal")


# -- any bytes ------------------------------------------------------------------------------------

READS: dict[str, Callable[[Catalog], Awaitable[object]]] = {
    "stats": lambda catalog: catalog.stats(),
    "check": lambda catalog: catalog.check(),
    "changed": lambda catalog: catalog.changed(0),
    "pipeline": lambda catalog: catalog.pipeline("shop"),
    "streams": lambda catalog: catalog.streams("shop"),
    "cursor": lambda catalog: catalog.cursor("shop", "orders"),
    "runs": lambda catalog: catalog.runs(RunQuery()),
    "commits": lambda catalog: catalog.commits("shop"),
    "schemas": lambda catalog: catalog.schemas("shop", "orders"),
    "decisions": lambda catalog: catalog.decisions("shop", "orders"),
    "files": lambda catalog: catalog.files("shop", "orders"),
    "edits": lambda catalog: catalog.edits(),
    "holders": lambda catalog: catalog.holders(),
    "pause": lambda catalog: catalog.edit(new_operation_id(), "ann", "", Pause("other")),
}


async def use(path: Path) -> None:
    """Ask for everything, and write: each is answered or refused in a sentence that names it."""
    async with open_catalog(f"sqlite:///{path}") as catalog:
        for verb, ask in READS.items():
            refused = await refused_by(ask(catalog))
            assert refused is None or is_sentence(str(refused), path), (verb, refused)


async def refused_by(asked: Awaitable[object]) -> CatalogError | None:
    """What it was refused with; anything else that is raised is a fault."""
    try:
        await asked
    except CatalogError as error:
        return error
    return None


def is_sentence(text: str, path: Path) -> bool:
    return is_plain(text) and str(path) in text


BESIDE = st.sampled_from([None, None, "whole", b"", b"\0" * 32768, b"7\x7f\x06\x82" * 999])
"""What lies there as ``-wal`` or ``-shm``."""


def any_bytes(good: Path, damage: list[Damage], beside: dict[str, bytes | None]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "catalog.db"
        body = damaged(good.read_bytes(), damage)
        path.write_bytes(body)
        for ending, other in beside.items():
            if other is not None:
                path.with_name(path.name + ending).write_bytes(other)
        refused = asyncio.run(refused_by(asyncio.wait_for(use(path), PATIENCE)))
        assert refused is None or is_sentence(str(refused), path), refused
        assert not isinstance(refused, CannotOpen) or path.read_bytes() == body
    finally:
        shutil.rmtree(folder)


@examples(15)
@given(damage=DAMAGE, wal=BESIDE, shm=BESIDE)
def test_a_catalog_of_any_bytes_works_or_is_refused_in_a_sentence(
    good: Path, foreign_wal: Path, damage: list[Damage], wal: Any, shm: Any
) -> None:
    wal = foreign_wal.read_bytes() if wal == "whole" else wal
    any_bytes(good, damage, {"-wal": wal, "-shm": shm if shm != "whole" else None})


@pytest.mark.slow
@examples(WIDE)
@given(damage=DAMAGE, wal=BESIDE, shm=BESIDE)
def test_damaged_catalogs_searched_widely(
    good: Path, foreign_wal: Path, damage: list[Damage], wal: Any, shm: Any
) -> None:
    wal = foreign_wal.read_bytes() if wal == "whole" else wal
    any_bytes(good, damage, {"-wal": wal, "-shm": shm if shm != "whole" else None})


# -- what a person sees ---------------------------------------------------------------------------


def _pragma(path: Path, **pragmas: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        for name, value in pragmas.items():
            db.execute(f"pragma {name} = {value}")


def _another_programs(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("create table notes (text)")
        db.commit()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _middle_gone(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[100:4096] = bytes(3996)
    path.write_bytes(body)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "notes": (lambda p: p.write_text("my notes, of no database\n" * 40), "not a SQLite database"),
    "a newer version": (lambda p: _pragma(p, user_version=99), "newer version of this program"),
    "no version": (lambda p: _pragma(p, user_version=0), "names no version"),
    "another mark": (lambda p: _pragma(p, application_id=7), "database of another program"),
    "another program's": (_another_programs, "database of another program"),
    "cut": (lambda p: os.truncate(p, 5000), "is damaged"),
    "cut within the header": (lambda p: os.truncate(p, 60), "is damaged"),
    "a page of zeros": (_middle_gone, "is damaged"),
    "a directory": (_directory, "is a directory; name a file"),
}


def digest(path: Path) -> str:
    if path.is_dir():
        return "directory"
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str], good: Path) -> Shop:
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "state").mkdir()
    shutil.copy(good, tmp_path / "state")
    return Shop(tmp_path, capsys)


@pytest.mark.parametrize("how", BROKEN)
def test_every_command_says_what_is_wrong_with_the_catalog_and_changes_nothing(
    shop: Shop, how: str
) -> None:
    path = shop.folder / "state" / "catalog.db"
    damage, words = BROKEN[how]
    damage(path)
    before = digest(path)
    for command in (
        *("status", "catalog check", "runs", "why shop", "cursor get shop.orders", "pause shop"),
    ):
        found = shop.cli(*command.split())
        assert found.code == 1, (command, found)
        assert words in found.err, (command, found)
        assert str(path) in found.err
        assert is_plain(found.err.strip().partition("\n")[0])
        assert found.out == ""
        assert digest(path) == before


@pytest.mark.parametrize("how", ["a newer version"])
def test_the_daemon_says_what_is_wrong_with_the_catalog_and_ends(shop: Shop, how: str) -> None:
    path = shop.folder / "state" / "catalog.db"
    damage, words = BROKEN[how]
    damage(path)
    before = digest(path)
    done = subprocess.run(
        [RECONCILER, "serve", "--config", str(shop.folder / "config.toml")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1, done
    events = [json.loads(line) for line in done.stderr.splitlines()]
    (failure,) = [event for event in events if event["event"] == "daemon_failed"]
    assert words in failure["reason"]
    assert str(path) in failure["reason"]
    assert is_plain(failure["reason"])
    assert digest(path) == before


def test_a_catalog_that_may_not_be_opened_is_named(shop: Shop) -> None:
    path = shop.folder / "state" / "catalog.db"
    path.chmod(0o400)
    path.parent.chmod(0o500)
    superuser = os.geteuid() == 0
    if superuser:
        for folder in (shop.folder, *shop.folder.parents):
            mode = folder.stat().st_mode
            if not mode & 0o001:  # to be passed through; nothing more, they may be everybody's
                folder.chmod(mode | 0o011)
        os.seteuid(65534)
    try:
        found = asyncio.run(refusal(path))
    finally:
        if superuser:
            os.seteuid(0)
        path.parent.chmod(0o700)
    assert is_sentence(found, path)


async def refusal(path: Path) -> str:
    with pytest.raises(CannotOpen) as caught:
        async with open_catalog(f"sqlite:///{path}"):
            pass
    return str(caught.value)


def test_a_log_of_another_database_is_not_copied_into_the_catalog(
    shop: Shop, foreign_wal: Path
) -> None:
    path = shop.folder / "state" / "catalog.db"
    before = digest(path)
    log = shutil.copy(foreign_wal, path.with_name("catalog.db-wal"))
    assert "another program" in asyncio.run(refusal(path))
    assert digest(path) == before
    Path(log).unlink()
    assert shop.cli("catalog", "check").code == 0


def test_another_programs_database_keeps_its_journal(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.touch()
    _another_programs(path)
    before = digest(path)
    assert "another program" in asyncio.run(refusal(path))
    assert digest(path) == before


def test_a_row_that_cannot_be_understood_is_said_by_every_command(shop: Shop) -> None:
    path = shop.folder / "state" / "catalog.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("update runs set reason = cast(x'ff' as text)")
        db.commit()
    for command in (("runs",), ("show", "shop"), ("why", "shop")):
        found = shop.cli(*command)
        if command == ("runs",):
            assert found.code == 1
            assert "holds a row that cannot be understood" in found.err
        assert "nobody foresaw" not in found.err
    found = shop.cli("catalog", "check")
    assert found.code == 1
    assert "table runs holds text that is no UTF-8 (b'" in found.out
