"""One set of files being read: each is looked at, then read, hashed and found unchanged (C6)."""

from __future__ import annotations

import io
import os
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import pyarrow as pa

from catalog.records import Cursor, ErrorClass, FileEntry, HoldKind
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors import arrow
from reconciler.connectors.ports import (
    ConnectorError,
    Mark,
    NeedsAnswer,
    Progress,
    ReadItem,
    ReadRequest,
    Rejected,
    Rows,
    Stopped,
)
from reconciler.connectors.sources.file_csv import Csv
from reconciler.connectors.sources.file_format import (
    BLOCK,
    Cut,
    Described,
    Format,
    HashedFile,
    content_hash,
    kind_of,
)
from reconciler.connectors.sources.file_jsonl import JsonLines
from reconciler.connectors.sources.file_parquet import Parquet
from reconciler.connectors.sources.file_set import FileSet, Found
from reconciler.schema import types

_NAMED = 5
_GONE = "it went away meanwhile"
_UNREADABLE = (OSError, EOFError, zlib.error)
"""Rights, the disk, a mount that is gone; or a packed file that became another meanwhile."""
_Todo: TypeAlias = list[tuple[Found, Described]]
_Known: TypeAlias = list[tuple[Mark, pa.Schema]]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Work:
    """What a read of files has to do."""

    files: FileSet
    ledger: Mapping[str, FileEntry]
    cursor: Cursor
    whole: bool
    has_news: bool


_READERS: dict[str, Callable[[StreamSettings], Format]] = {
    "csv": Csv,
    "jsonl": JsonLines,
    "parquet": Parquet,
}


class Formats:
    """The readers of one stream, by kind of file."""

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        self._made: dict[str, Format] = {}

    def of(self, file: Found) -> Format:
        """The reader for a file, whose kind is known."""
        kind = kind_of(file.path, self._settings)
        if kind not in self._made:
            self._made[kind] = _READERS[kind](self._settings)
        return self._made[kind]


def shapes(files: Sequence[Found], settings: StreamSettings) -> pa.Schema:
    """The columns of these files together; one that is not whole is passed over."""
    formats = Formats(settings)
    schemas = []
    for file in files:
        look = formats.of(file).describe(file)
        try:
            while True:
                next(look)
        except StopIteration as end:
            schemas.append(end.value.schema)
        except (Cut, FileNotFoundError):
            continue
        except _UNREADABLE as error:
            raise _unreadable(file, error) from None
    return union(schemas, settings)


def union(schemas: Sequence[pa.Schema], settings: StreamSettings) -> pa.Schema:
    """All columns, in the order in which they are met, each of a type that holds all its files'."""
    words: dict[str, str] = {}
    for schema in schemas:
        for field in schema:
            word = arrow.type_word(field.type)
            known = words.get(field.name)
            words[field.name] = word if known is None else types.common(known, word)
    given = dict(settings.columns)
    return pa.schema(
        [(name, arrow.arrow_type(given.get(name, word))) for name, word in words.items()]
    )


