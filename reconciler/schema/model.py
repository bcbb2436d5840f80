"""Schemas in canonical form: what is fingerprinted, compared, stored and shown.

A type is a word: ``bool``, ``int8`` … ``int64``, ``uint8`` … ``uint64``, ``float32``, ``float64``,
``decimal(p,s)``, ``text``, ``binary``, ``date``, ``time``, ``timestamp`` (an instant, UTC),
``naive_timestamp`` (a wall clock's reading), ``uuid``, ``json``, ``list<T>``,
``struct<name: T, …>``, ``interval``, and ``null`` for a column that has shown no value yet.
Precision of times is microseconds. No Arrow here: the daemon compares schemas without it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from reconciler.schema.types import canonical


@dataclass(frozen=True, slots=True)
class Field:
    """One column. ``nullable`` is for people: it is not part of the fingerprint (F)."""

    name: str
    type: str
    nullable: bool = True
    aside: bool = False
    """It holds values of another column, of another type (``new_column``): the source has none."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of one stream, in the source's order, and its key (may be empty)."""

    fields: tuple[Field, ...]
    key: tuple[str, ...] = ()

    def field(self, name: str) -> Field | None:
        """The column of that name."""
        return next((f for f in self.fields if f.name == name), None)


def dump(schema: Schema) -> str:
    """Canonical JSON."""
    return msgspec.json.encode(schema).decode()


def load(body: str) -> Schema:
    """The schema that ``dump`` wrote."""
    return msgspec.json.decode(body, type=Schema)


def fingerprint(schema: Schema) -> str:
    """16 hex digits over names and types, and the key, each in order of name.

    The order of columns, of a struct's fields and of the key, and nullability are left out: they
    change without meaning anything (F: *false alarms disabled pipelines at every run in a peer*).
    """
    columns = sorted((f.name, canonical(f.type)) for f in schema.fields)
    text = msgspec.json.encode((columns, sorted(schema.key)))
    return hashlib.sha256(text).hexdigest()[:16]
