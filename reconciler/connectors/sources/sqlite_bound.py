"""The bound of a read from SQLite, fixed before its snapshot is opened (C1, C2)."""

from __future__ import annotations

import math
import re
from typing import Any

from catalog.records import ErrorClass
from reconciler.config.desired import StreamSettings
from reconciler.connectors.ports import ConnectorError
from reconciler.connectors.sources import moments
from reconciler.connectors.sources.relation import Bound, Column, Wanted, quote, quote_text
from reconciler.connectors.sources.session import Session

SETTLE = 1.0
SETTLE_BY_APPLICATION = 10.0
_UTC = r"(?:Z|\+00:00)?"
TIME_TEXT = re.compile(rf"\d{{4}}-\d\d-\d\d(?:([T ])\d\d:\d\d(?::\d\d(?:\.\d+)?)?{_UTC})?")
_SAME_FORM = rf"^\d{{4}}-\d\d-\d\d(?:SEPARATOR\d\d:\d\d(?::\d\d(?:\.\d+)?)?{_UTC})?$"
_NO_INTEGER = "9.3e18"
"""In SQLite's order behind every integer there is; so is all text."""


def operand(column: Column) -> str:
    """The column as it is compared and ordered."""
    return f"{quote(column.name)} COLLATE BINARY"


def find(session: Session, wanted: Wanted) -> tuple[Bound, str]:
    """Where a read by this column may end; and, of times kept as text, a pattern that all of them
    have to match, else none. Raises ``ConnectorError`` for values without an order.
    """
    column = wanted.column
    if column.tag == "int":
        return _of_integers(session, wanted), ""
    top = _greatest(session, wanted, "x''")
    timed = isinstance(top, str) and TIME_TEXT.fullmatch(top)
    if top is None or not timed:
        if top is not None and column.type != "text":
            raise _no_order(session, column, top)
        _refuse_other_order(session, column.name)
        note = f"cursor {column.name!r} is exact only if rows become visible in its order"
        return Bound(top, far=f"{operand(column)} >= x''", notes=(note,)), ""
    assert isinstance(top, str)
    separator = timed[1] or ""
    bound = _of_times(session, wanted, top, separator)
    return bound, _SAME_FORM.replace("SEPARATOR", separator or "[T ]")


def _of_integers(session: Session, wanted: Wanted) -> Bound:
    """The greatest whole number; but where that is the present as a Unix time, the newest that
    the clock has passed by ``settle``: others may still get the very same.
    """
    top = _greatest(session, wanted, _NO_INTEGER)
    now, settle = _now(session), _settle(wanted.settings)
    for per_second in (1, 1_000, 1_000_000):
        settled = (now - settle) * per_second
        if top is not None and settled <= top <= (now + 1.0) * per_second:
            top = _greatest(session, wanted, str(math.floor(settled)))
            break
    note = (
        f"cursor {wanted.column.name!r} is exact while SQLite assigns it in rising order, inside "
        "the transaction that writes the row (without AUTOINCREMENT the numbers of deleted newest "
        "rows are given again, and such rows are passed over); "
        f"a Unix time of the last {settle:g} s waits"
    )
    value = None if top is None else int(top)
    return Bound(value, far=f"{operand(wanted.column)} >= {_NO_INTEGER}", notes=(note,))


def _now(session: Session) -> float:
    return float(session.value("SELECT unixepoch('now', 'subsec')"))


def _of_times(session: Session, wanted: Wanted, top: str, separator: str) -> Bound:
    """The newest whole time that the clock has passed by ``settle``, as it is stored (C2).

    SQLite has one writer: what is committed later was stamped no earlier than what is visible
    now. So the newest stored value is a bound; only those of the running second wait.
    """
    column, source, settings = wanted.column, wanted.relation.source, wanted.settings
    compared, settle = operand(column), _settle(settings)
    now = math.floor(_now(session) * 1_000)
    width = min(len(top.removesuffix("+00:00").rstrip("Z")), 19)
    clock = moments.iso((now - round(settle * 1_000)) * 1_000, separator or " ")[:width]
    present = moments.iso(now * 1_000, separator or " ")[:width]
    if separator == "T":
        day = quote_text(top[:10] + " "), quote_text(top[:10] + "!")
        others = f"{compared} >= {day[0]} AND {compared} < {day[1]}"
        if session.rows(f"SELECT 1 FROM {source} WHERE {others} LIMIT 1"):
            raise mixed_forms(session, column.name)
    least = session.value(
        f"SELECT {compared} FROM {source} WHERE {compared} IS NOT NULL ORDER BY {compared} LIMIT 1"
    )
    if not (isinstance(least, str) and TIME_TEXT.fullmatch(least)):
        raise mixed_forms(session, column.name)  # before all times, where no read would find it
    _refuse_shorter(session, wanted, top)
    notes = [f"cursor {column.name!r} is compared as the text that is stored, with UTC"]
    if settings.stamped_by == "application":
        notes.append(f"rows that appear more than {settle:g} s late are passed over")
    return Bound(
        _greatest(session, wanted, quote_text(clock)),
        far=f"{compared} > {quote_text(present + '~')}",
        notes=tuple(notes),
    )


def _refuse_shorter(session: Session, wanted: Wanted, top: str) -> None:
    """A day alone, or a minute, sorts before all that is of it, and so before the cursor."""
    places = [text for text in (wanted.last, top) if text is not None]
    parts = {text[:length] for text in places for length in (10, 16) if len(text) > length}
    here = f"{operand(wanted.column)} IN ({', '.join(map(quote_text, sorted(parts)))})"
    if parts and session.rows(f"SELECT 1 FROM {wanted.relation.source} WHERE {here} LIMIT 1"):
        raise mixed_forms(session, wanted.column.name)


def _greatest(session: Session, wanted: Wanted, below: str) -> Any:
    """The greatest value below one, each written in SQL."""
    value, source = operand(wanted.column), wanted.relation.source
    return session.value(
        f"SELECT {value} FROM {source} WHERE {value} < {below} ORDER BY {value} DESC LIMIT 1"
    )


def _no_order(session: Session, column: Column, found: Any) -> ConnectorError:
    return ConnectorError(
        ErrorClass.PERMANENT,
        f"connection {session.name!r}: cursor {column.name!r} is declared a "
        f"{column.type}, but holds {found!r}, which does not sort as a time: have the "
        "application store 'YYYY-MM-DD HH:MM:SS' in UTC, or name another cursor",
    )


def _refuse_other_order(session: Session, name: str) -> None:
    """Positions are compared by code points, and SQLite compares the bytes that it stores."""
    encoding = session.value("PRAGMA encoding")
    if encoding != "UTF-8":
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"connection {session.name!r}: {name!r} cannot be a cursor: texts of a "
            f"database in {encoding} have another order than Unicode; name another cursor",
        )


def mixed_forms(session: Session, name: str) -> ConnectorError:
    """The words for times that are not all written in one way."""
    return ConnectorError(
        ErrorClass.PERMANENT,
        f"connection {session.name!r}: cursor {name!r} mixes ways to write a time, which "
        "do not sort together: store one form ('YYYY-MM-DD HH:MM:SS', or with a T), or name "
        "another cursor",
    )


def _settle(settings: StreamSettings) -> float:
    if settings.settle is not None:
        return settings.settle
    return SETTLE_BY_APPLICATION if settings.stamped_by == "application" else SETTLE
