"""Desired state: what the config file says, resolved and checked, as immutable records.

Nothing here knows TOML, pydantic or files. Every duration is in seconds. Records are shared
between pipelines where they are equal, since there may be a hundred thousand of them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias


class Mode(StrEnum):
    """How a batch meets the rows already at the destination."""

    MERGE = "merge"
    """The newest row per key wins."""
    APPEND = "append"
    """Rows are added; no key is looked at."""
    REPLACE = "replace"
    """A read is the whole table; it takes the place of the one before."""


@dataclass(frozen=True, slots=True)
class Every:
    """At a fixed distance, counted from the epoch so that it does not drift; jittered by name."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron line of five fields, read in ``timezone`` (an IANA name)."""

    line: str
    timezone: str = "UTC"


Schedule: TypeAlias = Every | Cron
Answer: TypeAlias = Literal["add", "widen", "keep", "hold", "new_column", "reject", "ignore"]


@dataclass(frozen=True, slots=True)
class SchemaPolicy:
    """The answer to each kind of schema change."""

    added: Answer = "add"
    widened: Answer = "widen"
    dropped: Answer = "keep"
    narrowed: Answer = "hold"
    retyped: Answer = "hold"


@dataclass(frozen=True, slots=True)
class FileFormat:
    """How a file is read. ``auto``: by its name's ending."""

    type: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    delimiter: str = ","
    quote: str = '"'
    header: bool = True
    encoding: str = "utf-8"
    null: tuple[str, ...] = ("",)


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """All that one stream is read and written by, after pipeline and ``[defaults]``."""

    mode: Mode = Mode.MERGE
    cursor: tuple[str, ...] = ()
    """The first of these columns that the table has; none of them: the whole table is read."""
    key: tuple[str, ...] = ()
    """Empty: the database's primary key."""
    query: str = ""
    """A select statement in place of the table."""
    table: str = ""
    """Name at the destination; empty: ``table_name(stream)``."""
    path: str = ""
    """Glob under the source's path, for files."""
    format: FileFormat = FileFormat()
    columns: tuple[tuple[str, str], ...] = ()
    """Column types that the source does not say, in the words of ``reconciler.schema.model``."""
    partition_by: tuple[str, ...] = ()
    """Columns, or ``day(column)``, ``month(column)``, ``year(column)``."""
    null_cursor: Literal["hold", "skip", "reread"] = "hold"
    changed: Literal["hold", "reread"] = "hold"
    """What a file that was read and then changed means."""
    lookback: float = 0.0
    """Read again this far behind the cursor (seconds, or units of an integer cursor)."""
    settle: float | None = None
    """Stay this far behind the clock; None: what the source says is right (C1, C6)."""
    max_wait: float = 300.0
    """How long an open transaction may hold the bound back. Past it, one that has written nothing
    is passed over; one that has written fails the run, which names it (C1)."""
    stamped_by: Literal["database", "application"] = "database"
    """Who sets a timestamp cursor: decides what the bound may trust (C1)."""
    allow_empty: bool = False
    """A ``replace`` of a table that had rows by none is meant."""
    schema_changes: SchemaPolicy = SchemaPolicy()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One source connection to one destination connection."""

    name: str
    source: str
    destination: str
    schedule: Schedule | None = None
    """None: runs only when asked to, or ``after`` others."""
    catch_up: bool = True
    after: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    """Globs over stream names, ``!`` takes away; empty: exactly the streams named."""
    renamed_from: str = ""
    """The name that it had before; empty: always this one."""
    parallel: int = 1
    retries: int = 5
    stall_timeout: float = 600.0
    timeout: float | None = None
    fresh_within: float | None = None
    defaults: StreamSettings = StreamSettings()
    streams: Mapping[str, StreamSettings] = field(default_factory=dict)
    """Streams named in the config, each fully resolved."""

    def settings(self, stream: str) -> StreamSettings:
        """The settings of a stream, named in the config or found by ``select``."""
        return self.streams.get(stream, self.defaults)

    def reads(self, stream: str) -> bool:
        """Whether a stream that the source has is read: by its name, or by ``select``."""
        return stream in self.streams or selected(stream, self.select)


def selected(stream: str, select: Iterable[str]) -> bool:
    """Whether globs take a name; ``!`` takes away, and the last that matches decides."""
    taken = False
    for glob in select:
        if fnmatch.fnmatchcase(stream, glob.removeprefix("!")):
            taken = not glob.startswith("!")
    return taken


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where a secret is to be found; what it holds is read only when a run needs it."""

    scheme: Literal["env", "file", "credential"]
    name: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}"


@dataclass(frozen=True, slots=True)
class Connection:
    """A named place data comes from or goes to."""

    name: str
    connector: str
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Checked for the connector; paths are absolute. Never a secret."""
    secrets: Mapping[str, SecretRef] = field(default_factory=dict)
    max_runs: int | None = None


@dataclass(frozen=True, slots=True)
class Daemon:
    listen: str = "127.0.0.1:8790"
    max_runs: int = 8
    lease_ttl: float = 30.0
    grace: float = 20.0


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    runs: float = 90 * 86400.0


@dataclass(frozen=True, slots=True)
class Project:
    """The whole of one config file."""

    name: str
    state_dir: Path
    catalog: str
    """URL for ``catalog.open``."""
    catalog_limit: int = 10 * 1024**3
    daemon: Daemon = Daemon()
    retention: RetentionSettings = RetentionSettings()
    connections: Mapping[str, Connection] = field(default_factory=dict)
    pipelines: Mapping[str, Pipeline] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    """The files it was read from: the first, then those included."""
    include: tuple[str, ...] = ()
    """Globs, absolute, of the files that are included: a new one may come to match."""


DEFAULT_SCHEMAS = ("public.", "main.", "dbo.")


def table_name(stream: str) -> str:
    """The destination's table for a stream: the default schema's name is dropped, any other dot
    becomes two underscores (``public.country`` is ``country``, ``sales.order`` ``sales__order``).
    """
    for prefix in DEFAULT_SCHEMAS:
        if stream.startswith(prefix):
            stream = stream.removeprefix(prefix)
            break
    return stream.replace(".", "__")


def fold(name: str) -> str:
    """As DuckDB compares names: without regard to the case of ASCII letters."""
    return "".join(c.lower() if c.isascii() else c for c in name)
