"""CSV: text by pyarrow's parser, typed where ``columns`` says so; bad lines are set aside."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import sys
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from catalog.records import ErrorClass
from reconciler.config.desired import StreamSettings
from reconciler.connectors import arrow
from reconciler.connectors.ports import ConnectorError, RejectedRow
from reconciler.connectors.sources.csv_lines import Line, is_open, lines
from reconciler.connectors.sources.file_format import (
    BLOCK,
    RAW_LIMIT,
    Block,
    Described,
    is_packed,
    refuse_unterminated,
    unpacked_name,
)
from reconciler.connectors.sources.file_set import Found

_ROWS = 16_384


class Csv:
    """Reads CSV as ``settings.format`` describes it."""

    def __init__(self, settings: StreamSettings) -> None:
        self._format = settings.format
        self._names: dict[str, list[str]] = {}
        self._header_at: dict[str, int] = {}
        """Its line; 0: there is no header. Empty lines may come before it."""

    def describe(self, file: Found) -> Generator[int, None, Described]:
        """The header's names, each ``text``. Raises ``Cut`` for an unterminated file."""
        yield from refuse_unterminated(file)
        names, self._header_at[file.path] = self._header(file)
        self._names[file.path] = names
        return Described(pa.schema([(name, pa.string()) for name in names]))

    def blocks(self, file: Found, source: IO[bytes], schema: pa.Schema) -> Iterator[Block]:
        """Rows by pyarrow; where it gives up, the rest of the file line by line."""
        names = self._names[file.path]
        if not names:
            return
        parsed = _Parsed(self, file, _Shaper(file, names, schema, self._format.null))
        try:
            with _quiet_about(parsed.invalid):
                yield from parsed.blocks(self._reader(file, source, names, parsed.invalid))
        except (pa.ArrowInvalid, UnicodeError):
            yield from self._by_line(parsed)
            return
        if parsed.ends_in_quote:
            yield from self._by_line(parsed)

    def _reader(
        self, file: Found, source: IO[bytes], names: list[str], invalid: Any
    ) -> Iterable[pa.RecordBatch]:
        form = self._format
        # Arrow's own gzip refuses the zeros that some writers fill up their last block with.
        raw: Any = gzip.GzipFile(fileobj=source) if is_packed(file) else source
        reader: Iterable[pa.RecordBatch] = pa_csv.open_csv(
            pa.PythonFile(_Pieces(raw, form.encoding), mode="r"),
            read_options=pa_csv.ReadOptions(
                column_names=names,
                skip_rows_after_names=self._header_at[file.path],  # counts empty ones too
                block_size=BLOCK,
                use_threads=False,
            ),
            parse_options=pa_csv.ParseOptions(
                delimiter=self._delimiter(file),
                quote_char=form.quote or False,
                newlines_in_values=True,
                invalid_row_handler=invalid,
            ),
            convert_options=pa_csv.ConvertOptions(
                # Bytes first: one value that is no UTF-8 would fail the whole block.
                column_types={name: pa.binary() for name in names},
                null_values=list(form.null),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        return reader

    def records(self, file: Found) -> Iterator[Line]:
        """The data lines of a file, one by one. Raises ``ConnectorError`` past what decodes."""
        number = 0
        try:
            with _text(file, self._format.encoding) as text:
                for line in lines(text, *self.marks(file)):
                    if number or not self._format.header:
                        yield line
                    number = line.number
        except UnicodeError as error:
            raise _undecodable(file, self._format.encoding, number + 1, error) from None

    def marks(self, file: Found) -> tuple[str, str]:
        """Delimiter and quote."""
        return self._delimiter(file), self._format.quote

    def _by_line(self, parsed: _Parsed) -> Iterator[Block]:
        """What pyarrow did not give: each line that parses is a row, each other is set aside."""
        good, bad = parsed.good, parsed.bad
        rows: list[Line] = []
        rejected: list[RejectedRow] = []
        size = 0
        for line in self.records(parsed.file):
            reason = problem(line, len(parsed.shaper.names))
            if reason:
                bad -= 1
                if bad < 0:
                    place = f"{parsed.file.path}:{line.number}"
                    rejected.append(RejectedRow(place, reason, _readable(line.raw[:RAW_LIMIT])))
                continue
            good -= 1
            if good < 0:
                rows.append(line)
                size += len(line.raw)
            if len(rows) >= _ROWS or size >= BLOCK:
                batch, misfits = parsed.shaper.lines(rows)
                yield batch, rejected + misfits
                rows, rejected, size = [], [], 0
        batch, misfits = parsed.shaper.lines(rows)
        yield batch, rejected + misfits

    def _delimiter(self, file: Found) -> str:
        tabbed = unpacked_name(file.path).endswith(".tsv")
        return "\t" if tabbed and self._format.delimiter == "," else self._format.delimiter

    def _header(self, file: Found) -> tuple[list[str], int]:
        """The columns' names, and the header's line."""
        try:
            with _text(file, self._format.encoding) as text:
                first = next(lines(text, *self.marks(file)), None)
        except UnicodeError as error:
            raise _undecodable(file, self._format.encoding, 1, error) from None
        if first is None:
            return [], 0
        if first.problem:
            raise _unusable(file, f"its first line cannot be read: {first.problem}")
        if not self._format.header:
            return [f"column_{i}" for i in range(1, len(first.values) + 1)], 0
        names = [value or f"column_{i}" for i, value in enumerate(first.values, 1)]
        odd = [name for name in names if _readable(name) != name]
        if odd:
            raise _unusable(
                file,
                f"its header, line {first.number}, names a column {_readable(odd[0])!r}, which is "
                f"no {self._format.encoding}; set `format = {{ encoding = … }}`, or mend the file",
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise _unusable(file, f"its header names {', '.join(map(repr, twice))} twice")
        return names, first.number


class _Pieces(io.RawIOBase):
    """UTF-8 in pieces of which none ends with a CR: an LF at the beginning of the next one would be
    passed over by pyarrow as the rest of a line's end, be it within quotes. And none holds a NUL:
    looking for the end of a block, pyarrow overlooks quotes that come soon after one.
    """

    def __init__(self, raw: IO[bytes], encoding: str) -> None:
        super().__init__()
        self._raw = raw
        self._kept = b""
        as_it_is = codecs.lookup(encoding).name == "utf-8"  # what is none costs its line alone
        self._decoder = None if as_it_is else codecs.getincrementaldecoder(encoding)()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes, recoded to UTF-8; empty at the end only."""
        while True:
            more = self._raw.read(size - 1 if self._decoder is None else size // 4)
            text = more if self._decoder is None else self._decoder.decode(more, not more).encode()
            if b"\0" in text:
                raise pa.ArrowInvalid("there is a NUL in it")
            piece, self._kept = self._kept + text, b""
            if more and piece.endswith(b"\r"):
                piece, self._kept = piece[:-1], b"\r"
            if piece or not more:
                return piece


class _Parsed:
    """What pyarrow made of a file so far: how many good and bad records went out, in its order."""

    def __init__(self, csv: Csv, file: Found, shaper: _Shaper) -> None:
        self.file, self.shaper = file, shaper
        self.good = self.bad = 0
        self.ends_in_quote = False
        self._marks = csv.marks(file)
        self._places = _Places(csv.records(file), len(shaper.names))
        self._waiting: list[Any] = []

    def invalid(self, row: Any) -> str:
        """Called by the parser for a record with another number of values."""
        self._waiting.append(row)
        return "skip"

    def blocks(self, reader: Iterable[pa.RecordBatch]) -> Iterator[Block]:
        """Each batch but the last at once; the last when its end was looked at.

        A quote that is never closed swallows the rest of the file into the last record. The file
        ends with a newline, so that record then ends with one too: it is left to ``_by_line``.
        """
        held: pa.RecordBatch | None = None
        for batch in reader:
            if held is not None:
                yield self._block(held)
            held = batch
        if held is not None and held.num_rows:
            last = held.column(held.num_columns - 1)[held.num_rows - 1].as_py() or b""
            if last.endswith((b"\n", b"\r")):
                held = held.slice(0, held.num_rows - 1)
                self.ends_in_quote = True
        if held is not None or self._waiting:
            yield self._block(held)
        self.ends_in_quote |= bool(self._waiting)

    def _block(self, batch: pa.RecordBatch | None) -> Block:
        rejected = []
        self._places.forget(self.good, self.bad)
        waiting, self._waiting = self._waiting, []
        if waiting and is_open(waiting[-1].text, *self._marks):
            self._waiting = [waiting.pop()]  # the file's last, met while a batch was still held
        for row in waiting:
            reason = f"{row.actual_columns} values, but {row.expected_columns} columns"
            place = f"{self.file.path}:{self._places.bad(self.bad)}"
            rejected.append(RejectedRow(place, reason, row.text[:RAW_LIMIT]))
            self.bad += 1
        if batch is None:
            return None, rejected
        start = self.good
        self.good += batch.num_rows
        rows, misfits = self.shaper.shape(batch, lambda row: self._places.good(start + row))
        return rows, rejected + misfits


class _Lines:
    """In which lines records of one kind stand, from the first that may still be asked for."""

    def __init__(self) -> None:
        self.count = self.first = 0
        self.numbers = array("Q")

    def add(self, number: int) -> None:
        if self.count >= self.first:
            self.numbers.append(number)
        self.count += 1

    def forget(self, before: int) -> None:
        del self.numbers[: before - self.first]
        self.first = before


class _Places:
    """Where records stand in their file; read through only if one has to be named."""

    def __init__(self, records: Iterator[Line], width: int) -> None:
        self._records, self._width = records, width
        self._good, self._bad = _Lines(), _Lines()

    def forget(self, good: int, bad: int) -> None:
        """None before these will be asked for: a file may have hundreds of millions."""
        self._good.forget(good)
        self._bad.forget(bad)

    def good(self, index: int) -> int:
        """The line of the good record of that index."""
        return self._find(self._good, index)

    def bad(self, index: int) -> int:
        """The line of the bad record of that index."""
        return self._find(self._bad, index)

    def _find(self, lines: _Lines, index: int) -> int:
        while lines.count <= index:
            line = next(self._records, None)
            if line is None:
                return 0
            (self._bad if problem(line, self._width) else self._good).add(line.number)
        return lines.numbers[index - lines.first]


class _Shaper:
    """Brings a file's columns of bytes into the read's schema."""

    def __init__(
        self, file: Found, names: list[str], schema: pa.Schema, null: tuple[str, ...]
    ) -> None:
        self.names = names
        self._path = file.path
        self._null = set(null)
        self._schema = schema

    def lines(self, rows: list[Line]) -> tuple[pa.RecordBatch, list[RejectedRow]]:
        """Rows out of lines."""
        arrays = []
        for i in range(len(self.names)):
            values = [
                None
                if row.values[i] in self._null and not row.quoted[i]
                else row.values[i].encode("utf-8", "surrogateescape")
                for row in rows
            ]
            arrays.append(pa.array(values, pa.binary()))
        batch = pa.RecordBatch.from_arrays(arrays, names=self.names)
        return self.shape(batch, lambda row: rows[row].number)

    def shape(
        self, batch: pa.RecordBatch, line_of: Callable[[int], int]
    ) -> tuple[pa.RecordBatch, list[RejectedRow]]:
        """The rows whose values fit, and the others."""
        misfits: arrow.Misfits = {}
        columns = []
        for field in self._schema:
            if field.name not in self.names:
                columns.append(pa.nulls(batch.num_rows, field.type))
                continue
            text, bad = arrow.cast(batch.column(field.name), pa.string())
            column, worse = arrow.cast(text, field.type)
            columns.append(column)
            for row, reason in {**worse, **bad}.items():
                misfits.setdefault(row, f"column {field.name!r}: {reason}")
        shaped = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        rejected = [
            RejectedRow(f"{self._path}:{line_of(row)}", reason, _raw(batch, row))
            for row, reason in sorted(misfits.items())
        ]
        return arrow.drop_rows(shaped, misfits), rejected


def problem(line: Line, width: int) -> str:
    """Why a line is no row; empty if it is one."""
    if line.problem or len(line.values) == width:
        return line.problem
    return f"{len(line.values)} values, but {width} columns"


def _raw(batch: pa.RecordBatch, row: int) -> str:
    values = [column[row].as_py() for column in batch.columns]
    return ",".join("" if v is None else v.decode(errors="replace") for v in values)[:RAW_LIMIT]


def _text(file: Found, encoding: str) -> io.TextIOWrapper:
    packed: Any = gzip.open if is_packed(file) else open
    raw = packed(file.full, "rb")
    return io.TextIOWrapper(raw, encoding=encoding, errors="surrogateescape", newline="")


def _readable(text: str) -> str:
    """With a mark in place of each byte that was no text."""
    return text.encode("utf-8", "surrogateescape").decode(errors="replace")


@contextlib.contextmanager
def _quiet_about(handler: Any) -> Iterator[None]:
    """Arrow cannot show a handler a record that is no UTF-8: it gives up, which is dealt with, and
    has Python print a traceback, which would only frighten who reads the run's log.
    """
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if found.object != handler or not isinstance(found.exc_value, UnicodeDecodeError):
            before(found)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before


def _undecodable(file: Found, encoding: str, line: int, error: UnicodeError) -> ConnectorError:
    why = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
    return _unusable(
        file,
        f"from line {line} on it cannot be read as {encoding} ({why}); set "
        "`format = { encoding = … }`, or mend the file",
    )


def _unusable(file: Found, why: str) -> ConnectorError:
    return ConnectorError(ErrorClass.PERMANENT, f"file {file.path!r}: {why}")
