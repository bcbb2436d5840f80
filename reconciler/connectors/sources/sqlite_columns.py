"""SQLite's columns: the type of each by its declaration, and how its values are selected.

SQLite keeps a value of any storage class in any column. What can be read without loss is: bytes in
a text column if they are UTF-8, text in a binary one as its bytes. What cannot is a misfit.
"""

from __future__ import annotations

import re

import pyarrow as pa

from reconciler.connectors.sources.relation import Column, quote, quote_text
from reconciler.schema import types

_SIZED = re.compile(r"(?:DECIMAL|NUMERIC)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)")
_NAMED = {
    "BOOLEAN": "bool",
    "BOOL": "bool",
    "DATE": "date",
    "TIME": "time",
    "UUID": "uuid",
    "GUID": "uuid",
    "UNIQUEIDENTIFIER": "uuid",
    "JSON": "json",
}
_AFFINITY = (
    (("INT",), "int64"),
    (("CHAR", "CLOB", "TEXT"), "text"),
    (("BLOB",), "binary"),
    (("REAL", "FLOA", "DOUB"), "float64"),
)
_DRIVEN = {
    "int64": ("0", pa.int64()),
    "float64": ("0.0", pa.float64()),
    "binary": ("x''", pa.binary()),
}


def driven(word: str) -> tuple[str, pa.DataType]:
    """A literal from which the driver takes the column's type, and that type."""
    return _DRIVEN.get(word, ("''", pa.string()))


def _word(declared: str) -> str:
    """The canonical word for a declared type; SQLite's own rules of affinity for all others."""
    upper = declared.upper().strip()
    sized = _SIZED.fullmatch(upper)
    if sized:
        precision, scale = int(sized[1]), int(sized[2] or 0)
        fits = 1 <= precision <= types.MAX_PRECISION and scale <= precision
        return f"decimal({precision},{scale})" if fits else "text"
    base = upper.partition("(")[0].strip()
    if base in _NAMED:
        return _NAMED[base]
    if base.startswith(("DATETIME", "TIMESTAMP")):
        zoned = "TZ" in base or ("ZONE" in upper and "WITHOUT" not in upper)
        return "timestamp" if zoned else "naive_timestamp"
    for parts, word in _AFFINITY:
        if any(part in upper for part in parts):
            return word
    return "text"


def describe(name: str, declared: str, *, required: bool, strict: bool) -> Column:
    word = _word(declared)
    quoted = quote(name)
    note = ""
    if word == "text" and not any(p in declared.upper() for p in ("CHAR", "CLOB", "TEXT")):
        note = (
            f"column {name!r} is declared {declared or 'without a type'} and arrives as text; "
            "name its type in `columns` to have another"
        )
    select, plain = _selected(word, quoted)
    tag, why_not = _tag(word, declared)
    return Column(name, word, plain if strict else select, tag, why_not, not required, note, plain)


def _selected(word: str, name: str) -> tuple[str, str]:
    """How a column is selected whatever it holds, and how while it holds only what it should."""
    text = f"CAST({name} AS TEXT)"
    if word == "int64":
        return f"CASE typeof({name}) WHEN 'integer' THEN {name} END", name
    if word == "float64":
        return f"CASE WHEN typeof({name}) IN ('real', 'integer') THEN {name} + 0.0 END", name
    if word == "binary":
        return (
            f"CASE WHEN typeof({name}) IN ('blob', 'text') THEN CAST({name} AS BLOB) END",
            name,
        )
    if word == "uuid":
        packed = f"CASE typeof({name}) WHEN 'blob' THEN lower(hex({name})) ELSE {text} END"
        return packed, packed
    if word.startswith("decimal"):
        # 15 digits are what a double keeps of a decimal: 0.1 + 0.2 is 0.3 then, as it was meant.
        # Where they do not reach the last place of the scale, as many as tell it from all others.
        scale = int(word[:-1].partition(",")[2])
        rounded = (
            f"CASE WHEN typeof({name}) <> 'real' THEN {text} "
            f"WHEN abs({name}) < 1e{15 - scale} THEN format('%!.15g', {name}) "
            f"WHEN CAST(format('%!.16g', {name}) AS REAL) = {name} THEN format('%!.16g', {name}) "
            f"ELSE {text} END"
        )
        return rounded, rounded
    # The driver writes a real number with seven digits; where one may be, SQLite writes it.
    return text, name if word in _NEVER_REAL else text


_NEVER_REAL = frozenset({"date", "time", "timestamp", "naive_timestamp"})


def _tag(word: str, declared: str) -> tuple[str, str]:
    if word == "int64":
        return "int", ""
    if not declared:
        return "", "it has no declared type: CAST it in the query, or declare one"
    if word in ("text", "date", "naive_timestamp", "timestamp", "uuid", "time"):
        return "text", ""
    return "", f"a {word} has no order that a cursor could follow exactly"


_FITS = {
    "int64": "('integer', 'null')",
    "float64": "('real', 'integer', 'null')",
    "binary": "('blob', 'text', 'null')",
}


def misfit(columns: tuple[Column, ...]) -> str:
    """Names the first column of a row that holds what its declaration does not say."""
    cases = []
    for column in columns:
        if column.type not in _FITS:
            continue
        name = quote(column.name)
        test = f"typeof({name}) NOT IN {_FITS[column.type]}"
        what = quote_text(f"column {column.name!r} is read as {column.type}, but holds a ")
        cases.append(
            f"WHEN {test} THEN {what} || typeof({name}) || ': ' || quote(substr({name}, 1, 100))"
        )
    return f"CASE {' '.join(cases)} END" if cases else ""
