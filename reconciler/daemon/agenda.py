"""When to look at which pipeline: the loop's cost follows what is due, not what exists."""

from __future__ import annotations

import heapq

from catalog.records import Micros

_SLACK = 64


class Agenda:
    """The next moment at which each pipeline is worth a look.

    A look is harmless: the loop reads the current state and decides anew (level-triggered), so an
    entry may be too early, but never missing.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Micros, str]] = []
        self._when: dict[str, Micros] = {}

    def look(self, name: str, when: Micros) -> None:
        """Look at ``name`` at ``when``, or earlier if that was agreed already."""
        known = self._when.get(name)
        if known is None or when < known:
            self._when[name] = when
            heapq.heappush(self._heap, (when, name))
            if len(self._heap) > 2 * len(self._when) + _SLACK:
                # Most were agreed again meanwhile; those of a yearly schedule stay for a year.
                self._heap = [(when, name) for name, when in self._when.items()]
                heapq.heapify(self._heap)

    def take_due(self, now: Micros, limit: int) -> list[str]:
        """Remove and return the names due, earliest first, ``limit`` at most."""
        names: list[str] = []
        while self._heap and self._heap[0][0] <= now and len(names) < limit:
            when, name = heapq.heappop(self._heap)
            if self._when.get(name) == when:
                del self._when[name]
                names.append(name)
        return names

    def next(self) -> Micros | None:
        """The earliest moment agreed; None: nothing is."""
        while self._heap:
            when, name = self._heap[0]
            if self._when.get(name) == when:
                return when
            heapq.heappop(self._heap)
        return None
