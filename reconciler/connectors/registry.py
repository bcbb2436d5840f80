"""Which connector a connection's ``connector`` word stands for. Imports each when it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalog.records import ErrorClass
from reconciler.config.rules import DESTINATIONS, SOURCES
from reconciler.connectors.ports import ConnectorError, Destination, Secrets, Source


def open_source(
    connection_name: str, connector: str, options: Mapping[str, Any], secrets: Secrets
) -> Source:
    """The source behind a connection; connects at its first use.

    Raises ``ConnectorError`` (permanent) for a connector that cannot be read from.
    """
    if connector == "sql":
        from reconciler.connectors.sources.sql import open_sql

        return open_sql(connection_name, options, secrets)
    if connector == "files":
        from reconciler.connectors.sources.files import open_files

        return open_files(connection_name, options)
    if connector == "history":
        from reconciler.connectors.sources.history import open_history

        return open_history(connection_name, options)
    raise _unknown(connection_name, connector, "read from", SOURCES)


def open_destination(
    connection_name: str, connector: str, options: Mapping[str, Any]
) -> Destination:
    """The destination behind a connection.

    Raises ``ConnectorError`` (permanent) for a connector that cannot be written to.
    """
    if connector == "parquet":
        from reconciler.connectors.destinations.parquet import open_parquet

        return open_parquet(options)
    if connector == "duckdb":
        from reconciler.connectors.destinations.duckdb import open_duckdb

        return open_duckdb(options)
    raise _unknown(connection_name, connector, "written to", DESTINATIONS)


def _unknown(name: str, connector: str, use: str, known: tuple[str, ...]) -> ConnectorError:
    return ConnectorError(
        ErrorClass.PERMANENT,
        f"connection {name!r}: connector {connector!r} cannot be {use}; "
        f"those that can are {', '.join(known)}",
    )
