"""JSON lines: one object a line, types found by a look at the whole file, bad lines set aside."""

from __future__ import annotations

import codecs
import gzip
import hashlib
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import IO, Any

import msgspec
import pyarrow as pa

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
_WORDS = {bool: "bool", int: "int64", float: "float64", str: "text", dict: "json", list: "json"}
_INT64 = range(-(2**63), 2**63)
_MARK = b"\xef\xbb\xbf"
_exact = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class JsonLines:
    """Reads one JSON object a line; nested values stay JSON."""

    def __init__(self, settings: StreamSettings) -> None:
        self._columns = dict(settings.columns)
        self._encoding = codecs.lookup(settings.format.encoding).name

    def describe(self, file: Found) -> Generator[int, None, Described]:
        """The type of each name over all lines. Raises ``Cut`` for an unterminated file."""
        yield from refuse_unterminated(file)
        digest = hashlib.blake2b(digest_size=32)
        found: dict[str, str] = {}
        with file.full.open("rb") as raw:
            while chunk := raw.read(BLOCK):
                digest.update(chunk)
                yield len(chunk)
        with _open(file) as source:
            moved = 0
            for line in self._lines(file, source):
                _merge(found, line)
                moved += len(line)
                if moved >= BLOCK:
                    yield moved
                    moved = 0
        fields = [(name, arrow.arrow_type(word)) for name, word in found.items()]
        return Described(pa.schema(fields), digest.hexdigest())

    def blocks(self, file: Found, source: IO[bytes], schema: pa.Schema) -> Iterator[Block]:
        """Rows in blocks; a line that is no object, or holds what does not fit, is set aside."""
        unpacked: Any = gzip.GzipFile(fileobj=source) if is_packed(file) else source
        rows: list[dict[str, Any]] = []
        places: list[tuple[int, bytes]] = []
        rejected: list[RejectedRow] = []
        size = 0
        most = max(1, min(_ROWS, _CELLS // max(1, len(schema))))
        for number, line in enumerate(self._lines(file, unpacked), 1):
            if not line.strip():
                continue
            value, problem = _object(line, number)
            if problem:
                rejected.append(_rejected(file.path, number, problem, line))
                continue
            rows.append(value)
            places.append((number, line))
            size += len(line)
            if len(rows) >= most or size >= BLOCK:
                yield self._block(file.path, rows, places, schema, rejected)
                rows, places, rejected, size = [], [], [], 0
        yield self._block(file.path, rows, places, schema, rejected)

    def _lines(self, file: Found, source: IO[bytes]) -> Iterator[bytes]:
        """The lines as UTF-8. Raises ``ConnectorError`` for bytes that are not in the encoding."""
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

    def _block(
        self,
        path: str,
        rows: list[dict[str, Any]],
        places: list[tuple[int, bytes]],
        schema: pa.Schema,
        rejected: list[RejectedRow],
    ) -> Block:
        misfits: arrow.Misfits = {}
        columns = []
        for field in schema:
            values = [row.get(field.name) for row in rows]
            written = partial(_written, places, field.name)
            column, bad = _column(values, field, written, plain=field.name not in self._columns)
            columns.append(column)
            for row, reason in bad.items():
                misfits.setdefault(row, f"column {field.name!r}: {reason}")
        batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        if not columns:  # a batch without columns has no rows either
            misfits = dict.fromkeys(range(len(rows)), "an object in which nothing is named")
        aside = [_rejected(path, places[row][0], why, places[row][1])
                 for row, why in sorted(misfits.items())]  # fmt: skip
        return arrow.drop_rows(batch, misfits), rejected + aside


def _open(file: Found) -> Any:
    return gzip.open(file.full, "rb") if is_packed(file) else file.full.open("rb")


def _lines(source: IO[bytes]) -> Iterator[bytes]:
    """Lines without their newline; ``readline`` takes seconds for one of some megabytes. Of one
    that is too long, so much that it shows.
    """
    pieces: list[bytes] = []
    while chunk := source.read(BLOCK):
        first, *others = chunk.split(b"\n")
        if sum(map(len, pieces)) <= LINE_LIMIT:
            pieces.append(first)
        for following in others:
            yield b"".join(pieces)
            pieces = [following]
    if last := b"".join(pieces):
        yield last


def _object(line: bytes, number: int) -> tuple[dict[str, Any], str]:
    if number == 1:
        line = line.removeprefix(_MARK)
    if len(line) > LINE_LIMIT:
        return {}, TOO_LONG
    try:
        value = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return {}, f"no JSON: {error}"
    if not isinstance(value, dict):
        return {}, "JSON, but no object"
    return value, ""


def _merge(found: dict[str, str], line: bytes) -> None:
    if not line.strip():
        return
    value, problem = _object(line, 1)
    if problem:
        return
    for name, item in value.items():
        word = "null" if item is None else _WORDS[type(item)]
        if word == "int64" and item not in _INT64:
            word = "text"
        known = found.get(name)
        if known is None:
            found[name] = word
        elif known != word:
            found[name] = _common(known, word)


def _common(one: str, other: str) -> str:
    if {one, other} == {"int64", "float64"}:
        return "float64"
    return types.common(one, other)


def _written(places: list[tuple[int, bytes]], name: str, row: int) -> str:
    """A value as its line has it, without spaces: read as a float it would lose digits."""
    value = _exact(places[row][1].removeprefix(_MARK))[name]
    return msgspec.json.format(bytes(value), indent=-1).decode()


def _column(
    values: list[Any], field: pa.Field, written: Callable[[int], str], *, plain: bool
) -> tuple[pa.Array, arrow.Misfits]:
    """As Arrow's own conversion where the file's values are of the type, else value by value."""
    if plain and field.type not in (arrow.JSON, pa.string()):
        try:
            return pa.array(values, field.type), {}
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass
    is_text, is_json = field.type == pa.string(), field.type == arrow.JSON
    as_written = () if pa.types.is_floating(field.type) else (float,)
    convert = parser(arrow.type_word(field.type))
    result: list[Any] = []
    misfits: arrow.Misfits = {}
    for row, value in enumerate(values):
        converted = None
        if value is not None:
            try:
                if is_json or (is_text and not isinstance(value, str)):
                    converted = written(row)
                else:
                    converted = convert(written(row) if isinstance(value, as_written) else value)
            except (ValueError, TypeError, ArithmeticError) as error:
                misfits[row] = str(error)
        result.append(converted)
    if field.type in (arrow.JSON, arrow.UUID):
        storage = pa.array(result, field.type.storage_type)
        return pa.ExtensionArray.from_storage(field.type, storage), misfits
    return pa.array(result, field.type), misfits


def _rejected(path: str, number: int, reason: str, line: bytes) -> RejectedRow:
    raw = line[:RAW_LIMIT].decode(errors="replace").rstrip("\r\n")
    return RejectedRow(f"{path}:{number}", reason, raw)
