"""One set of files being read: each is looked at, then read, hashed and found unchanged (C6)."""

from __future__ import annotations

import io
import os
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import pyarrow as pa

from catalog.records import Cursor, ErrorClass, FileEntry, HoldKind
from reconciler.config.desired import Mode, StreamSettings, fold
from reconciler.connectors import arrow
from reconciler.connectors.ports import (
    NOTED_FILE_BYTES,
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
    is_header,
    kind_of,
)
from reconciler.connectors.sources.file_jsonl import JsonLines
from reconciler.connectors.sources.file_parquet import Parquet
from reconciler.connectors.sources.file_set import FileSet, Found
from reconciler.schema import types

WHOLE_BYTES = 60 * 1024 * 1024
"""What a commit, which is one message, can note of files."""
NOTES = 100
_NAMED = 5
_GONE = "it went away meanwhile"
_UNREADABLE = (OSError, EOFError, zlib.error)
"""Rights, the disk, a mount that is gone; or a packed file that became another meanwhile."""
_Todo: TypeAlias = list[tuple[Found, Described]]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Work:
    """What a read of files has to do."""

    files: FileSet
    ledger: Mapping[str, FileEntry]
    cursor: Cursor
    whole: bool
    has_news: bool
    closed: tuple[str, ...] = ()
    """What is not seen, in words."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A file whose rows come, or came, by another name: noted, once they are there."""

    file: Found
    of: str
    """By which name."""
    entry: FileEntry
    forgotten: tuple[str, ...]
    """That name, where it is gone."""


def _rotated(work: Work) -> tuple[dict[int, list[FileEntry]], list[FileEntry]]:
    """Of what was read: that which no longer lies at its path, by inode, and that whose file is
    being written to, as where a log is copied away and begun anew.
    """
    same = {file.path for file in work.files.same}
    moved: dict[int, list[FileEntry]] = {}
    for entry in work.ledger.values():
        if entry.path not in same:
            moved.setdefault(entry.inode, []).append(entry)
    written = (work.ledger.get(file.path) for file in work.files.unsettled)
    return moved, [entry for entry in written if entry is not None]


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
    """All columns, in the order in which they are met, each of a type that holds all its files' and
    spelled as the config does, or the first file.
    """
    words: dict[str, str] = {}
    named = (*settings.key, *(name for name, _ in settings.columns))
    spelled = {fold(name): name for name in named}
    for schema in schemas:
        for name, field in zip(_columns(schema, spelled), schema, strict=True):
            word = arrow.type_word(field.type)
            known = words.get(name)
            words[name] = word if known is None else types.common(known, word)
    given = dict(settings.columns)
    return pa.schema(
        [(name, arrow.arrow_type(given.get(name, word))) for name, word in words.items()]
    )


