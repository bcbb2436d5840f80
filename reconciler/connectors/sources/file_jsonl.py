"""JSON lines: one object a line, types found by a look at the whole file, bad lines set aside.

Most lines of a file have the same names, with values of the same types. So a line is decoded into a
record of the names that are known by then, which takes a fraction of the time. Where that fails the
line is decoded by itself, and looked at name by name. It is one decoder both times, which refuses
more where it knows more: what it takes as a record it takes as an object too, of the same values.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache, partial
from typing import IO, Annotated, Any, NoReturn

import msgspec
import pyarrow as pa
from msgspec.structs import astuple

from catalog.records import ErrorClass
from reconciler.config.desired import StreamSettings
from reconciler.connectors import arrow
from reconciler.connectors.parse import parser
from reconciler.connectors.ports import ConnectorError, RejectedRow
from reconciler.connectors.sources.file_format import (
    BLOCK,
    LINE_LIMIT,
    RAW_LIMIT,
    TOO_LONG,
    Block,
    Described,
    is_packed,
    refuse_unterminated,
)
from reconciler.connectors.sources.file_set import Found
from reconciler.schema import types

_ROWS = 8_192
_CELLS = 2_000_000
"""In one block: an object may have names of its own, and each is a column of all the others."""
_AT_ONCE = 128
"""Rows that become columns together, so few that they are in the processor's cache still."""
_NAMES = 500
"""To find a name among more takes longer than to decode its line by itself."""
_WORDS = {bool: "bool", int: "int64", float: "float64", str: "text", dict: "json", list: "json"}
_INT64 = range(-(2**63), 2**63)
_Int64 = Annotated[int, msgspec.Meta(ge=_INT64[0], le=_INT64[-1])]
_HELD: dict[str, Any] = {
    "null": None,
    "bool": bool | None,
    "int64": _Int64 | None,
    "float64": _Int64 | float | None,
    "json": dict | list | None,
    "text": Any,
}
"""The values that leave a column of each type what it is."""
_MARK = b"\xef\xbb\xbf"
_NO_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_exact = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_Decode = Callable[[bytes], msgspec.Struct]


