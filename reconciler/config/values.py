"""The kinds of values in the config file, as pydantic reads them: each a small grammar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field, PlainValidator, StringConstraints, ValidationInfo, WithJsonSchema

from reconciler.config import locations, words
from reconciler.config.desired import SecretRef
from reconciler.config.words import Wrong


def _text(value: object, kind: str) -> str:
    if not isinstance(value, str):
        raise Wrong("has the wrong type", allowed=kind)
    return value


def _seconds(least: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        seconds = words.duration(_text(value, words.DURATION_ALLOWED))
        if seconds < least:
            raise Wrong("is too short", allowed=f"{least:g}s and longer")
        return seconds

    return check


_DURATION_SCHEMA = {"type": "string", "pattern": words.DURATION, "examples": ["30s", "1h30m"]}


def _span(value: object) -> float:
    """A duration, or units of an integer cursor."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return float(value)
    kind = f"{words.DURATION_ALLOWED}, or a whole number for an integer cursor"
    return words.duration(_text(value, kind))


def _size(value: object) -> int:
    count = words.size(_text(value, 'a size such as "10GiB"'))
    if count < 2**20:
        raise Wrong("is too small", allowed="1MiB and more")
    if count > 16 * 2**40:
        raise Wrong("is too large", allowed="16TiB and less, which is as large as SQLite goes")
    return count


def _many(value: object) -> object:
    """One string is a list of one."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _each(check: Callable[[str], str]) -> PlainValidator:
    kind = "a string, or a list of strings"

    def validate(value: object) -> tuple[str, ...]:
        many = _many(value)
        if not isinstance(many, tuple):
            raise Wrong("has the wrong type", allowed=kind)
        found = tuple(check(_text(one, kind)) for one in many)
        if len(set(found)) < len(found):
            raise Wrong("names one twice")
        return found

    return PlainValidator(validate)


def _pattern(text: str) -> str:
    if not text.removeprefix("!").strip():
        raise Wrong("has an empty pattern")
    return text


def _parsed(parse: Callable[[str], str]) -> PlainValidator:
    return PlainValidator(lambda value: parse(_text(value, "a string")))


def _placed(parse: Callable[[str, Path], object]) -> PlainValidator:
    """Read with the directory of the file that names it, which is the validation's context."""

    def validate(value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            raise Wrong("has the wrong type", allowed="a string", secret=True)
        base = info.context
        assert isinstance(base, Path)
        return parse(value, base)

    return PlainValidator(validate)


def _encoding(text: str) -> str:
    try:
        "".encode(text)
    except (LookupError, ValueError):
        raise Wrong("is no encoding", allowed='such as "utf-8", "latin-1" or "cp1252"') from None
    return text


def _one_character(text: str) -> str:
    if len(text) != 1 or not text.isascii() or text in "\r\n":
        raise Wrong("is not one character", allowed='one ASCII character, such as ";" or "\\t"')
    return text


def _quote(text: str) -> str:
    return text if text == "" else _one_character(text)


def _schedule(text: str) -> str:
    words.schedule(text, None)
    return text


def _column(text: str) -> str:
    return words.label(text, "column")


_STRING = WithJsonSchema({"type": "string"})
_STRINGS = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
)
_DURATION = WithJsonSchema(_DURATION_SCHEMA)
_SPAN = WithJsonSchema({"anyOf": [_DURATION_SCHEMA, {"type": "integer", "minimum": 0}]})

Name: TypeAlias = Annotated[str, StringConstraints(pattern=words.NAME)]
Filled: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
MaxRuns: TypeAlias = Annotated[int, Field(ge=1, le=10_000)]
Seconds: TypeAlias = Annotated[float, PlainValidator(_seconds(0)), _DURATION]
Timeout: TypeAlias = Annotated[float, PlainValidator(_seconds(1)), _DURATION]
Keep: TypeAlias = Annotated[float, PlainValidator(_seconds(60)), _DURATION]
Span: TypeAlias = Annotated[float, PlainValidator(_span), _SPAN]
Size: TypeAlias = Annotated[
    int, PlainValidator(_size), WithJsonSchema({"type": "string", "pattern": words.SIZE})
]
Strings: TypeAlias = Annotated[tuple[str, ...], _each(lambda text: text), _STRINGS]
Columns: TypeAlias = Annotated[tuple[str, ...], _each(_column), _STRINGS]
Names: TypeAlias = Annotated[
    tuple[str, ...], _each(lambda text: words.name(text, "pipeline")), _STRINGS
]
Patterns: TypeAlias = Annotated[tuple[str, ...], _each(_pattern), _STRINGS]
Partitions: TypeAlias = Annotated[tuple[str, ...], _each(words.partition), _STRINGS]
TypeWord: TypeAlias = Annotated[
    str,
    _parsed(words.type_word),
    WithJsonSchema({"type": "string", "examples": list(words.TYPE_WORDS)}),
]
Character: TypeAlias = Annotated[str, _parsed(_one_character), _STRING]
Quote: TypeAlias = Annotated[str, _parsed(_quote), _STRING]
Encoding: TypeAlias = Annotated[str, _parsed(_encoding), _STRING]
TableName: TypeAlias = Annotated[str, _parsed(words.table), _STRING]
SchemaName: TypeAlias = Annotated[str, _parsed(_column), _STRING]
ScheduleText: TypeAlias = Annotated[
    str, _parsed(_schedule), WithJsonSchema({"type": "string", "examples": ["every 15m"]})
]
Timezone: TypeAlias = Annotated[str, _parsed(words.timezone), _STRING]
Address: TypeAlias = Annotated[str, _parsed(words.listen), _STRING]
PlacedPath: TypeAlias = Annotated[str, _placed(locations.absolute), _STRING]
SourceUrl: TypeAlias = Annotated[str, _placed(locations.source_url), _STRING]
Secret: TypeAlias = Annotated[SecretRef, _placed(locations.secret), _STRING]
