"""A cursor's definition: what its position is a position of (C4)."""

from __future__ import annotations

import hashlib
import json

from catalog.records import Cursor, CursorKind, HoldKind
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.ports import NeedsAnswer
from reconciler.connectors.sources.relation import Column, Relation
from reconciler.schema import types

_WORDS = {
    "source": "the source",
    "table": "the table",
    "query": "the query",
    "column": "the cursor column",
    "type": "the cursor's type",
    "interval": "how the bound is read",
    "key": "the key",
    "mode": "the mode",
}


def definition(
    source: str,
    relation: Relation,
    column: Column | None,
    key: tuple[str, ...],
    settings: StreamSettings,
    *,
    closed: bool,
) -> str:
    """Canonical JSON. The query stands in it as a hash."""
    parts: dict[str, object] = {"source": source, "key": sorted(key), "mode": settings.mode.value}
    if settings.query:
        parts["query"] = hashlib.sha256(settings.query.strip().encode()).hexdigest()[:16]
    else:
        parts["table"] = relation.identity
    if column is not None:
        parts["column"], parts["type"] = column.name, column.type
        parts["interval"] = "(]" if closed else "[)"
        if relation.made:
            parts["made"] = relation.made
    return canonical(parts)


def go_on(stream: str, cursor: Cursor, now: str, kind: CursorKind, tag: str) -> tuple[str, bool]:
    """The definition to go on with, and whether the table is another one than it was then.

    That of the cursor stays where its column has taken a wider type whose values are compared as
    those of the old one are (``int`` and ``bigint``). Else ``NeedsAnswer``, as ``refuse_another``:
    a narrower one rounds, and what was read may come to lie beyond the cursor.
    """
    if tag and tag == cursor.position.tag:
        old, new = _parts(cursor.definition), _parts(now)
        if old and _essence(old) == _essence(new) and _holds(new.get("type"), old.get("type")):
            return cursor.definition, "made" in old and old["made"] != new.get("made")
    refuse_another(stream, cursor.definition, now, kind, tag)
    return now, False


def _parts(text: str) -> dict[str, object]:
    try:
        parts = json.loads(text)
    except ValueError:
        return {}
    return parts if isinstance(parts, dict) else {}


def _holds(wide: object, narrow: object) -> bool:
    try:
        return wide == narrow or types.holds(types.parse(str(wide)), types.parse(str(narrow)))
    except types.BadType:
        return False


def _essence(parts: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in parts.items() if name not in ("type", "made")}


def canonical(parts: dict[str, object]) -> str:
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def counts(stored: Cursor, *, replaced: bool) -> bool:
    """Whether the definition that a cursor was stored with is to be the one that there is now. Not
    where each read takes the place of the one before, once one has: ``append`` and ``merge`` keep
    rows that the source may have no more.
    """
    return not replaced or _parts(stored.definition).get("mode") != Mode.REPLACE.value


def refuse_another(stream: str, stored: str, now: str, kind: CursorKind, tag: str) -> None:
    """Raises ``NeedsAnswer`` (``DEFINITION``) with what changed, unless the definition that the
    cursor was ``stored`` with is the one that there is ``now``.

    ``kind`` and ``tag`` are those of the cursor that there is now, for ``cursor set`` to make one
    of; an empty ``tag``: none can be set, since the table is read as a whole each time.
    """
    if stored == now:
        return
    changes = "; ".join(_differences(stored, now)) or "its definition"
    choices = ("refresh", "cursor set", "retry") if tag else ("refresh", "retry")
    raise NeedsAnswer(
        HoldKind.DEFINITION,
        f"stream {stream!r}: the cursor was kept for something else: {changes}. "
        "`refresh` reads all again"
        + ("; `cursor set` says where to go on" if tag else "")
        + "; once all is as it was, `retry` goes on where it stood",
        choices,
        canonical({"definition": now, "kind": kind.value, "tag": tag}),
    )


def _differences(stored: str, now: str) -> list[str]:
    old, new = _parts(stored), _parts(now)
    if not (old and new):
        return [f"{stored!r} is now {now!r}"]
    return [
        f"{_WORDS.get(name, name)} was {_shown(old.get(name))}, is {_shown(new.get(name))}"
        for name in sorted((old.keys() | new.keys()) - {"made"})
        if old.get(name) != new.get(name)
    ]


def _shown(value: object) -> str:
    if value is None:
        return "not there"
    if isinstance(value, list):
        return f"({', '.join(map(str, value))})"
    return repr(value)
