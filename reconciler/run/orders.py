"""How a worker is told of a connection, be it for a run, ``check`` or ``discover``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from reconciler.config.desired import Connection, Project
from reconciler.run.messages import ConnectionOrder

Secrets: TypeAlias = Callable[[Connection], Mapping[str, str]]
"""Reads a connection's secrets, by option name."""


def connection_order(project: Project, name: str, secrets: Secrets) -> ConnectionOrder:
    """The project's connection ``name`` with its secrets resolved.

    A ``history`` connection gets the project's catalog as its ``url``. Raises ``KeyError`` for a
    name that the project does not have, and whatever ``secrets`` raises for a missing secret.
    """
    connection = project.connections[name]
    options = dict(connection.options)
    if connection.connector == "history":  # the one source that is this project itself
        options["url"] = project.catalog
    return ConnectionOrder(name, connection.connector, options, secrets(connection))
