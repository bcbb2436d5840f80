"""One world from a seed, with the few seams of the code turned to it."""

from __future__ import annotations

import gc
import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from reconciler.run import stream
from tests.simulation.story import Story
from tests.simulation.vtime import START_US, World, Wrong


class _Time:
    """The module ``time`` as a run in this world sees it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return 1000.0 + self._world.now

    def time_ns(self) -> int:
        return START_US * 1000 + round(self._world.now * 1e9)


@contextmanager
def seams(story: Story) -> Iterator[None]:
    module: Any = stream
    before = module.time, module.point
    module.time, module.point = _Time(story.world), story.point
    try:
        yield
    finally:
        module.time, module.point = before


def play(seed: int, days: float, plant: str, tell: Callable[[str], None] | None) -> str | None:
    """Let the world of ``seed`` run. What went wrong, and how to see it again; None: nothing."""
    random.seed(seed)
    gc.set_threshold(50_000, 20, 100)  # a world is all garbage in the end
    began = time.process_time()
    story = Story(seed, days)
    story.world.trace = tell
    try:
        with seams(story):
            story.run()
            story.world.bury()
    except Wrong as wrong:
        if tell:
            traceback.print_exc()
        return f"{wrong}\n  again: python -m tests.simulation --seed {seed} --verbose"
    except Exception:
        return (
            f"{traceback.format_exc()}\n  again: python -m tests.simulation --seed {seed} --verbose"
        )
    if tell is not None:
        tell(f"{time.process_time() - began:.3f} s of processor time, {story.world.steps} steps")
    return None
