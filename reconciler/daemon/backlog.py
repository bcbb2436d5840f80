"""Runs that are due and wait for room: requests of persons first, then the longest due."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from catalog.records import Candidate, Micros, TriggerKind

_SLACK = 64


def _entry(candidate: Candidate, due: Micros) -> tuple[bool, Micros, str]:
    asked = candidate.trigger.kind is TriggerKind.REQUEST
    return not asked, due, candidate.pipeline


class Backlog:
    """Candidates by pipeline, each at most once."""

    def __init__(self) -> None:
        self._candidates: dict[str, tuple[Candidate, Micros]] = {}
        self._queue: list[tuple[bool, Micros, str]] = []

    def __len__(self) -> int:
        return len(self._candidates)

    def put(self, candidate: Candidate, due: Micros) -> None:
        """Add, or replace the pipeline's candidate; it keeps the place it has."""
        name = candidate.pipeline
        if name in self._candidates:
            due = min(due, self._candidates[name][1])
        self._candidates[name] = (candidate, due)
        heapq.heappush(self._queue, _entry(candidate, due))
        if len(self._queue) > 2 * len(self._candidates) + _SLACK:  # most were put again meanwhile
            self._queue = [_entry(*found) for found in self._candidates.values()]
            heapq.heapify(self._queue)

    def drop(self, name: str) -> None:
        """The pipeline is not due any more."""
        self._candidates.pop(name, None)

    def clear(self) -> None:
        self._candidates.clear()
        self._queue.clear()

    def take(self, room: int, fits: Callable[[Candidate], bool]) -> list[tuple[Candidate, Micros]]:
        """Remove and return up to ``room`` candidates that fit, each with when it was due."""
        taken: list[tuple[Candidate, Micros]] = []
        aside: list[tuple[bool, Micros, str]] = []
        while self._queue and len(taken) < room:
            entry = heapq.heappop(self._queue)
            found = self._candidates.get(entry[2])
            if found is None:
                continue
            if fits(found[0]):
                del self._candidates[entry[2]]
                taken.append(found)
            else:
                aside.append(entry)
        for entry in aside:
            heapq.heappush(self._queue, entry)
        return taken
