"""The tables of the config file as pydantic models: types, defaults and a sentence for each key.

One table is checked by itself here. What two tables have to do with each other is for
``rules`` and ``resolve``. Descriptions are what editors show, from the JSON Schema.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field

from reconciler.config.values import (
    Address,
    Character,
    Columns,
    Encoding,
    Filled,
    Keep,
    MaxRuns,
    Name,
    Names,
    Partitions,
    Patterns,
    PlacedPath,
    Quote,
    ScheduleText,
    SchemaName,
    Seconds,
    Secret,
    SourceUrl,
    Span,
    Strings,
    TableName,
    Timeout,
    Timezone,
    TypeWord,
)


class Table(BaseModel):
    """A table of the file: nothing is coerced, nothing unknown is passed over."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, defer_build=True, hide_input_in_errors=True
    )


# -- streams -------------------------------------------------------------------------------------


class FormatTable(Table):
    """How files are read."""

    type: Literal["auto", "csv", "jsonl", "parquet"] | None = Field(
        default=None, description="Kind of file; auto tells it by the name's ending."
    )
    delimiter: Character | None = Field(
        default=None, description="What stands between two values of a csv line."
    )
    quote: Quote | None = Field(
        default=None, description="What a csv value may be wrapped in; empty: nothing."
    )
    header: bool | None = Field(default=None, description="The first csv line names the columns.")
    encoding: Encoding | None = Field(default=None, description="Encoding of csv and jsonl files.")
    null: Strings | None = Field(
        default=None, description="Texts of a csv value that mean: no value."
    )


class SchemaChangesTable(Table):
    """The answer to each kind of schema change."""

    added: Literal["add", "ignore", "hold"] | None = Field(
        default=None, description="A new column."
    )
    widened: Literal["widen", "hold", "new_column", "reject"] | None = Field(
        default=None, description="A type that holds all old values and more."
    )
    dropped: Literal["keep", "hold"] | None = Field(
        default=None, description="A column that is gone."
    )
    narrowed: Literal["hold", "new_column", "reject", "keep"] | None = Field(
        default=None, description="A type that holds less; keep casts values back to the old type."
    )
    retyped: Literal["hold", "new_column", "reject"] | None = Field(
        default=None, description="Another type altogether."
    )


class StreamKeys(Table):
    """Keys that may stand in a stream, in a pipeline for all its streams, and in [defaults]."""

    mode: Literal["merge", "append", "replace"] | None = Field(
        default=None, description="How new rows meet those at the destination."
    )
    cursor: Columns | None = Field(
        default=None,
        description="Columns to read by: the first that the table has; empty: whole table.",
    )
    key: Columns | None = Field(
        default=None, description="Columns that name a row; the database's primary key without it."
    )
    null_cursor: Literal["hold", "skip", "reread"] | None = Field(
        default=None, description="What becomes of rows whose cursor column is NULL."
    )
    changed: Literal["hold", "reread"] | None = Field(
        default=None, description="What a file means that was read and changed afterwards."
    )
    lookback: Span | None = Field(
        default=None,
        description="Read again so far behind the cursor: a duration, or a whole number.",
    )
    settle: Seconds | None = Field(
        default=None, description="Stay so far behind the clock; what suits the source without it."
    )
    max_wait: Seconds | None = Field(
        default=None, description="How long an open transaction may hold a read's bound back."
    )
    stamped_by: Literal["database", "application"] | None = Field(
        default=None, description="Who sets a timestamp cursor."
    )
    allow_empty: bool | None = Field(
        default=None, description="An empty table may replace one that had rows."
    )
    format: FormatTable | None = Field(default=None, description="How files are read.")
    columns: dict[str, TypeWord] | None = Field(
        default=None, description="Types of columns that the source does not say."
    )
    partition_by: Partitions | None = Field(
        default=None,
        description="Directories of a Parquet table: columns, or day(column) and the like.",
    )
    schema_changes: SchemaChangesTable | None = Field(
        default=None, description="The answer to each kind of schema change."
    )


class StreamTable(StreamKeys):
    """One stream, where it differs from its pipeline."""

    query: Filled | None = Field(
        default=None, description="A select statement to read in place of the table."
    )
    table: TableName | None = Field(
        default=None, description="The table's name at the destination; the stream's without it."
    )
    path: Filled | None = Field(
        default=None, description="Glob of the stream's files, under the source's path."
    )


# -- pipelines -----------------------------------------------------------------------------------


