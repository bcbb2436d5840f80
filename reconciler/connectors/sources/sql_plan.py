"""What one read of a table will be, decided before its first row (C1 to C5)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from catalog import position
from catalog.records import Cursor, CursorKind, ErrorClass, HoldKind
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors import arrow
from reconciler.connectors.ports import ConnectorError, NeedsAnswer, ReadRequest
from reconciler.connectors.sources.definition import counts, definition, go_on
from reconciler.connectors.sources.nearest import no_such
from reconciler.connectors.sources.relation import (
    Bound,
    Column,
    Dialect,
    Query,
    Relation,
    Wanted,
    quote,
)

_ANEW = (
    "the table was made anew (or its database was), or the view has another definition, since the "
    "cursor began: rows that have come since with a place before the cursor are not read until "
    "`refresh`"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A read with its snapshot open (unless it has no news)."""

    relation: Relation
    column: Column | None
    key: tuple[str, ...]
    schema: pa.Schema
    whole: bool
    """All rows are read, and take the place of those that arrived before, or are merged."""
    ordered: bool
    """By the cursor's column, so that a commit may stand between any two of its values."""
    definition: str
    """Of the cursor (C4)."""
    cursor: Cursor | None
    """Where to go on once all is committed."""
    closed: bool
    """The row at a position is read by the time the cursor stands there; else it is the next."""
    since: Cursor | None = None
    """Where the read before this one ended."""
    has_news: bool = True
    idle: str = ""
    """Why nothing is new, where that may surprise."""
    queries: tuple[Query, ...] = ()
    refuse_null_key: bool = False
    notes: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    stopped: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class _Range:
    """The rows of one read, as conditions on the cursor column."""

    read: str
    news: str
    empty: bool


def fitting(
    dialect: Dialect, relation: Relation, settings: StreamSettings
) -> tuple[Column | None, tuple[str, ...]]:
    """The cursor's column, if it is read by one, and the key.

    Raises ``ConnectorError`` (permanent) where the settings do not fit the relation.
    """
    column = _cursor_column(relation, settings)
    key = settings.key or relation.key
    _refuse_misfit(dialect, relation, column, settings, key)
    return column, key


def _cursor_column(relation: Relation, settings: StreamSettings) -> Column | None:
    """The first of the cursors named that the relation has; None: it is read as a whole.

    Raises ``ConnectorError`` (permanent) for one that has no exact order (C4).
    """
    if settings.mode is Mode.REPLACE:
        return None
    found = next((c for c in map(relation.column, settings.cursor) if c is not None), None)
    if found is not None and not found.tag:
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"{relation.identity}: {found.name!r} cannot be a cursor: {found.why_not}",
        )
    return found


def plan(dialect: Dialect, request: ReadRequest) -> Plan:
    """Fix the bound, open the snapshot, look for news. Raises as ``Source.read`` says."""
    settings = request.settings
    relation = dialect.relation(request.stream, settings)
    column, key = fitting(dialect, relation, settings)
    notes = relation.notes + tuple(
        c.note for c in relation.columns if c.note and not _overridden(c, settings)
    )
    notes += told_apart(relation, settings)
    closed = column is not None and dialect.closed(column)
    body = definition(dialect.identity(), relation, column, key, settings, closed=closed)
    replaced = settings.mode is Mode.REPLACE
    if request.cursor is not None and counts(request.cursor, replaced=replaced):
        tag = "" if column is None else column.tag
        body, anew = go_on(request.stream, request.cursor, body, CursorKind.MONOTONIC, tag)
        notes += (_ANEW,) if anew else ()
    base = Plan(
        relation=relation,
        column=column,
        key=key,
        schema=_schema(relation, settings),
        whole=column is None or request.refresh,
        ordered=column is not None and column.name in relation.indexed and not request.refresh,
        definition=body,
        cursor=None,
        closed=closed,
        since=request.cursor,
        refuse_null_key=settings.mode is Mode.MERGE,
        stopped=request.stopped,
    )
    if column is None:
        return _whole(dialect, base, notes + _kept(request))
    return _incremental(dialect, base, column, request, notes)


def told_apart(relation: Relation, settings: StreamSettings) -> tuple[str, ...]:
    """What is assumed of a key that the config names: it may stand for several rows."""
    if settings.mode is not Mode.MERGE or not settings.key:
        return ()
    declared = (frozenset(relation.key), *relation.unique)
    if any(columns and columns <= set(settings.key) for columns in declared):
        return ()
    own, key = ", ".join(relation.key), ", ".join(settings.key)
    none = "no primary key or unique index says that there are none"
    its = f"the primary key is {own}" if own else none
    return (f"rows that have the same {key} become one: that is `key`, and {its}",)


