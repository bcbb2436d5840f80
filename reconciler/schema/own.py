"""The three columns that every row carries besides the source's own.

They say which run and batch brought it, and when, and are no part of a stream's schema: not
fingerprinted, not compared.
"""

from __future__ import annotations

from dataclasses import replace

from reconciler.schema.model import Field, Schema

_OWN = (
    Field("_run_id", "int64", nullable=False),
    Field("_batch_id", "int64", nullable=False),
    Field("_loaded_at", "timestamp", nullable=False),
)
_NAMES = frozenset(f.name for f in _OWN)


class ReservedColumn(ValueError):
    """A source column has the name of one of our own. ``str()`` is a sentence for a person."""


def reserved(schema: Schema) -> tuple[str, ...]:
    """Columns of the source that collide with our own, whatever their case."""
    return tuple(f.name for f in schema.fields if f.name.casefold() in _NAMES)


def with_own(schema: Schema) -> Schema:
    """The schema with our own columns at its end. Raises ``ReservedColumn``."""
    if taken := reserved(schema):
        raise ReservedColumn(reserved_text(taken))
    return replace(schema, fields=schema.fields + _OWN)


def reserved_text(taken: tuple[str, ...]) -> str:
    """What is wrong with source columns of these names, and what to do."""
    return (
        f"the source has {'columns' if len(taken) > 1 else 'a column'} named "
        f"{', '.join(map(repr, taken))}, which every loaded row carries already to say which run "
        "and batch brought it and when; give it another name with a `query` for the stream"
    )
