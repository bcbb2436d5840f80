"""Typed differences between two schemas of one stream. Pure.

What is no change (F: *false alarms disabled pipelines at every run in a peer*): another order of
columns, of key columns or of a struct's fields; nullability; whole numbers in a column of
``float64``, as JSON writes 1.0; and the type ``null``, also inside a list or a struct, where the
type is known already: it only says that this read has shown no value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import msgspec

from reconciler.schema.model import Schema
from reconciler.schema.types import canonical, filled, holds, is_integer, parse

ChangeKind: TypeAlias = Literal["added", "dropped", "widened", "narrowed", "retyped", "key_changed"]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. ``old`` and ``new`` are type words, or the key's columns; empty: absent.

    A renamed column is a dropped and an added one: nothing in the data tells them apart.
    """

    kind: ChangeKind
    column: str
    """Empty for ``key_changed``."""
    old: str = ""
    new: str = ""

    def __str__(self) -> str:
        match self.kind:
            case "added":
                return f"column {self.column!r} ({self.new}) is new"
            case "dropped":
                return f"column {self.column!r} ({self.old}) is gone"
            case "key_changed":
                return f"the key changed from {self.old or 'none'} to {self.new or 'none'}"
            case _:
                return f"column {self.column!r} {self.kind} from {self.old} to {self.new}"


def compare(old: Schema, new: Schema) -> tuple[Change, ...]:
    """What changed: columns of ``old`` in its order, then those added, then the key.

    Raises ``BadType`` for a type word that is not understood.
    """
    found: list[Change] = []
    proposed = {f.name: f.type for f in new.fields}
    for was in old.fields:
        word = proposed.get(was.name)
        if word is None:
            if was.aside:
                continue  # it is ours: the source never had it to drop
            found.append(Change("dropped", was.name, old=was.type))
        elif (kind := _type_change(was.type, word)) is not None:
            found.append(Change(kind, was.name, was.type, word))
    known = {f.name for f in old.fields}
    found += [Change("added", f.name, new=f.type) for f in new.fields if f.name not in known]
    if set(old.key) != set(new.key):
        found.append(Change("key_changed", "", ", ".join(old.key), ", ".join(new.key)))
    return tuple(found)


def _type_change(old: str, new: str) -> Literal["widened", "narrowed", "retyped"] | None:
    if old == new:
        return None
    was = parse(old)
    now = filled(parse(new), was)
    grows, shrinks = holds(now, was), holds(was, now)
    if (grows and shrinks) or (was.name == "float64" and is_integer(now)):
        return None
    if grows:
        return "widened"
    return "narrowed" if shrinks else "retyped"


def meant(change: Change) -> Change:
    """The same, whatever the order of a struct's fields or of the key's columns."""

    def plain(text: str) -> str:
        if change.kind == "key_changed":
            return ", ".join(sorted(text.split(", ")))
        return canonical(text)

    return replace(change, old=plain(change.old), new=plain(change.new))


def dump_changes(changes: Iterable[Change]) -> str:
    """A JSON list, as a recorded decision keeps it."""
    return msgspec.json.encode(list(changes)).decode()


def load_changes(text: str) -> tuple[Change, ...]:
    """The changes of a decision or of a hold's detail; none where the text is empty."""
    if not text:
        return ()
    if text.lstrip().startswith("{"):
        return msgspec.json.decode(text, type=_Detail).changes
    return msgspec.json.decode(text, type=tuple[Change, ...])


class _Detail(msgspec.Struct):
    changes: tuple[Change, ...] = ()