def _overridden(column: Column, settings: StreamSettings) -> bool:
    return any(name == column.name for name, _ in settings.columns)


def _schema(relation: Relation, settings: StreamSettings) -> pa.Schema:
    words = {c.name: c.type for c in relation.columns} | dict(settings.columns)
    return pa.schema([pa.field(c.name, arrow.arrow_type(words[c.name])) for c in relation.columns])


def _refuse_misfit(
    dialect: Dialect,
    relation: Relation,
    column: Column | None,
    settings: StreamSettings,
    key: tuple[str, ...],
) -> None:
    known, where = [c.name for c in relation.columns], dialect.session.name
    for name in (*key, *(name for name, _ in settings.columns)):
        if name not in known:
            raise no_such(f"column of {relation.identity}", name, known, where)
    for name, word in settings.columns:
        try:
            arrow.arrow_type(word)
        except ValueError as error:
            raise ConnectorError(
                ErrorClass.PERMANENT, f"{relation.identity}: columns: {name}: {error}"
            ) from None
    if settings.mode is not Mode.APPEND:
        return
    if column is None:
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"{relation.identity} has none of the cursor columns "
            f"{', '.join(map(repr, settings.cursor)) or '(none is named)'}: with mode append each "
            "run would add the whole table again; name a cursor, or use mode replace or merge",
        )
    if settings.lookback or settings.null_cursor == "reread":
        which = "lookback" if settings.lookback else 'null_cursor = "reread"'
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"{relation.identity}: {which} reads rows again, which mode append would double; "
            "use mode merge",
        )