class RunKeys(StreamKeys):
    """Keys of a pipeline's runs that [defaults] may hold too."""

    parallel: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="Streams read at once in one run."
    )
    retries: Annotated[int, Field(ge=0, le=100)] | None = Field(
        default=None, description="Attempts after a transient failure; then the next trigger."
    )
    stall_timeout: Timeout | None = Field(
        default=None, description="A run that moves no bytes for so long is ended."
    )
    timeout: Timeout | None = Field(
        default=None, description="A run that takes so long in all is ended; none without it."
    )
    fresh_within: Timeout | None = Field(
        default=None, description="Data older than this is reported as stale."
    )
    catch_up: bool | None = Field(default=None, description="After downtime run once, at once.")


class DefaultsTable(RunKeys):
    """What holds for every pipeline that does not say otherwise."""


class PipelineTable(RunKeys):
    """One source connection to one destination connection."""

    source: str = Field(description="Name of the connection to read from.")
    destination: str = Field(description="Name of the connection to write to.")
    schedule: ScheduleText | None = Field(
        default=None,
        description="every 15m, or a cron line; without it only when asked, or after others.",
    )
    timezone: Timezone | None = Field(
        default=None, description="IANA time zone in which a cron line is read; UTC without it."
    )
    after: Names | None = Field(
        default=None, description="Pipelines: run when each of them has brought something new."
    )
    select: Patterns | None = Field(
        default=None, description="Globs over the source's streams; ! takes away."
    )
    renamed_from: Name | None = Field(
        default=None, description="The pipeline's name before: all that is known by it goes along."
    )
    streams: dict[str, StreamTable] = Field(
        default_factory=dict, description="Streams by name, where they differ from the pipeline."
    )


# -- connections ---------------------------------------------------------------------------------


class AnyConnection(Table):
    """What every connection has."""

    max_runs: MaxRuns | None = Field(
        default=None, description="Runs at once on this connection, over all pipelines."
    )


class SqlConnection(AnyConnection):
    """Source: a PostgreSQL or SQLite database."""

    connector: Literal["sql"] = Field(description="A PostgreSQL or SQLite database, to read.")
    url: SourceUrl = Field(
        description="postgresql://user@host:port/database without a password, or sqlite:///path."
    )
    password: Secret | None = Field(
        default=None, description="Where the password is: env:NAME, file:PATH or credential:NAME."
    )


class FilesConnection(AnyConnection):
    """Source: files in a directory."""

    connector: Literal["files"] = Field(description="Files in a directory, to read.")
    path: PlacedPath = Field(description="The directory.")


class HistoryConnection(AnyConnection):
    """Source: this project's own run history, as the stream "runs"."""

    connector: Literal["history"] = Field(description="This project's own run history, to read.")


class DuckdbConnection(AnyConnection):
    """Destination: a DuckDB file."""

    connector: Literal["duckdb"] = Field(description="A DuckDB file, to write.")
    path: PlacedPath = Field(description="The file; made when it is not there.")
    schema_: SchemaName = Field(
        default="main", alias="schema", description="Schema in which the tables are made."
    )


class ParquetConnection(AnyConnection):
    """Destination: a directory of Parquet tables."""

    connector: Literal["parquet"] = Field(description="A directory of Parquet tables, to write.")
    path: PlacedPath = Field(description="The directory; made when it is not there.")


ConnectionTable: TypeAlias = Annotated[
    SqlConnection | FilesConnection | HistoryConnection | DuckdbConnection | ParquetConnection,
    Discriminator("connector"),
]

# -- the rest ------------------------------------------------------------------------------------


class DaemonTable(Table):
    """The daemon itself."""

    listen: Address = Field(
        default="127.0.0.1:8790", description="Address of the page, the API, /metrics and /healthz."
    )
    max_runs: MaxRuns = Field(default=8, description="Runs at once in this daemon.")
    lease_ttl: Timeout = Field(
        default=30.0,
        json_schema_extra={"default": "30s"},
        description="How long a lease holds without being renewed.",
    )
    grace: Seconds = Field(
        default=20.0,
        json_schema_extra={"default": "20s"},
        description="How long runs may take to end after SIGTERM.",
    )


class RetentionTable(Table):
    """What the catalog keeps."""

    runs: Keep = Field(
        default=90 * 86400.0,
        json_schema_extra={"default": "90d"},
        description="How long the history of runs is kept.",
    )
