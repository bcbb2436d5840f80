"""What is made of each state that whole runs into a DuckDB file may leave when the power fails.

A life is a process under the recorder. ``Lives`` cuts the power at many places of it; in each
state that this may leave, the catalog is opened, what was promised is looked at, a run goes on to
its end, and the tables are compared with the source. The next life begins in one of them.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from catalog.records import Outcome
from catalog.sqlite.database import Tuning
from tests.crash.disk_recorder import (
    Event,
    Kind,
    RecordedDisk,
    Recorder,
    differs,
    events,
    keep_identity,
    write_out,
)
from tests.crash.duckdb_books import Store, left_over
from tests.crash.duckdb_life import FILE, Life, Session
from tests.crash.whole_books import Books
from tests.power_loss import Node

Forgets = Callable[[str, Path], bool]


@dataclass
class Report:
    """What became of some lives."""

    cuts: int = 0
    events: int = 0
    lost: list[str] = field(default_factory=list)


@dataclass
class Moment:
    """What the disk may be after it, what had been told until then, what the source had."""

    left: Node
    books: Books
    store: Store

    def twin(self) -> Moment:
        return Moment(self.left, copy.deepcopy(self.books), self.store.twin())

    def hear(self, told: bytes) -> None:
        """A mark of the recorded process."""
        what, it = pickle.loads(told)
        if what == "store":
            self.store = it
        else:
            getattr(self.books, what)(*it)


class Lives:
    """Lives of one folder, each from what the one before left when its power failed."""

    def __init__(
        self, folder: Path, seed: int, recorder: Recorder, source: type[Store] = Store
    ) -> None:
        self.report = Report()
        self.folder, self._log = folder / "world", folder / "log"
        self._recorder = recorder
        self._seed, self._chance = seed, random.Random(seed)
        self.start = Moment(Node({}), Books(), source(random.Random(seed)))
        self._boot = 0
        self.events: list[Event] = []
        self._places: tuple[Sequence[int], ...] = ()
        self._put(self.start.left)

    def record(self, runs: int) -> None:
        """A life of so many runs, with power all the time."""
        self._boot += 1
        seed = self._chance.randrange(1 << 30)
        life = Life(self.folder, self.start.store, self._boot, runs, seed)
        env = {**os.environ, **self._recorder.env(self.folder, self._log)}
        command = [sys.executable, "-m", "tests.crash.duckdb_life"]
        done = subprocess.run(
            command, input=pickle.dumps(life), env=env, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        self.events = list(events(self._log))
        self._log.unlink()
        self.report.events += len(self.events)
        # Anywhere, and as often where something happens to the database or in its folder, where it
        # is written to, and right before what was written is made durable.
        disk = RecordedDisk(self.folder, self.start.left)
        paths = [disk.play(event) for event in self.events]
        near = [n for n, path in enumerate(paths) if path and self._is_near(path)]
        writes = [n for n in near if self.events[n].kind is Kind.WRITE]
        syncs = [n - 1 for n in near if self.events[n].kind is Kind.SYNC and n]
        assert differs(disk.live(), self.folder) == []  # all that was done was recorded
        self._places = range(len(paths)), near, writes, syncs

    def _is_near(self, path: Path) -> bool:
        return path == self.folder or path.name.startswith(FILE)

    def cut(
        self, count: int, forgets: Forgets = lambda kind, path: False, enough: int = 1_000
    ) -> list[Moment]:
        """So many losses of power in the life recorded last, ``enough`` losses of data at most.

        Returns the moments that they left.
        """
        where = [self._chance.choice(self._places[n % 4]) for n in range(count)]
        disk = RecordedDisk(self.folder, self.start.left, forgets)
        now, moments, lost = self.start.twin(), [], self.report.lost
        enough += len(lost)
        for number, event in enumerate(self.events):
            disk.play(event)
            if event.kind is Kind.MARK:
                now.hear(event.data)
            for _ in range(where.count(number)):
                now.left = disk.lose(random.Random(self._chance.random()))
                moments.append(now.twin())
                self._check(now.twin(), f"event {number} of {len(self.events)}")
                if len(lost) >= enough:
                    return moments
        return moments

    def go_on(self, moment: Moment) -> None:
        """The next life begins with what was left at this moment."""
        self._boot_into(moment, Session.look)  # what happened is known now
        self.start = moment
        self._put(moment.left)

    def _check(self, moment: Moment, where: str) -> None:
        self.report.cuts += 1
        try:
            self._boot_into(moment, _catch_up)
            moment.store.check_rows(self.folder / FILE)
            assert left_over(self.folder / f"{FILE}.reconciler") == []
        except Exception as loss:
            place = f"seed {self._seed}, life {self._boot}, {where}"
            self.report.lost.append(f"{place}: {loss!r}")

    def _boot_into(self, moment: Moment, work: Callable[[Session], Any]) -> None:
        self._put(moment.left)
        session = Session(self.folder, self._boot + 1, moment.store, moment.books)
        anyio.run(session.live, work, Tuning())

    def _put(self, left: Node) -> None:
        write_out(left, self.folder)
        keep_identity(left, self.folder, FILE, f"{FILE}.reconciler/markers.json")


async def _catch_up(session: Session) -> None:
    """After the next boot."""
    await session.look()
    if session.store.orders % 2:
        session.store.grow()
    assert await session.run() is Outcome.SUCCEEDED  # ``country`` is always read


def live(
    folder: Path,
    seed: int,
    recorder: Recorder,
    source: type[Store],
    *,
    lives: int,
    runs: int,
    cuts: int,
) -> Report:
    """So many lives, with so many losses of power in each."""
    world = Lives(folder / str(seed), seed, recorder, source)
    for _ in range(lives):
        world.record(runs)
        world.go_on(random.Random(seed).choice(world.cut(cuts)))
    shutil.rmtree(folder / str(seed))
    return world.report
