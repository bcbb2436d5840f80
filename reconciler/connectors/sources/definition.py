"""A cursor's definition: what its position is a position of (C4)."""

from __future__ import annotations

import hashlib
import json

from catalog.records import CursorKind, HoldKind
from reconciler.config.desired import StreamSettings
from reconciler.connectors.ports import NeedsAnswer
from reconciler.connectors.sources.relation import Column, Relation

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
    parts: dict[str, object] = {"source": source, "key": list(key), "mode": settings.mode.value}
    if settings.query:
        parts["query"] = hashlib.sha256(settings.query.strip().encode()).hexdigest()[:16]
    else:
        parts["table"] = relation.identity
    if column is not None:
        parts["column"], parts["type"] = column.name, column.type
        parts["interval"] = "(]" if closed else "[)"
    return canonical(parts)


def canonical(parts: dict[str, object]) -> str:
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


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
    try:
        old, new = json.loads(stored), json.loads(now)
    except ValueError:
        return [f"{stored!r} is now {now!r}"]
    if not isinstance(old, dict):
        return [f"{stored!r} is now {now!r}"]
    return [
        f"{_WORDS.get(name, name)} was {_shown(old.get(name))}, is {_shown(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _shown(value: object) -> str:
    if value is None:
        return "not there"
    if isinstance(value, list):
        return f"({', '.join(map(str, value))})"
    return repr(value)