class FilesRead:
    """The ``Read`` of files that are new or changed, or of all of them.

    ``schema`` and ``notes`` are complete once the first row is there: files are looked at first.
    """

    def __init__(self, work: Work, request: ReadRequest) -> None:
        self._work, self._request = work, request
        self._settings = request.settings
        self._formats = Formats(request.settings)
        self.schema = pa.schema([])
        self.key = request.settings.key
        self.whole = work.whole
        self.ordered = not work.whole
        self.has_news = work.has_news
        self.idle = ""
        self.notes: tuple[str, ...] = ()
        self._entries: list[FileEntry] = []
        self._twins: dict[str, str] = {}
        """Files with the content of another one that this read is to bring."""
        self._note_unsettled(work.files)

    def _note_unsettled(self, files: FileSet) -> None:
        ahead = files.ahead
        if len(files.unsettled) > len(ahead):
            just_now = len(files.unsettled) - len(ahead)
            self._note(f"{just_now} files were written to just now, and wait")
        if not ahead:
            return
        why = (
            f"{len(ahead)} files, such as {ahead[0].path!r}, were changed at a time that this "
            "machine's clock has not reached, and wait until it has: set it, or that of where they "
            "lie"
        )
        self._note(why)
        if not self.has_news:
            self.idle = f"nothing new: {why}"

    def items(self) -> Iterator[ReadItem]:
        """Files in order of their time; a mark after each, or one after all if all are read."""
        todo, known = yield from self._look()
        schemas = [described.schema for _, described in todo] or [shape for _, shape in known]
        self.schema = union(schemas, self._settings)
        for file, described in todo:
            yield from self._file(file, described)
        yield from self._known(mark for mark, _ in known)
        if self._work.whole:
            newest = max((e.mtime_ns // 1_000 for e in self._entries), default=None)
            yield Mark(self._work.cursor, newest, tuple(self._entries))

    def _known(self, marks: Iterable[Mark]) -> Iterator[Mark]:
        """Marks of files whose content is there by now: what was to bring it may have gone away."""
        brought = {entry.path for entry in self._entries}
        for mark in marks:
            path = mark.files[0].path
            twin = self._twins.get(path)
            if twin is None or twin in brought:
                yield mark
            else:
                self._note(f"{path!r} is left for a later run as well")

    def counts(self) -> Mapping[str, int]:
        """Nothing is left out but files, which the notes name."""
        return {}

    def close(self) -> None:
        """Nothing stays open."""

    # -- looking -------------------------------------------------------------------------------

    def _look(self) -> Generator[ReadItem, None, tuple[_Todo, _Known]]:
        """What is to be read, and the marks for files whose content was read before."""
        files, ledger = self._work.files, self._work.ledger
        todo: _Todo = []
        known: _Known = []
        changed: list[Found] = []
        wanted = [*files.new, *files.touched, *(files.same if self._work.whole else ())]
        sizes = Counter(f.size for f in files.new)
        sizes.update({entry.size for entry in ledger.values()})
        seen = {entry.hash: entry.path for entry in ledger.values()}
        for file in sorted(wanted, key=lambda f: (f.mtime_ns, f.path)):
            try:
                mark = None
                if not self._work.whole and (file.path in ledger or sizes[file.size] > 1):
                    mark = yield from self._read_before(file, seen)
                    if mark is None and file.path in ledger:
                        changed.append(file)
                described = yield from self._moving(self._formats.of(file).describe(file))
            except Cut as cut:
                self._leave(file, str(cut))
            except FileNotFoundError:
                self._leave(file, _GONE)
            except _UNREADABLE as error:
                raise _unreadable(file, error) from None
            else:
                if mark is None:
                    todo.append((file, described))
                else:
                    known.append((mark, described.schema))
        self._refuse_changed(changed)
        return todo, known

    def _read_before(
        self, file: Found, seen: dict[str, str]
    ) -> Generator[ReadItem, None, Mark | None]:
        """A mark that notes the file without its rows, if its content was read under any name."""
        content = yield from self._moving(content_hash(file))
        entry = self._work.ledger.get(file.path)
        if entry is not None:
            return self._noted(file, entry) if entry.hash == content else None
        other = seen.setdefault(content, file.path)
        if other == file.path:
            return None
        before = self._work.ledger.get(other)
        if before is None:
            self._twins[file.path] = other
        mark = self._noted(file, before or file.entry(content))
        if other in self._work.files.gone:
            seen[content] = file.path
            return Mark(self._work.cursor, files=mark.files, forgotten=(other,))
        self._note(f"{file.path!r} has the content of {other!r}, and is not read again")
        return mark

    def _noted(self, file: Found, before: FileEntry) -> Mark:
        return Mark(self._work.cursor, files=(file.entry(before.hash, before.seq),))

    def _moving(self, steps: Generator[int, None, _Result]) -> Generator[ReadItem, None, _Result]:
        """Progress for each step; the result of the last."""
        while True:
            try:
                moved = next(steps)
            except StopIteration as end:
                result: _Result = end.value
                return result
            self._stop_if_asked()
            yield Progress(moved)

    def _leave(self, file: Found, why: str) -> None:
        if self._work.whole:
            raise ConnectorError(
                ErrorClass.TRANSIENT,
                f"file {file.path!r}: {why}; a read of all files cannot leave one out",
            )
        self._note(f"{file.path!r} is left for a later run: {why}")

    def _note(self, text: str) -> None:
        self.notes = (*self.notes, text)

    def _stop_if_asked(self) -> None:
        if self._request.stopped():
            raise Stopped

    def _refuse_changed(self, changed: Sequence[Found]) -> None:
        """Files that were read and have other content now are a person's to judge."""
        rereads = self._settings.changed == "reread" and self._settings.mode is Mode.MERGE
        if not changed or rereads:
            return
        names = ", ".join(repr(f.path) for f in changed[:_NAMED])
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        raise NeedsAnswer(
            HoldKind.FILES_CHANGED,
            f"stream {self._request.stream!r}: {names}{more} changed after being read: `refresh` "
            "reads all files again in place of what arrived; with mode merge, "
            '`changed = "reread"` reads such files again',
            ("refresh", 'changed = "reread"'),
        )

    # -- reading -------------------------------------------------------------------------------

    def _file(self, file: Found, described: Described) -> Iterator[ReadItem]:
        try:
            raw = file.full.open("rb", buffering=0)
        except FileNotFoundError:
            self._leave(file, _GONE)
            return
        except OSError as error:
            raise _unreadable(file, error) from None
        with raw:
            if not file.is_still(os.fstat(raw.fileno())):
                self._leave(file, "it was written to meanwhile")
                return
            try:
                entry = yield from self._rows(file, described, raw)
            except _UNREADABLE as error:
                raise _unreadable(file, error) from None
        self._entries.append(entry)
        if not self._work.whole:
            yield Mark(self._work.cursor, file.mtime_ns // 1_000, (entry,))

    def _rows(
        self, file: Found, described: Described, raw: io.FileIO
    ) -> Generator[ReadItem, None, FileEntry]:
        """The file's rows, and at its end its line in the ledger."""
        hashed = HashedFile(raw)
        source = raw if described.hash else io.BufferedReader(hashed, BLOCK)
        for batch, rejected in self._formats.of(file).blocks(file, source, self.schema):
            self._stop_if_asked()
            if batch is not None and batch.num_rows:
                self._refuse_null_key(file, batch)
                yield Rows(batch)
            if rejected:
                yield Rejected(tuple(rejected))
        content = described.hash or hashed.finish()
        if not (file.is_still(os.fstat(raw.fileno())) and _lies_there(file)):
            raise ConnectorError(
                ErrorClass.TRANSIENT, f"file {file.path!r} was changed while it was read"
            )
        return file.entry(content)

    def _refuse_null_key(self, file: Found, batch: pa.RecordBatch) -> None:
        if self._settings.mode is not Mode.MERGE:
            return
        for name in self.key:
            index = batch.schema.get_field_index(name)
            if index < 0 or batch.column(index).null_count:
                raise NeedsAnswer(
                    HoldKind.NULL_KEY,
                    f"file {file.path!r} has rows without a value in the key column {name!r}, so "
                    "they cannot be merged: mend the file, or choose another key",
                    ("retry", "refresh"),
                )


def _unreadable(file: Found, error: Exception) -> ConnectorError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConnectorError(
        ErrorClass.TRANSIENT, f"file {file.path!r} cannot be read: {why}; check its rights and disk"
    )


def _lies_there(file: Found) -> bool:
    try:
        return file.is_still(file.full.stat())
    except OSError:
        return False