def _whole(dialect: Dialect, base: Plan, notes: tuple[str, ...]) -> Plan:
    dialect.begin()
    _refuse_altered(dialect, base.relation, "")
    now = position.encode("snapshot", time.time_ns() // 1_000)
    return replace(
        base,
        cursor=Cursor(CursorKind.SNAPSHOT_ID, base.definition, now),
        queries=(Query(base.relation, None),),
        notes=notes,
    )


def _kept(request: ReadRequest) -> tuple[str, ...]:
    if request.refresh or request.settings.mode is not Mode.MERGE:
        return ()
    return (
        "the whole table is read each time and merged: rows that are deleted at the source stay; "
        'mode = "replace" takes them away',
    )


def _incremental(
    dialect: Dialect, base: Plan, column: Column, request: ReadRequest, notes: tuple[str, ...]
) -> Plan:
    settings = request.settings
    last = None if request.cursor is None else position.decode(request.cursor.position)
    bound = dialect.bound(Wanted(base.relation, column, settings, request.stopped, last))
    span = _range(dialect, column, settings, last, bound)
    if request.refresh and settings.mode is Mode.MERGE and not span.empty:
        span = _all_of_it(column, bound)
    dialect.begin()
    nulls, far, news = _survey(dialect, base, column, bound, span)
    if nulls and settings.null_cursor == "hold":
        raise NeedsAnswer(
            HoldKind.NULL_CURSOR,
            f"{base.relation.identity}: {nulls} rows or more have no value in the cursor column "
            f"{column.name!r}, so no run would ever read them: fill them, or set "
            '`null_cursor` to "skip" or (with mode merge) "reread"; then `retry`',
            ("retry",),
        )
    reread = bool(nulls) and settings.null_cursor == "reread"
    queries = []
    if news:
        queries.append(Query(base.relation, column, f"WHERE {span.read}", base.ordered))
    if reread:
        queries.append(Query(base.relation, column, f"WHERE {quote(column.name)} IS NULL"))
    for where in [query.where for query in queries] or ([""] if base.whole else []):
        _refuse_altered(dialect, base.relation, where)
    idle = ""
    if not queries:
        idle = _fallen_back(dialect, base, column, last, bound)
        dialect.end()
        if bound.stuck:
            raise ConnectorError(
                ErrorClass.TRANSIENT,
                f"{base.relation.identity}: nothing can be read: held back for longer than "
                f"max_wait ({settings.max_wait:g} s) by {bound.stuck}; end it, or have it commit",
            )
    cursor = request.cursor
    if bound.value is not None and (last is None or bound.value > last):
        place = position.encode(column.tag, bound.value)
        cursor = Cursor(CursorKind.MONOTONIC, base.definition, place)
    return replace(
        base,
        cursor=cursor,
        has_news=news or reread,
        idle=idle,
        queries=tuple(queries),
        notes=notes + bound.notes + _warnings(column, base, far) + ((idle,) if idle else ()),
        counts={"null_cursor": 0 if reread else nulls, "beyond_bound": far},
    )


def _refuse_altered(dialect: Dialect, relation: Relation, where: str) -> None:
    if not dialect.is_as_seen(relation, where):
        raise ConnectorError(
            ErrorClass.TRANSIENT,
            f"{relation.identity} was altered, emptied or written anew while its read began: the "
            "next one sees it as it is then",
        )


def _fallen_back(dialect: Dialect, base: Plan, column: Column, last: Any, bound: Bound) -> str:
    """A clock that was set back before the cursor, or a table that ends before it: restored,
    emptied or made anew (rule 8). Empty: neither.
    """
    if last is None:
        return ""
    if not dialect.closed(column):  # the table may well end before it
        return "" if bound.clock is None or bound.clock >= last else _set_back(column, last, bound)
    if bound.value is not None and bound.value >= last:
        return ""
    here = f"{dialect.operand(column)} >= {dialect.literal(column, last)}"
    if dialect.session.rows(f"SELECT 1 FROM {base.relation.source} WHERE {here} LIMIT 1"):
        return ""
    return (
        f"nothing new: no row's {column.name!r} reaches the cursor, {last}, any more. If the "
        "newest rows were deleted, all is well; if the table was restored or made anew, rows up "
        "to there are not read until `refresh`"
    )


def _set_back(column: Column, last: Any, bound: Bound) -> str:
    now, at = (position.encode(column.tag, value).text for value in (bound.clock, last))
    return (
        f"nothing new: the database's clock, {now}, has not reached the cursor, {at}. Rows that "
        "are given a time before the cursor now are not read until `refresh`: see whether the "
        "clock was set back, or another server answers in its place"
    )


def _warnings(column: Column, base: Plan, far: int) -> tuple[str, ...]:
    notes = ["deletes, and rows whose key changed, are not seen by a cursor"]
    if column.name in base.key:
        notes.append(
            f"rows that change are not seen either: {column.name!r} names the row and stays; a "
            'column that rises with each change, or mode = "replace", shows them'
        )
    if far:
        notes.append(
            f"{far} rows have a {column.name!r} that lies in the future or is no place in an "
            "order (infinity, NaN): they are left out and do not move the cursor"
        )
    if not base.ordered and column.name not in base.relation.indexed:
        notes.append(
            f"no index leads with {column.name!r}: each run scans the table, in one commit"
        )
    return tuple(notes)


def _range(
    dialect: Dialect, column: Column, settings: StreamSettings, last: Any, bound: Bound
) -> _Range:
    name, closed = dialect.operand(column), dialect.closed(column)
    if bound.value is None or (last is not None and bound.value <= last):
        return _Range("false", "false", empty=True)
    upper = f"{name} {'<=' if closed else '<'} {dialect.literal(column, bound.value)}"
    if last is None:
        return _Range(upper, upper, empty=False)
    above = ">" if closed else ">="
    news = f"{name} {above} {dialect.literal(column, last)} AND {upper}"
    if not settings.lookback:
        return _Range(news, news, empty=False)
    start = dialect.literal(column, dialect.behind(column, last, settings.lookback))
    return _Range(f"{name} {above} {start} AND {upper}", news, empty=False)


def _all_of_it(column: Column, bound: Bound) -> _Range:
    """What takes the place of all that was merged has the rows beyond the bound too, or those that
    changed just now would be gone until the next run, which reads them again."""
    rows = f"NOT ({bound.far})" if bound.far else f"{quote(column.name)} IS NOT NULL"
    return _Range(rows, rows, empty=False)


def _survey(
    dialect: Dialect, base: Plan, column: Column, bound: Bound, span: _Range
) -> tuple[int, int, bool]:
    """NULL cursors, values no clock has reached, and whether there are new rows.

    With an index three small look-ups; without one a single scan.
    """
    source, session = base.relation.source, dialect.session
    null, far = f"{quote(column.name)} IS NULL", bound.far or "false"
    if column.name not in base.relation.indexed:
        found = session.rows(
            f"SELECT count(*) FILTER (WHERE {null}), count(*) FILTER (WHERE {far}), "
            f"count(*) FILTER (WHERE {span.news}) FROM {source}"
        )[0]
        return int(found[0]), int(found[1]), bool(found[2])
    # Also where the column says NOT NULL: PostgreSQL has ways to leave older rows, and those of
    # tables that inherit, without a value.
    nulls = session.value(f"SELECT count(*) FROM {source} WHERE {null}")
    beyond = session.value(f"SELECT count(*) FROM {source} WHERE {far}") if bound.far else 0
    news = not span.empty and bool(
        session.rows(f"SELECT 1 FROM {source} WHERE {span.news} LIMIT 1")
    )
    return int(nulls), int(beyond), news
