"""One world from a seed, with the few seams of the code turned to it."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from reconciler.connectors.sources import file_read, file_set, files
from reconciler.daemon import retention
from reconciler.run import execute, stream
from tests.simulation import folder
from tests.simulation.story import Story
from tests.simulation.vtime import START_US, World
from tests.simulation.workers import Lanes, SimWorker
from tests.simulation.wrong import Rule, Wrong


class _Time:
    """The module ``time`` as a run in this world sees it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return 1000.0 + self._world.now

    def time_ns(self) -> int:
        return START_US * 1000 + round(self._world.now * 1e9)


class _WallTime:
    """The module ``time`` as the source of files sees it: what the worker's machine shows."""

    def time_ns(self) -> int:
        assert SimWorker.current is not None
        return SimWorker.current.clock.wall_us() * 1000


class _NoLogs:
    """The module ``runlogs``: runs print nothing here."""

    def forget_before(self, state_dir: Path, moment: float) -> None:
        """There are no files."""


@contextmanager
def seams(story: Story) -> Iterator[None]:
    """Turn the few seams of the code to this world: its time, its named points, no files."""
    with (
        patch.object(stream, "time", _Time(story.world)),
        patch.object(stream, "point", story.point),
        patch.object(execute, "threading", Lanes),
        patch.object(retention, "runlogs", _NoLogs()),
        patch.object(file_set, "time", _WallTime()),
        patch.object(file_read, "os", folder.OperatingSystem),
        patch.object(files, "listing", folder.listing),
        patch.object(files, "refuse_unseen", lambda *_: None),
        patch.object(files, "unlisted", lambda *_: []),
    ):
        yield


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong in a world."""

    seed: int
    rule: Rule | None
    """The rule that was broken; None: the world itself met a fault."""
    text: str

    def __str__(self) -> str:
        again = f"python -m tests.simulation --seed {self.seed} --verbose"
        return f"seed {self.seed}: {self.text}\n  again: {again}"


def play(seed: int, days: float = 1.0, tell: Callable[[str], None] | None = None) -> Problem | None:
    """Let the world of ``seed`` run. What went wrong; None: nothing."""
    random.seed(seed)
    began = time.process_time()
    story = Story(seed, days)
    story.world.trace = tell
    try:
        with seams(story):
            try:
                story.run()
            finally:
                story.close()
    except Wrong as wrong:
        if tell:
            traceback.print_exc()
        return Problem(seed, wrong.rule, str(wrong))
    except Exception:
        return Problem(seed, None, traceback.format_exc())
    if tell is not None:
        tell(f"{time.process_time() - began:.3f} s of processor time, {story.world.steps} steps")
    return None
