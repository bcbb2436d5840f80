"""Type words: what they mean, and which of them holds all the values of which.

Pure, no Arrow. A struct's field whose name is not plain (letters, digits, ``_``) is written in
JSON quotes, so that every word can be read back: ``struct<"a, b": int64, c: text>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec

_SIGNED = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
_UNSIGNED = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}
_TIMES = ("date", "time", "timestamp", "naive_timestamp", "interval")
_NUMBERS = (*_SIGNED, *_UNSIGNED, "float32", "float64")
SIMPLE = frozenset((*_NUMBERS, *_TIMES, "bool", "text", "binary", "uuid", "json", "null"))
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 19}
_PLAIN = re.compile(r"[A-Za-z_]\w*")
_DECIMAL = re.compile(r"decimal\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
MAX_PRECISION = 38
"""Of a decimal; sources send a wider one as text."""


class BadType(ValueError):
    """A word that names no type. ``str()`` is a sentence for a person."""


@dataclass(frozen=True, slots=True)
class Type:
    """A parsed type word. ``name`` is the word itself, or ``decimal``, ``list``, ``struct``."""

    name: str
    precision: int = 0
    scale: int = 0
    fields: tuple[tuple[str, Type], ...] = ()
    """Of a struct, in its order; of a list one, named ``""``."""

    @property
    def word(self) -> str:
        """The word that ``parse`` reads this type from."""
        if self.name == "decimal":
            return f"decimal({self.precision},{self.scale})"
        if self.name == "list":
            return f"list<{self.fields[0][1].word}>"
        if self.name == "struct":
            return struct_word((name, item.word) for name, item in self.fields)
        return self.name


def struct_word(fields: Iterable[tuple[str, str]]) -> str:
    """The word of a struct of (name, type word); names that are not plain are quoted."""
    inner = (
        f"{name if _PLAIN.fullmatch(name) else msgspec.json.encode(name).decode()}: {word}"
        for name, word in fields
    )
    return f"struct<{', '.join(inner)}>"


@lru_cache(maxsize=4096)
def parse(word: str) -> Type:
    """Read a type word. Raises ``BadType`` saying what was found and what is allowed."""
    reader = _Reader(word)
    try:
        found = reader.type()
    except RecursionError:
        raise BadType(f"type {word[:40]!r}… nests lists or structs too deep") from None
    reader.skip()
    if reader.at != len(word):
        raise reader.bad(f"{word[reader.at :]!r} is left over")
    return found


class _Reader:
    """A recursive reader over one word."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.at = 0

    def bad(self, why: str) -> BadType:
        return BadType(
            f"type {self.word!r} is not understood: {why}; allowed are "
            f"{', '.join(sorted(SIMPLE))}, decimal(p,s), list<T> and struct<name: T, …>"
        )

    def skip(self) -> None:
        while self.word[self.at : self.at + 1] == " ":
            self.at += 1

    def take(self, text: str) -> bool:
        self.skip()
        if self.word.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def need(self, text: str) -> None:
        if not self.take(text):
            raise self.bad(f"{text!r} is missing at character {self.at + 1}")

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.skip()
        found = pattern.match(self.word, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def type(self) -> Type:
        if decimal := self.match(_DECIMAL):
            return self.decimal(int(decimal[1]), int(decimal[2]))
        plain = self.match(_PLAIN)
        if plain is None:
            raise self.bad(f"a type is missing at character {self.at + 1}")
        name = plain[0]
        if name == "list":
            self.need("<")
            item = self.type()
            self.need(">")
            return Type("list", fields=(("", item),))
        if name == "struct":
            return self.struct()
        if name not in SIMPLE:
            raise self.bad(f"there is no type {name!r}")
        return Type(name)

    def decimal(self, precision: int, scale: int) -> Type:
        if not 1 <= precision <= MAX_PRECISION or scale > precision:
            raise self.bad(
                f"decimal({precision},{scale}) needs a precision of 1 to {MAX_PRECISION} "
                "and a scale of at most that"
            )
        return Type("decimal", precision, scale)

    def struct(self) -> Type:
        self.need("<")
        fields: dict[str, Type] = {}
        while not self.take(">"):
            if fields:
                self.need(",")
            name = self.field_name()
            self.need(":")
            if name in fields:
                raise self.bad(f"the struct has two fields {name!r}")
            fields[name] = self.type()
        return Type("struct", fields=tuple(fields.items()))

    def field_name(self) -> str:
        if quoted := self.match(_QUOTED):
            try:
                return msgspec.json.decode(quoted[0], type=str)
            except (msgspec.DecodeError, UnicodeError) as error:
                raise self.bad(f"the field name {quoted[0]} is no JSON string: {error}") from None
        plain = self.match(_PLAIN)
        if plain is None:
            raise self.bad(f"a field's name is missing at character {self.at + 1}")
        return plain[0]


def is_integer(found: Type) -> bool:
    """Whether its values are whole numbers by themselves."""
    return found.name in _SIGNED or found.name in _UNSIGNED


def holds(wide: Type, narrow: Type) -> bool:
    """Whether a column of ``wide`` takes every value of ``narrow``; true of a type and itself.

    One exception, made on purpose (F): ``float64`` counts as holding 64-bit integers, though
    beyond 2**53 it rounds. A source that changes its mind between 1 and 1.0 must not alarm.
    """
    if narrow.name == "null" or wide == narrow:
        return True
    if wide.name == narrow.name == "list":
        return holds(wide.fields[0][1], narrow.fields[0][1])
    if wide.name == narrow.name == "struct":
        inside = dict(wide.fields)
        return all(name in inside and holds(inside[name], item) for name, item in narrow.fields)
    if wide.name == "decimal":
        return _decimal_holds(wide, narrow)
    return _number_holds(wide.name, narrow.name)


def _decimal_holds(wide: Type, narrow: Type) -> bool:
    room = wide.precision - wide.scale
    if narrow.name == "decimal":
        return room >= narrow.precision - narrow.scale and wide.scale >= narrow.scale
    if narrow.name in _SIGNED:
        return room >= _DIGITS[_SIGNED[narrow.name]]
    if narrow.name == "uint64":
        return room >= 20
    return narrow.name in _UNSIGNED and room >= _DIGITS[_UNSIGNED[narrow.name]]


def _number_holds(wide: str, narrow: str) -> bool:
    bits = _SIGNED.get(narrow) or _UNSIGNED.get(narrow)
    if wide == "float64":
        return bits is not None or narrow == "float32"
    if bits is None:
        return False
    if wide == "float32":
        return bits <= 16
    if wide in _UNSIGNED:
        return narrow in _UNSIGNED and bits <= _UNSIGNED[wide]
    if wide in _SIGNED:
        return bits < _SIGNED[wide] or (narrow in _SIGNED and bits == _SIGNED[wide])
    return False


def filled(shown: Type, known: Type) -> Type:
    """``shown`` with what is known already in place of every ``null``: a read that had no value
    for a column, a list or a struct's field says nothing about its type.
    """
    if shown.name == "null":
        return known
    if shown.name == known.name == "list":
        return replace(shown, fields=(("", filled(shown.fields[0][1], known.fields[0][1])),))
    if shown.name == known.name == "struct":
        inside = dict(known.fields)
        return replace(
            shown, fields=tuple((n, filled(t, inside.get(n, t))) for n, t in shown.fields)
        )
    return shown


def same(one: str, other: str) -> bool:
    """Whether two words mean the same; a struct's order of fields means nothing."""
    return one == other or (holds(parse(one), parse(other)) and holds(parse(other), parse(one)))


@lru_cache(maxsize=4096)
def canonical(word: str) -> str:
    """The word with the fields of each struct in order of name; one that is none stays."""
    try:
        return _in_order(parse(word)).word
    except BadType:
        return word


def _in_order(found: Type) -> Type:
    fields = [(name, _in_order(inner)) for name, inner in found.fields]
    return replace(found, fields=tuple(sorted(fields, key=lambda field: field[0])))


def common(old: str, new: str) -> str:
    """The type that a column takes when a person accepts that ``old`` became ``new``.

    It always holds the rows already there *and* those to come, so that changing the table cannot
    fail: it happens while a batch is published, after the commit, where failing is too late.
    The wider one if one is; ``naive_timestamp`` for it and ``date``; otherwise ``text``.
    """
    one = parse(old)
    other = filled(parse(new), one)
    if holds(one, other):
        return old
    if holds(other, one):
        return other.word
    if {old, new} == {"date", "naive_timestamp"}:
        return "naive_timestamp"
    return "text"
