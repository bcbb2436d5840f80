"""PostgreSQL's columns: in which type each moves, how it is selected, what its values mean."""

from __future__ import annotations

import datetime as dt
import math
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from reconciler.connectors import arrow
from reconciler.connectors.arrow import Misfits
from reconciler.connectors.sources.relation import Column, quote, quote_text
from reconciler.schema import types

_NATIVE = frozenset(
    {"bool", "int2", "int4", "int8", "float4", "float8", "text", "varchar", "bpchar", "name"}
    | {"bytea", "date", "time", "timestamp", "timestamptz", "uuid", "json", "jsonb"}
)
_TAGS = {
    "int2": "int",
    "int4": "int",
    "int8": "int",
    "numeric": "decimal",
    "timestamptz": "timestamp",
    "timestamp": "naive_timestamp",
    "date": "date",
    "uuid": "uuid",
    "text": "text",
    "varchar": "text",
    "name": "text",
}
# ADBC moves Postgres' epoch to 1970 without looking: infinity, and what lies beyond the range of
# microseconds since 1970, wraps around to before any date that Postgres has.
_WRAPPED = {
    pa.int64(): (-211_813_488_000_000_000 - 1, 2**63 - 1, 946_684_800_000_000),
    pa.int32(): (-2_500_000, 2**31 - 1, 10_957),
}


def operand(column: Column) -> str:
    """The column as it is compared and ordered: texts by their bytes."""
    collate = ' COLLATE "C"' if column.tag == "text" else ""
    return quote(column.name) + collate


def parse_value(tag: str, text: str) -> Any:
    """The value of a position out of the database's own text for it."""
    match tag:
        case "int":
            return int(text)
        case "decimal":
            return Decimal(text)
        case "uuid":
            return uuid.UUID(text)
        case "date":
            return dt.date.fromisoformat(text)
    return text


def has_time(value: Any) -> bool:
    """Whether this is a UUID that begins with the time at which it was made."""
    return isinstance(value, uuid.UUID) and value.version == 7


def earlier(value: uuid.UUID, seconds: float) -> uuid.UUID:
    """The least that can have been made so long before one that has a time."""
    millis = (value.int >> 80) - math.ceil(seconds * 1_000)
    return uuid.UUID(int=max(millis, 0) << 80)


def nameless(schema: pa.Schema) -> set[str]:
    """The types that the driver, which looks once when it connects, does not know."""
    kinds = ((field.metadata or {}).get(b"POSTGRESQL:type", b"").decode() for field in schema)
    return {kind for kind in kinds if kind.startswith("unnamed<")}


def column(field: pa.Field, required: bool) -> Column:  # noqa: FBT001 - one fact of a column
    """A column as it is selected, by what the driver says of it."""
    metadata = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
    kind = metadata.get("POSTGRESQL:type", "text")
    word, select, note = _mapped(field, kind, int(metadata.get("POSTGRESQL:typmod", "-1")))
    tag = _TAGS.get(kind, "")
    why_not = "" if tag else f"a {kind} has no order that a cursor could follow exactly"
    return Column(field.name, word, select, tag, why_not, not required, note)


def _mapped(field: pa.Field, kind: str, typmod: int) -> tuple[str, str, str]:
    """Canonical word, the expression to select, a note."""
    name = quote(field.name)
    if kind in _NATIVE:
        return arrow.type_word(arrow.canonical(field.type)), name, ""
    if kind == "numeric":
        word = _numeric(typmod)
        note = (
            ""
            if word != "text" or typmod >= 0
            else f"column {field.name!r} is numeric of any size and arrives as text; "
            'name a size in `columns`, such as "decimal(38,9)", to have a number'
        )
        # The driver's own words for what is no number are 'nan' and 'inf'.
        return word, f"{name}::text" if word == "text" else name, note
    if kind.startswith("_") and pa.types.is_list(field.type):
        inner = kind[1:]
        name += "[:]"  # counted from 1: the driver fails at an array that is not
        if inner in _NATIVE:
            return arrow.type_word(arrow.canonical(field.type)), name, ""
        return "list<text>", f"{name}::text[]", ""
    if kind == "oid":
        return "int64", f"{name}::int8", ""
    return "text", f"{name}::text", ""


def _numeric(typmod: int) -> str:
    if typmod < 0:
        return "text"
    precision = ((typmod - 4) >> 16) & 0xFFFF
    scale = (((typmod - 4) & 0x7FF) ^ 1024) - 1024
    if precision > types.MAX_PRECISION or not 0 <= scale <= precision:
        return "text"
    return f"decimal({precision},{scale})"


def array_misfit(columns: tuple[Column, ...]) -> str:
    """A misfit for arrays of several dimensions, which the driver would flatten in silence."""
    cases = [
        f"WHEN array_ndims({quote(c.name)}) > 1 THEN "
        + quote_text(f"column {c.name!r} holds an array of more than one dimension")
        for c in columns
        if c.type.startswith("list<")
    ]
    return f"CASE {' '.join(cases)} END" if cases else ""


def unwrap(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Misfits]:
    """Times as they are in the database, and the rows in which one has no place."""
    columns, misfits = batch.columns, arrow.invalid(batch)  # not looked at where SQL_ASCII is kept
    for i, field in enumerate(batch.schema):
        fixed, bad = _infinities(columns[i])
        columns[i] = fixed
        bad |= _no_json(fixed)
        misfits.update({row: f"column {field.name!r}: {why}" for row, why in bad.items()})
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema), misfits


def _infinities(array: pa.Array) -> tuple[pa.Array, Misfits]:
    """Infinity as the greatest value of the type, which is how DuckDB writes it too."""
    if pa.types.is_list(array.type) and pa.types.is_temporal(array.type.value_type):
        return _infinities_in_lists(array)
    if pa.types.is_timestamp(array.type):
        raw = array.view(pa.int64())
    elif pa.types.is_date32(array.type):
        raw = array.view(pa.int32())
    else:
        return array, {}
    lowest, greatest, shift = _WRAPPED[raw.type]
    least = pc.min(raw).as_py()
    if least is None or least > lowest:
        return array, {}
    values = raw.to_pylist()
    infinity, minus = -greatest - 2 + shift, -greatest - 1 + shift
    known = {infinity: greatest, minus: -greatest}
    fixed = pa.array([known.get(v, v) if v is not None else None for v in values], raw.type)
    misfits = {
        row: "a time beyond the year 294246 has no place in microseconds since 1970"
        for row, v in enumerate(values)
        if v is not None and v <= lowest and v not in known
    }
    return fixed.view(array.type), misfits


def _infinities_in_lists(array: pa.Array) -> tuple[pa.Array, Misfits]:
    flat = array.flatten()
    fixed, bad = _infinities(flat)
    if fixed is flat:
        return array, {}
    offsets = arrow.list_offsets(array)
    rebuilt = pa.ListArray.from_arrays(offsets, fixed, type=array.type, mask=array.is_null())
    return rebuilt, arrow.rows_of(bad, offsets)


def _no_json(array: pa.Array) -> Misfits:
    """Half of a surrogate pair (``"\\ud800"``) passes for ``json`` here, and nowhere else."""
    if pa.types.is_list(array.type):
        return arrow.rows_of(_no_json(array.flatten()), arrow.list_offsets(array))
    if array.type != arrow.JSON:
        return {}
    places = pc.indices_nonzero(pc.match_substring(array.storage, r"\ud", ignore_case=True))
    _, bad = arrow.cast(array.storage.take(places), arrow.JSON)
    return {places[i].as_py(): why for i, why in bad.items()}
