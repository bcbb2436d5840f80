"""The source behind ``connector = "files"``: a folder whose files are read once each (C6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from catalog import position
from catalog.records import Cursor, CursorKind, ErrorClass, FileEntry, Position
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.arrow import to_schema
from reconciler.connectors.ports import (
    ConnectorError,
    Finding,
    FoundStream,
    Read,
    ReadRequest,
)
from reconciler.connectors.sources import definition
from reconciler.connectors.sources.file_format import kind_of
from reconciler.connectors.sources.file_match import unlisted
from reconciler.connectors.sources.file_read import FilesRead, Work, shapes
from reconciler.connectors.sources.file_set import (
    SETTLE,
    FileSet,
    Found,
    listing,
    must_be_there,
    refuse_unseen,
    sort_out,
)

_LOOKED_AT = 20


def open_files(name: str, options: Mapping[str, Any]) -> Files:
    """The source for a folder, ``path`` in the options; nothing is opened yet."""
    return Files(name, Path(str(options.get("path", "."))))


class Files:
    """Files under one folder."""

    def __init__(self, name: str, root: Path) -> None:
        self._name = name
        self._root = root

    def check(self, streams: Mapping[str, StreamSettings]) -> list[Finding]:
        """Whether the folder can be read, and how many files each stream's glob finds."""
        try:
            must_be_there(self._root, self._name)
        except ConnectorError as error:
            return [Finding("problem", str(error))]
        findings = [Finding("ok", f"folder {self._root}")]
        for stream, settings in streams.items():
            found = listing(self._root, settings.path, self._name)
            unclear = [f.path for f in found if not kind_of(f.path, settings)]
            if unclear:
                findings.append(Finding("problem", f"{stream}: {_unclear(unclear[0])}"))
            elif found:
                findings.append(Finding("ok", f"{stream}: {_number(len(found))}"))
            else:
                findings.append(
                    Finding("warning", f"{stream}: no file matches {settings.path!r} yet")
                )
            for folder in unlisted(self._root, settings.path):
                findings.append(Finding("warning", f"{stream}: {_closed(folder)}"))
        return findings

    def discover(
        self, select: Sequence[str], named: Mapping[str, StreamSettings]
    ) -> list[FoundStream]:
        """The streams named, with the columns of their newest files; a folder selects none.

        Raises ``ConnectorError`` without the folder, whatever is named.
        """
        del select
        must_be_there(self._root, self._name)
        result = []
        for stream, settings in named.items():
            files = listing(self._root, settings.path, self._name)[-_LOOKED_AT:]
            schema = shapes(files, settings)
            result.append(FoundStream(stream, to_schema(schema, settings.key)))
        return result

    def streams(self, select: Sequence[str]) -> list[str]:
        """A folder selects none."""
        del select
        must_be_there(self._root, self._name)
        return []

    def read(self, request: ReadRequest) -> Read:
        """Compare the folder with the ledger. Raises ``NeedsAnswer`` for files that changed."""
        settings = request.settings
        found = listing(self._root, settings.path, self._name)
        unclear = [f.path for f in found if not kind_of(f.path, settings)]
        if unclear:
            raise ConnectorError(
                ErrorClass.PERMANENT, f"connection {self._name!r}: {_unclear(unclear[0])}"
            )
        whole = request.refresh or settings.mode is Mode.REPLACE
        known = request.ledger()
        ledger = () if request.refresh else known
        if whole:
            there = {file.path for file in found}
            missing = (entry.path for entry in known if entry.path not in there)
            refuse_unseen(self._root, missing, self._name)
        settle = SETTLE if settings.settle is None else settings.settle
        files = sort_out(found, ledger, settle)
        moving = _moving(files, found, known)
        if request.refresh and moving:
            raise ConnectorError(
                ErrorClass.TRANSIENT,
                f"connection {self._name!r}: file {moving[0].path!r}, which was read before, was "
                "written to just now: a read of all files cannot leave it out",
            )
        body = self._definition(settings)
        replaced = settings.mode is Mode.REPLACE
        if request.cursor is not None and definition.counts(request.cursor, replaced=replaced):
            kind = CursorKind.SNAPSHOT_ID
            definition.refuse_another(request.stream, request.cursor.definition, body, kind, "")
        work = Work(
            files=files,
            ledger={} if whole else {entry.path: entry for entry in ledger},
            cursor=Cursor(CursorKind.SNAPSHOT_ID, body, _next(request.cursor)),
            whole=whole,
            has_news=_has_news(files, whole=whole) and not (whole and moving),
            closed=() if whole else tuple(map(_closed, unlisted(self._root, settings.path))),
        )
        return FilesRead(work, request)

    def _definition(self, settings: StreamSettings) -> str:
        parts: dict[str, object] = {
            "source": f"files://{self._root}",
            "key": sorted(settings.key),
            "mode": settings.mode.value,
        }
        return definition.canonical(parts)

    def close(self) -> None:
        """Nothing is open between reads."""


def _has_news(files: FileSet, *, whole: bool) -> bool:
    return bool(files.new or files.touched or (whole and files.gone))


def _moving(files: FileSet, found: Sequence[Found], known: Sequence[FileEntry]) -> list[Found]:
    """Files that were read, and are just being rewritten or renamed: without them, all files were
    fewer than they are.
    """
    there = {file.path for file in found}
    read = {entry.path for entry in known}
    gone = {entry.inode for entry in known if entry.path not in there}
    return [file for file in files.unsettled if file.path in read or file.inode in gone]


def _closed(folder: str) -> str:
    return f"folder {folder.rstrip('/')!r} cannot be listed, and what lies in it is not read"


def _next(cursor: Cursor | None) -> Position:
    version = 0 if cursor is None else cast(int, position.decode(cursor.position))
    return position.encode("snapshot", version + 1)


def _number(files: int) -> str:
    return "1 file matches" if files == 1 else f"{files} files match"


def _unclear(path: str) -> str:
    return (
        f"the name of file {path!r} does not say what it is; name it .csv, .jsonl or .parquet "
        "(.gz may follow), or set `format = { type = … }`"
    )
