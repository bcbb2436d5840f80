"""What a database says of one table, and what differs between databases, as records and a port."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from catalog.records import Micros
from reconciler.config.desired import StreamSettings
from reconciler.connectors.arrow import Misfits
from reconciler.connectors.ports import Finding
from reconciler.connectors.sources.session import Session

CURSOR = "__reconciler_cursor"
"""The stored form of the cursor's value, where the column itself was parsed."""
MISFIT = "__reconciler_misfit"
"""Not NULL: why the database's value has no place in its column."""
QUERY = "the query"
"""The identity of a relation that is no table or view."""


def quote(name: str) -> str:
    """An identifier, always quoted."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(value: str) -> str:
    """A text literal."""
    return "'" + value.replace("'", "''") + "'"


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    """Canonical word, before ``columns`` of the config."""
    select: str
    """The expression that yields it."""
    tag: str = ""
    """Of its positions, if it can be a cursor; else empty."""
    why_not: str = ""
    """Why it cannot."""
    nullable: bool = True
    note: str = ""
    plain: str = ""
    """The same, where every value is known to be of the declared type."""


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, a view or a query, as it stands now."""

    source: str
    """What follows FROM."""
    identity: str
    """Names it in a cursor's definition."""
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    unique: tuple[frozenset[str], ...] = ()
    """Columns in all of which no two rows are the same, by an index beside the key's. Where one of
    them is NULL there may be several; such rows cannot be merged on it in any case."""
    indexed: frozenset[str] = frozenset()
    """Columns that lead an index in the order in which positions are compared."""
    indexable: bool = True
    """False: an index cannot be made on it, as on a view or on another server's table."""
    rows: int | None = None
    """About how many; None: nobody knows without counting."""
    made: str = ""
    """Another one where the table was made anew, or the view is another one; empty: not known."""
    notes: tuple[str, ...] = ()
    """What of its rows a read may not see."""
    misfit: str = ""
    """An expression for ``MISFIT``; empty: every value fits its column."""

    def column(self, name: str) -> Column | None:
        return next((c for c in self.columns if c.name == name), None)


@dataclass(frozen=True, slots=True)
class Bound:
    """Where a read ends, fixed before it begins (C1). ``value`` None: nothing can be read."""

    value: Any
    far: str = ""
    """A condition on the column that finds values no clock has reached (C4)."""
    notes: tuple[str, ...] = ()
    stuck: str = ""
    """What holds the bound back for longer than ``max_wait``: no news then is a failure."""
    clock: Any = None
    """What the database's clock read, as a value of the column, where the bound is by a clock."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What ``bound`` needs to know of a read."""

    relation: Relation
    column: Column
    settings: StreamSettings
    stopped: Callable[[], bool]
    last: Any = None
    """Where the cursor stands; None: nowhere yet."""


@dataclass(frozen=True, slots=True)
class Query:
    """One statement of a read."""

    relation: Relation
    column: Column | None
    """The cursor's, if there is one."""
    where: str = ""
    ordered: bool = False
    """By the cursor's column, ascending."""


class Dialect(Protocol):
    """One database. Statements run on ``session`` in the order of C1: bound, ``begin``, read."""

    session: Session

    def identity(self) -> str:
        """Which database this is: where it lives and its name, no user and no secret."""
        ...

    def streams(self, *, views: bool) -> list[str]: ...

    def relation(self, stream: str, settings: StreamSettings) -> Relation:
        """Raises ``ConnectorError`` (permanent), with the nearest names, if there is none."""
        ...

    def bound(self, wanted: Wanted) -> Bound: ...

    def begin(self) -> None:
        """Open the snapshot that the rest of the read sees."""
        ...

    def is_as_seen(self, relation: Relation, where: str) -> bool:
        """Whether what the snapshot shows of these rows is what was there when it was taken, in the
        columns that the table had when it was looked at. Once true it stays true."""
        ...

    def end(self) -> None: ...

    def operand(self, column: Column) -> str:
        """The column as it is compared and ordered."""
        ...

    def closed(self, _column: Column, /) -> bool:
        """The bound itself is read: ``(cursor, bound]``; else ``[cursor, bound)``."""
        ...

    def literal(self, column: Column, value: Any) -> str: ...

    def batches(self, query: Query) -> Generator[tuple[pa.RecordBatch, Misfits], None, None]:
        """All columns, then ``CURSOR`` and ``MISFIT`` where needed; rows with no right value."""
        ...

    def behind(self, column: Column, value: Any, lookback: float) -> Any:
        """The value that lies ``lookback`` before this one."""
        ...

    def data_at(self, column: Column, value: Any) -> Micros | None:
        """A cursor's value as an instant, if it is a time."""
        ...

    def check(self) -> list[Finding]:
        """Version, rights, and what they mean for the bound."""
        ...


def misfits_of(batch: pa.RecordBatch) -> Misfits:
    """Row to reason, out of the ``MISFIT`` column."""
    index = batch.schema.get_field_index(MISFIT)
    if index < 0 or batch.column(index).null_count == batch.num_rows:
        return {}
    return {i: text for i, text in enumerate(batch.column(index).to_pylist()) if text is not None}