class JsonLines:
    """Reads one JSON object a line; nested values stay JSON."""

    def __init__(self, settings: StreamSettings) -> None:
        self._columns = dict(settings.columns)
        self._encoding = codecs.lookup(settings.format.encoding).name

    def describe(self, file: Found) -> Generator[int, None, Described]:
        """The type of each name over all lines. Raises ``Cut`` for an unterminated file."""
        yield from refuse_unterminated(file)
        digest = hashlib.blake2b(digest_size=32)
        with file.full.open("rb") as raw:
            while chunk := raw.read(BLOCK):
                digest.update(chunk)
                yield len(chunk)
        known = _Known()
        with _open(file) as source:
            for lines in self._lines(file, source):
                known.learn(lines)
                yield sum(map(len, lines))
        fields = [(name, arrow.arrow_type(word)) for name, word in known.words.items()]
        return Described(pa.schema(fields), digest.hexdigest())

    def blocks(self, file: Found, source: IO[bytes], schema: pa.Schema) -> Iterator[Block]:
        """Rows in blocks; a line that is no object, or holds what does not fit, is set aside."""
        unpacked: Any = gzip.GzipFile(fileobj=source) if is_packed(file) else source
        most = max(1, min(_ROWS, _CELLS // max(1, len(schema))))
        first = 1
        for lines in self._lines(file, unpacked):
            for start in range(0, len(lines), most):
                part = lines[start : start + most]
                yield self._block(file.path, part, first, schema)
                first += len(part)

    def _lines(self, file: Found, source: IO[bytes]) -> Iterator[list[bytes]]:
        """All lines, as UTF-8. Raises ``ConnectorError`` for bytes that are not in the encoding."""
        if self._encoding in ("utf-8", "utf-8-sig"):
            yield from _lines(source)  # one that is not costs itself alone
            return
        recoded: Any = codecs.EncodedFile(source, "utf-8", self._encoding)
        try:
            yield from _lines(recoded)
        except UnicodeError as error:
            raise ConnectorError(
                ErrorClass.PERMANENT,
                f"file {file.path!r}: it cannot be read as {self._encoding} ({error}); set "
                "`format = { encoding = … }`, or mend the file",
            ) from None

    def _block(self, path: str, lines: list[bytes], first: int, schema: pa.Schema) -> Block:
        """The rows of these lines, of which the first has that number."""
        columns, aside = _columns(lines, schema)
        places = [i for i in range(len(lines)) if i not in aside]
        arrays = []
        for field, values in zip(schema, columns, strict=True):
            written = partial(_written, lines, places, field.name)
            array, bad = _array(values, field, written, plain=field.name not in self._columns)
            arrays.append(array)
            for row, reason in bad.items():
                aside.setdefault(places[row], f"column {field.name!r}: {reason}")
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
        if not arrays:  # a batch without columns has no rows either
            aside |= dict.fromkeys(places, "an object in which nothing is named")
        misfits = {row: aside[i] for row, i in enumerate(places) if i in aside} if aside else {}
        rejected = [
            RejectedRow(f"{path}:{first + i}", why, _readable(lines[i]))
            for i, why in sorted(aside.items())
            if why
        ]
        return arrow.drop_rows(batch, misfits), rejected


def _open(file: Found) -> Any:
    return gzip.open(file.full, "rb") if is_packed(file) else file.full.open("rb")


def _lines(source: IO[bytes]) -> Iterator[list[bytes]]:
    """Lines without their newline; ``readline`` takes seconds for one of some megabytes."""
    pieces: list[bytes] = []
    mark = _MARK
    while chunk := source.read(BLOCK):
        first, *others = chunk.removeprefix(mark).split(b"\n")
        mark = b""
        if sum(map(len, pieces)) <= LINE_LIMIT:
            pieces.append(first)
        if others:
            yield [_line(pieces), *others[:-1]]
            pieces = [others[-1]]
    if last := _line(pieces):
        yield [last]


def _line(pieces: list[bytes]) -> bytes:
    """Of one that is too long so much that it shows, and that nobody takes it for JSON."""
    line = b"".join(pieces)
    return line if len(line) <= LINE_LIMIT else line[:LINE_LIMIT] + b"\0"


def _object(line: bytes) -> dict[str, Any] | str:
    """What a line holds, or why it is no object; nothing is to be said of an empty one."""
    if not line.strip():
        return ""
    if len(line) > LINE_LIMIT:
        return TOO_LONG
    try:
        value = msgspec.json.decode(line)
    except _NO_JSON as error:
        return f"no JSON: {error}"
    return value if isinstance(value, dict) else "JSON, but no object"


@lru_cache(maxsize=16)
def _record(fields: tuple[tuple[str, Any], ...]) -> _Decode:
    """A decoder for objects that have no other names, and no other values but null."""
    if len(fields) > _NAMES:
        return _refuse
    members = [
        (f"_{i}", held, msgspec.field(name=name, default=None))
        for i, (name, held) in enumerate(fields)
    ]
    try:
        record = msgspec.defstruct("Record", members, forbid_unknown_fields=True, gc=False)
    except ValueError:  # a name with a quote or a control character
        return _refuse
    return msgspec.json.Decoder(record).decode


def _refuse(_: bytes) -> NoReturn:
    raise msgspec.ValidationError


# -- the look ----------------------------------------------------------------------------------


class _Known:
    """The type of each name over the lines so far."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        self._decode = _record(())
        self._stale = 0

    def learn(self, lines: list[bytes]) -> None:
        for line in lines:
            try:
                self._decode(line)  # so there is nothing new in it
            except _NO_JSON:
                self._look_at(line)

    def _look_at(self, line: bytes) -> None:
        """To make a decoder takes as long as to look at some lines for each name in it."""
        if self._merge(line) or self._stale:
            self._stale += 1
        if self._stale > len(self.words):
            self._decode = _record(tuple((name, _HELD[word]) for name, word in self.words.items()))
            self._stale = 0

    def _merge(self, line: bytes) -> bool:
        value, news = _object(line), False
        for name, item in value.items() if isinstance(value, dict) else ():
            word = "null" if item is None else _WORDS[type(item)]
            if word == "int64" and item not in _INT64:
                word = "text"
            known = self.words.get(name, "")
            if word != known:
                self.words[name] = _common(known, word) if known else word
                news |= self.words[name] != known
        return news


def _common(one: str, other: str) -> str:
    if {one, other} == {"int64", "float64"}:
        return "float64"
    return types.common(one, other)


# -- the rows ----------------------------------------------------------------------------------


def _columns(lines: list[bytes], schema: pa.Schema) -> tuple[list[list[Any]], dict[int, str]]:
    """The values of all lines that are objects, by column, and the other lines, with a reason."""
    names = schema.names
    nested = {field.name for field in schema if field.type == arrow.JSON}
    decode = _record(tuple((name, msgspec.Raw if name in nested else Any) for name in names))
    columns: list[list[Any]] = [[] for _ in schema]
    aside: dict[int, str] = {}
    for start in range(0, len(lines), _AT_ONCE):
        rows = []
        for i, line in enumerate(lines[start : start + _AT_ONCE], start):
            try:
                if nested:  # what is kept as it is written is looked into here alone
                    msgspec.json.decode(line)
                rows.append(astuple(decode(line)))
            except _NO_JSON:
                value = _object(line)
                if isinstance(value, str):
                    aside[i] = value
                    continue
                exact = _exact(line) if nested else {}
                value |= {name: exact[name] for name in nested if name in exact}
                rows.append(tuple(map(value.get, names)))
        for name, column, values in zip(names, columns, zip(*rows, strict=True), strict=False):
            column.extend(map(_without_spaces, values) if name in nested else values)
    return columns, aside


def _array(
    values: list[Any], field: pa.Field, written: Callable[[int], str], *, plain: bool
) -> tuple[pa.Array, arrow.Misfits]:
    """As Arrow's own conversion where the file's values are of the type, else value by value."""
    if field.type == arrow.JSON:
        return pa.ExtensionArray.from_storage(arrow.JSON, pa.array(values, pa.string())), {}
    if plain or field.type == pa.string():
        try:
            return pa.array(values, field.type), {}
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass
    is_text = field.type == pa.string()
    as_written = () if pa.types.is_floating(field.type) else (float,)
    convert = parser(arrow.type_word(field.type))
    result: list[Any] = []
    misfits: arrow.Misfits = {}
    for row, value in enumerate(values):
        converted = None
        if value is not None:
            try:
                if is_text and not isinstance(value, str):
                    converted = written(row)
                else:
                    converted = convert(written(row) if isinstance(value, as_written) else value)
            except (ValueError, TypeError, ArithmeticError) as error:
                misfits[row] = str(error)
        result.append(converted)
    if field.type == arrow.UUID:
        storage = pa.array(result, field.type.storage_type)
        return pa.ExtensionArray.from_storage(field.type, storage), misfits
    return pa.array(result, field.type), misfits


def _written(lines: list[bytes], places: list[int], name: str, row: int) -> str:
    """A value as its line has it: read as a float it would lose digits."""
    return _without_spaces(_exact(lines[places[row]])[name]) or ""


def _without_spaces(value: msgspec.Raw | None) -> str | None:
    if value is None or (text := bytes(value)) == b"null":
        return None
    return msgspec.json.format(text, indent=-1).decode()


def _readable(line: bytes) -> str:
    return line[:RAW_LIMIT].decode(errors="replace").rstrip("\r\n")
