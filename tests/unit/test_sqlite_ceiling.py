"""Where the SQLite catalog takes no more of what only grows, to the page (D1)."""

from __future__ import annotations

from pathlib import Path

import anyio
import apsw
import pytest

from catalog.clock import ManualClock
from catalog.errors import Full
from catalog.port import new_operation_id as op
from catalog.records import Candidate, Holder, Pause, Trigger, TriggerKind
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.writer import growth_ends

pytestmark = pytest.mark.anyio
MIB = 1024 * 1024


def test_a_sixteenth_is_kept_for_what_does_not_grow_and_at_most_64_mib() -> None:
    assert growth_ends(MIB) == 256 - 16
    assert growth_ends(1024 * MIB) == (1024 - 64) * 256
    assert growth_ends(10 * 1024 * MIB) == (10 * 1024 - 64) * 256


class Ballast:
    """Rows of a page each, written by another process."""

    def __init__(self, path: Path) -> None:
        self._db = apsw.Connection(str(path))
        self._db.pragma("synchronous", 0)
        self._db.execute("create table ballast (x)")

    def fill(self, pages: int) -> None:
        """Until the file has exactly so many pages."""
        while self._db.pragma("page_count") < pages:
            self._db.execute("insert into ballast values (zeroblob(4000))")
        assert self._db.pragma("page_count") == pages

    def free(self) -> None:
        """One page of those."""
        self._db.execute("delete from ballast where rowid = 2")
        assert self._db.pragma("freelist_count") == 1

    def close(self) -> None:
        self._db.close()


async def test_growing_ends_above_a_number_of_pages_those_that_are_free_not_counted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.db"
    catalog = await SqliteCatalog.open(path, ManualClock(), MIB)

    async def pause(name: str) -> None:
        await catalog.edit(op(), "ann", "", Pause(name))

    async def claim() -> None:
        candidate = Candidate("p", 0, Trigger(TriggerKind.TICK, tick=1), "due")
        await catalog.claim(op(), Holder("h", "host", 1), [candidate], ttl=60, limits={})

    ballast = Ballast(path)
    ballast.fill(growth_ends(MIB))
    await pause("a")
    ballast.fill(growth_ends(MIB) + 1)
    for growing in (lambda: pause("b"), claim):
        with pytest.raises(Full):
            await growing()
    ballast.free()
    await pause("c")
    assert [state.name for state in await catalog.changed(0)] == ["a", "c"]
    ballast.close()
    await catalog.aclose()


async def test_an_edit_too_large_for_the_file_takes_no_other_along(tmp_path: Path) -> None:
    """Its first statement ends the whole transaction, and what follows would go on without."""
    catalog = await SqliteCatalog.open(tmp_path / "c.db", ManualClock(), 2 * MIB)
    refused: list[str] = []

    async def pause(name: str, why: str) -> None:
        try:
            await catalog.edit(op(), "ann", why, Pause(name))
        except Full:
            refused.append(name)

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(pause, f"p{number}", "x" * 2 * MIB if number == 3 else "")
    assert refused == ["p3"]
    stats = await catalog.stats()
    assert (stats.last_error, stats.writes) == ("", 7)
    await catalog.aclose()
    again = await SqliteCatalog.open(tmp_path / "c.db", ManualClock(), 2 * MIB)
    there = {state.name for state in await again.changed(0)}
    assert there == {f"p{number}" for number in range(8) if number != 3}
    assert len(await again.edits()) == 7
    await again.aclose()
