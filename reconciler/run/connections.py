"""Connectors kept open between a worker's runs, so that a run with nothing new costs no set-up."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

from reconciler.connectors import registry
from reconciler.connectors.ports import Destination, Secrets, Source
from reconciler.run.messages import ConnectionOrder

_KEEP_OPEN = 8
Connector = TypeVar("Connector", Source, Destination)


class Connections:
    """Open sources and destinations of one thread; connectors are not shared between threads."""

    def __init__(self) -> None:
        self._sources: OrderedDict[str, tuple[ConnectionOrder, Source]] = OrderedDict()
        self._destinations: OrderedDict[str, tuple[ConnectionOrder, Destination]] = OrderedDict()
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
            secrets = Secrets(order.secrets)
            found = registry.open_source(order.name, order.connector, order.options, secrets)
            self._sources[order.name] = (order, found)
        return found

    def destination(self, order: ConnectionOrder) -> Destination:
        """The destination, open. Opened anew when its options or a secret changed."""
        found = _reuse(self._destinations, order)
        if found is None:
            secrets = Secrets(order.secrets)
            found = registry.open_destination(order.name, order.connector, order.options, secrets)
            self._destinations[order.name] = (order, found)
        return found

    def forget(self, order: ConnectionOrder) -> None:
        """Close what is open under this name: after an error it may be in any state."""
        for kept in (self._sources, self._destinations):
            entry = kept.pop(order.name, None)
            if entry is not None:
                entry[1].close()


def _reuse(
    kept: OrderedDict[str, tuple[ConnectionOrder, Connector]], order: ConnectionOrder
) -> Connector | None:
    entry = kept.get(order.name)
    if entry is not None and entry[0] == order:
        kept.move_to_end(order.name)
        return entry[1]
    if entry is not None:
        kept.pop(order.name)[1].close()
    if len(kept) >= _KEEP_OPEN:
        kept.popitem(last=False)[1][1].close()
    return None