def _columns(schema: pa.Schema, spelled: dict[str, str]) -> list[str]:
    """What a file's columns are called in the table: one whose name comes in another case than in
    a file before is the same, unless the file has both.
    """
    folded = Counter(map(fold, schema.names))
    return [
        name if folded[fold(name)] > 1 else spelled.setdefault(fold(name), name)
        for name in schema.names
    ]


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
        self.ordered = not work.whole
        self.has_news = work.has_news
        self.idle = ""
        self._notes: list[str] = []
        self._noted = 0
        self._waits, self._why = 0, ""
        self._entries: list[FileEntry] = []
        self._moved, self._written = _rotated(work)
        self._note_unsettled(work.files)
        for words in work.closed:
            self._wait(words)

    def _note_unsettled(self, files: FileSet) -> None:
        ahead = files.ahead
        if len(files.unsettled) > len(ahead):
            just_now = len(files.unsettled) - len(ahead)
            self._wait(f"{just_now} files were written to just now, and wait")
        if not ahead:
            return
        why = (
            f"{len(ahead)} files, such as {ahead[0].path!r}, were changed at a time that this "
            "machine's clock has not reached, and wait until it has: set it, or that of where they "
            "lie"
        )
        self._wait(why)

    def items(self) -> Iterator[ReadItem]:
        """Files in order of their time; a mark after each, or one after all if all are read."""
        todo, known = yield from self._look()
        schemas = [described.schema for _, described in todo or known]
        self.schema = union(schemas, self._settings)
        # First, since a batch may be the last of this run: once a file has another content in the
        # ledger, nothing there says that its copy was read.
        others = yield from self._note_known([one for one, _ in known])
        for file, described in todo:
            yield from self._file(file, described)
        for one in (yield from self._note_known(others)):  # it went away, or was written to
            self._leave(one.file, f"it has the content of {one.of!r}, which was not read")
        if self._work.whole:
            newest = max((e.mtime_ns // 1_000 for e in self._entries), default=None)
            yield Mark(self._work.cursor, newest, tuple(self._entries))

    def _note_known(self, known: Sequence[_Known]) -> Generator[Mark, None, list[_Known]]:
        """Marks for those whose content is there by now; the others. Names that were exchanged are
        noted at once: a run that were cut off between two would not know one content again.
        """
        ledger = self._work.ledger
        there = {entry.hash for entry in (*ledger.values(), *self._entries)}
        ready = [one for one in known if one.entry.hash in there]
        if self._work.whole:
            self._entries += [one.entry for one in ready]
        else:
            exchanged = []
            for one in ready:
                before = ledger.get(one.file.path)
                if before is None or before.hash == one.entry.hash:
                    yield self._mark([one])
                else:
                    exchanged.append(one)
            if exchanged:
                yield self._mark(exchanged)
        return [one for one in known if one.entry.hash not in there]

    def _mark(self, known: Sequence[_Known]) -> Mark:
        entries = tuple(one.entry for one in known)
        forgotten = tuple(path for one in known for path in one.forgotten)
        return Mark(self._work.cursor, files=entries, forgotten=forgotten)

    def counts(self) -> Mapping[str, int]:
        """Nothing is left out but files, which the notes name."""
        return {}

    def close(self) -> None:
        """Nothing stays open."""

    # -- looking -------------------------------------------------------------------------------

    def _look(
        self,
    ) -> Generator[ReadItem, None, tuple[_Todo, list[tuple[_Known, Described]]]]:
        """What is to be read, and the files whose content was, or is, read by another name."""
        files, ledger = self._work.files, self._work.ledger
        todo: _Todo = []
        known: list[tuple[_Known, Described]] = []
        changed: list[str] = []
        wanted = [*files.new, *files.touched, *(files.same if self._work.whole else ())]
        if self._work.whole:
            _refuse_too_many(wanted)
        sizes = Counter(f.size for f in wanted)
        sizes.update({entry.size for entry in ledger.values()})
        seen = {entry.hash: entry.path for entry in ledger.values()}
        for file in sorted(wanted, key=lambda f: (f.mtime_ns, f.path)):
            try:
                before = None
                if file.path in ledger or sizes[file.size] > 1:
                    before = yield from self._read_before(file, seen)
                read_as = file.path if file.path in ledger else (yield from self._grown(file))
                if before is None and read_as:
                    as_what = "" if read_as == file.path else f" (as {read_as!r})"
                    changed.append(f"{file.path!r}{as_what}")
                described = yield from self._moving(self._formats.of(file).describe(file))
            except Cut as cut:
                self._leave(file, str(cut))
            except FileNotFoundError:
                self._leave(file, _GONE)
            except _UNREADABLE as error:
                raise _unreadable(file, error) from None
            else:
                if before is None:
                    todo.append((file, described))
                else:
                    known.append((before, described))
        self._refuse_changed(changed)
        return todo, known

    def _read_before(
        self, file: Found, seen: dict[str, str]
    ) -> Generator[ReadItem, None, _Known | None]:
        """How to note the file without its rows, if its content is read under any name."""
        content = yield from self._moving(content_hash(file))
        entry = self._work.ledger.get(file.path)
        if entry is not None and entry.hash == content:
            return self._known(file, file.path, content)
        other = seen.setdefault(content, file.path)
        if other == file.path:
            return None
        if other in self._work.files.gone:
            seen[content] = file.path
            return self._known(file, other, content, forgotten=(other,))
        self._note(f"{file.path!r} has the content of {other!r}, and is not read again")
        return self._known(file, other, content)

    def _grown(self, file: Found) -> Generator[ReadItem, None, str]:
        """By which name the beginning of this new file was read: of a log that was written to after
        that, and then rotated. Rows that are merged may come again.
        """
        if self._settings.mode is not Mode.APPEND:
            return ""
        entries: list[FileEntry] = [*self._moved.get(file.inode, ()), *self._written]
        for entry in entries:
            if entry.size >= file.size or is_header(file, entry.size, self._settings):
                continue
            if (yield from self._moving(content_hash(file, entry.size))) == entry.hash:
                return entry.path
        return ""

    def _known(self, file: Found, of: str, content: str, forgotten: tuple[str, ...] = ()) -> _Known:
        before = self._work.ledger.get(of)
        if before is not None and before.hash != content:
            before = None  # it comes now, by that name
        return _Known(file, of, file.entry(content, before), forgotten)

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
        self._wait(f"{file.path!r} is left for a later run: {why}")

    def _note(self, text: str) -> None:
        self._noted += 1
        if self._noted <= NOTES:
            self._notes.append(text)

    @property
    def notes(self) -> tuple[str, ...]:
        """The first of what is to be said of files, and how much more there is: each run says it
        all, in one message, and of each new one a line is logged."""
        more = self._noted - len(self._notes)
        return (*self._notes, f"and {more} more such notes") if more else tuple(self._notes)

    def _wait(self, why: str) -> None:
        """Something is there and is not read, which would surprise if nothing else is."""
        self._note(why)
        self._waits += 1
        if self._waits == 1:
            self._why = f"nothing new: {why}"
        others = self._waits - 1
        self.idle = f"{self._why}; {others} more such" if others else self._why

    def _stop_if_asked(self) -> None:
        if self._request.stopped():
            raise Stopped

    def _refuse_changed(self, changed: Sequence[str]) -> None:
        """Files that were read and have other content now are a person's to judge."""
        rereads = self._settings.changed == "reread" and self._settings.mode is Mode.MERGE
        if not changed or rereads:
            return
        names = ", ".join(changed[:_NAMED])
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        raise NeedsAnswer(
            HoldKind.FILES_CHANGED,
            f"stream {self._request.stream!r}: {names}{more} changed after being read: `refresh` "
            "reads all files again in place of what arrived; `retry` goes on once they are as they "
            'were or, with mode merge, `changed = "reread"` says to read such files again',
            ("refresh", "retry"),
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
        columns = _columns(described.schema, {fold(name): name for name in self.schema.names})
        theirs = dict(zip(columns, described.schema.names, strict=True))
        schema = pa.schema([f.with_name(theirs.get(f.name, f.name)) for f in self.schema])
        for batch, rejected in self._formats.of(file).blocks(file, source, schema):
            self._stop_if_asked()
            if batch is not None and batch.num_rows:
                named = batch.rename_columns(self.schema.names)
                self._refuse_null_key(file, named)
                yield Rows(named)
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


def _refuse_too_many(files: Sequence[Found]) -> None:
    """Before hours are spent on reading what cannot be committed at once, as it has to be."""
    if sum(NOTED_FILE_BYTES + len(file.path.encode()) for file in files) > WHOLE_BYTES:
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"a read of all files, as `refresh` and mode `replace` do, is one commit, and "
            f"{len(files):,} files are more than it can note: part them among streams, each with a "
            "`path` of its own",
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
