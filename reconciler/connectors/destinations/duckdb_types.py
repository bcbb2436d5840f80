"""Types and names in DuckDB: what a column becomes, and which type holds which."""

from __future__ import annotations

import re
from collections.abc import Callable

import pyarrow as pa

from catalog.records import ErrorClass
from reconciler.config.desired import fold
from reconciler.connectors.ports import ArrowSchema, ConnectorError

_NOTHING = '"NULL"'
_PLAIN = {
    pa.null(): _NOTHING,  # within lists and structs: such a column is left out
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
    pa.timestamp("us"): "TIMESTAMP",
    pa.timestamp("us", "UTC"): "TIMESTAMP WITH TIME ZONE",
    pa.uuid(): "UUID",
    pa.json_(pa.string()): "JSON",
}
_INTEGERS = {
    "TINYINT": (7, True),
    "SMALLINT": (15, True),
    "INTEGER": (31, True),
    "BIGINT": (63, True),
    "UTINYINT": (8, False),
    "USMALLINT": (16, False),
    "UINTEGER": (32, False),
    "UBIGINT": (64, False),
}
"""Bits of a value without its sign, and whether there is a sign."""
_DECIMAL = re.compile(r"DECIMAL\((\d+),(\d+)\)")


def sql_type(kind: pa.DataType) -> str:
    """The DuckDB type of a canonical Arrow type."""
    if pa.types.is_decimal(kind):
        return f"DECIMAL({kind.precision},{kind.scale})"
    if pa.types.is_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        members = (f"{quote_name(field.name)} {sql_type(field.type)}" for field in kind)
        return f"STRUCT({', '.join(members)})"
    return _PLAIN.get(kind, "VARCHAR")


def refuse_equal_names(schema: ArrowSchema, table: str) -> None:
    """Two columns that DuckDB would take for one are refused (permanent)."""
    seen: dict[str, str] = {}
    for name in schema.names:
        other = seen.setdefault(fold(name), name)
        if other != name:
            raise ConnectorError(
                ErrorClass.PERMANENT,
                f"table {table!r} would have the columns {other!r} and {name!r}, which are one to "
                "DuckDB: it does not tell upper from lower case. Rename one of them in a `query`",
            )


def holds(wide: str, narrow: str) -> bool:
    """Whether every value of the type ``narrow`` is one of the type ``wide`` too."""
    if narrow in (wide, _NOTHING):
        return True
    if wide.endswith("[]") and narrow.endswith("[]"):
        return holds(wide[:-2], narrow[:-2])
    if wide.startswith("STRUCT") and narrow.startswith("STRUCT"):
        have = _members(wide)
        return all(holds(have.get(name, ""), kind) for name, kind in _members(narrow).items())
    if wide in _INTEGERS:
        return narrow in _INTEGERS and _integer_holds(wide, narrow)
    if decimal := _DECIMAL.fullmatch(wide):
        return _decimal_holds(int(decimal[1]), int(decimal[2]), narrow)
    return wide in _SIMPLE and _SIMPLE[wide](narrow)


def is_float(kind: str) -> bool:
    """Whether it is one of floats, or of lists of them."""
    return kind.rstrip("[]") in ("DOUBLE", "FLOAT")


def _members(struct: str) -> dict[str, str]:
    """The types of a struct's fields, by folded name."""
    import duckdb  # not for the lake, whose view needs the words alone

    return {fold(name): str(kind) for name, kind in duckdb.sqltype(struct).children}


def _integer_holds(wide: str, narrow: str) -> bool:
    (bits, signed), (needed, has_sign) = _INTEGERS[wide], _INTEGERS[narrow]
    return bits >= needed and (signed or not has_sign)


def _decimal_holds(precision: int, scale: int, narrow: str) -> bool:
    digits = precision - scale
    if narrow in _INTEGERS:
        return bool(10**digits > 2 ** _INTEGERS[narrow][0])
    other = _DECIMAL.fullmatch(narrow)
    if other is None:
        return False
    return digits >= int(other[1]) - int(other[2]) and scale >= int(other[2])


_SIMPLE: dict[str, Callable[[str], bool]] = {
    # Text shows every value; nested ones and bytes it would only show, not hold.
    "VARCHAR": lambda t: t != "BLOB" and not t.startswith("STRUCT") and not t.endswith("[]"),
    # Integers to floats count as a widening, as everywhere here (F).
    "DOUBLE": lambda t: t == "FLOAT" or t in _INTEGERS,
    "FLOAT": lambda t: t in _INTEGERS and _INTEGERS[t][0] <= 32,
    "TIMESTAMP": lambda t: t == "DATE",
}


def as_text(column: str, kind: str) -> str:
    """An expression for the text of a column, quoted, of the SQL type ``kind``: lists and structs
    are JSON, as they are when they arrive in a column of text; an instant is in UTC.
    """
    if kind == "TIMESTAMP WITH TIME ZONE":
        zone = f"CASE WHEN isfinite({column}) THEN '+00' ELSE '' END"
        return f"CAST(timezone('UTC', {column}) AS VARCHAR) || {zone}"
    nested = kind.startswith("STRUCT") or kind.endswith("]")
    return f"CAST({f'to_json({column})' if nested else column} AS VARCHAR)"


def quote_name(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"
