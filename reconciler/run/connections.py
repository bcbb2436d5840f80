"""Connectors kept open between a worker's runs, so that a run with nothing new costs no set-up."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from reconciler.connectors import registry
from reconciler.connectors.ports import Destination, Secrets, Source
from reconciler.run.messages import ConnectionOrder

_KEEP_OPEN = 8
IDLE = 60.0
"""Seconds. A connection that nobody used for so long is closed: while it is there a database cannot
be dropped, a disk cannot be unmounted, and the space of a file that was replaced is not free."""
Connector = TypeVar("Connector", Source, Destination)


@dataclass(frozen=True, slots=True)
class _Kept(Generic[Connector]):
    order: ConnectionOrder
    place: str
    """Where its path led when it was opened."""
    connector: Connector
    used_at: float
    """Monotonic: when a run began to use it."""


class Connections:
    """Open sources and destinations of one thread; connectors are not shared between threads."""

    def __init__(self) -> None:
        self._sources: OrderedDict[str, _Kept[Source]] = OrderedDict()
        self._destinations: OrderedDict[str, _Kept[Destination]] = OrderedDict()
        self._lanes: list[Connections] = []

    def lane(self, number: int) -> Connections:
        """The connections of the worker's thread ``number``; lane 0 is this one."""
        if number == 0:
            return self
        while len(self._lanes) < number:
            self._lanes.append(Connections())
        return self._lanes[number - 1]

    def source(self, order: ConnectionOrder) -> Source:
        """The source, open. Opened anew when its options or a secret changed."""
        found = _reuse(self._sources, order)
        if found is None:
            secrets, place = Secrets(order.secrets), _place(order)
            found = registry.open_source(order.name, order.connector, order.options, secrets)
            self._sources[order.name] = _Kept(order, place, found, time.monotonic())
        return found

    def destination(self, order: ConnectionOrder) -> Destination:
        """The destination, open. Opened anew when its options or a secret changed, or a link in
        its path; within a run it is one and the same.
        """
        found = _reuse(self._destinations, order)
        if found is None:
            place = _place(order)
            found = registry.open_destination(order.name, order.connector, order.options)
            self._destinations[order.name] = _Kept(order, place, found, time.monotonic())
        return found

    def forget(self, order: ConnectionOrder) -> None:
        """Close what is open under this name: after an error it may be in any state."""
        for kept in (self._sources, self._destinations):
            entry = kept.pop(order.name, None)
            if entry is not None:
                entry.connector.close()

    def close_unused(self) -> None:
        """Between two runs: close what nobody used for ``IDLE`` seconds."""
        before = time.monotonic() - IDLE
        for kept in (self._sources, self._destinations):
            for name in [name for name, entry in kept.items() if entry.used_at < before]:
                kept.pop(name).connector.close()
        for lane in self._lanes:
            lane.close_unused()


def _place(order: ConnectionOrder) -> str:
    """Where a destination's path leads now: the order is the same when a link in it is another."""
    path = order.options.get("path")
    return os.path.realpath(str(path)) if path else ""


def _reuse(kept: OrderedDict[str, _Kept[Connector]], order: ConnectionOrder) -> Connector | None:
    entry = kept.get(order.name)
    if entry is not None:
        if entry.order is order:  # of the same run
            return entry.connector
        if entry.order == order and entry.place == _place(order):
            kept[order.name] = replace(entry, order=order, used_at=time.monotonic())
            kept.move_to_end(order.name)
            return entry.connector
        kept.pop(order.name).connector.close()
    if len(kept) >= _KEEP_OPEN:
        kept.popitem(last=False)[1].connector.close()
    return None
