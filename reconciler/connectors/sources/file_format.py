"""What the readers of the file formats share: how a file is opened, hashed and found whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa

from reconciler.config.desired import StreamSettings
from reconciler.connectors.ports import RejectedRow
from reconciler.connectors.sources.file_set import Found

BLOCK = 4 * 1024 * 1024
RAW_LIMIT = 4096
LINE_LIMIT = 64 * 1024 * 1024
"""A longer line is set aside without ever being in memory as a whole: a worker needs eight times as
much for one, and who writes all of a document into one line writes no lines."""
TOO_LONG = f"a line of more than {LINE_LIMIT >> 20} MiB"
_GZIP = b"\x1f\x8b"
_ENDINGS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


class Cut(Exception):
    """The file is not whole yet, or not for now; ``str()`` says why. It is left for a later run."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a look at a file says before its rows are read."""

    schema: pa.Schema
    """Of this file alone, in canonical types."""
    hash: str = ""
    """Of its bytes, if they all had to be read for this."""


Block = tuple[pa.RecordBatch | None, list[RejectedRow]]
"""Rows in the schema asked for, and lines set aside."""


class Format(Protocol):
    """A kind of file. One object per stream being read."""

    def describe(self, file: Found) -> Generator[int, None, Described]:
        """Look at the file, yielding how many bytes were read. Raises ``Cut``."""
        ...

    def blocks(self, file: Found, source: IO[bytes], schema: pa.Schema) -> Iterator[Block]:
        """The rows, from the open file, which it reads to its end once. Raises ``Cut``."""
        ...


class HashedFile(io.RawIOBase):
    """A file that is hashed while it is read from beginning to end."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__()
        self._raw = raw
        self._digest = hashlib.blake2b(digest_size=32)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._raw.readinto(buffer)  # type: ignore[attr-defined]
        self._digest.update(memoryview(buffer)[:count])
        return count

    def finish(self) -> str:
        """The hash of the whole file; reads what its reader left."""
        while chunk := self._raw.read(BLOCK):
            self._digest.update(chunk)
        return self._digest.hexdigest()


def kind_of(path: str, settings: StreamSettings) -> str:
    """``csv``, ``jsonl`` or ``parquet``; empty where the name does not say."""
    if settings.format.type != "auto":
        return settings.format.type
    return _ENDINGS.get(Path(unpacked_name(path)).suffix, "")


def is_header(file: Found, size: int, settings: StreamSettings) -> bool:
    """Whether its first ``size`` bytes are the line that names a CSV file's columns, and no row."""
    if kind_of(file.path, settings) != "csv" or is_packed(file) or size > BLOCK:
        return False
    with file.full.open("rb") as raw:
        return raw.read(size).count(b"\n") < 2


def is_packed(file: Found) -> bool:
    """Whether it is read through gzip, by its name."""
    return file.path.lower().endswith(".gz")


def unpacked_name(path: str) -> str:
    """In lower case, without what says that it is packed."""
    return path.lower().removesuffix(".gz")


def content_hash(file: Found, size: int | None = None) -> Generator[int, None, str]:
    """Hash a file's bytes, or the first ``size`` of them, yielding how many were read."""
    digest = hashlib.blake2b(digest_size=32)
    left = file.size if size is None else size
    with file.full.open("rb", buffering=0) as raw:
        while chunk := raw.read(BLOCK if size is None else min(BLOCK, left)):
            digest.update(chunk)
            left -= len(chunk)
            yield len(chunk)
    return digest.hexdigest()


def refuse_unterminated(file: Found) -> Generator[int, None, None]:
    """Raises ``Cut`` unless the text ends with its line, and its gzip with its trailer."""
    if is_packed(file):
        tail = yield from _unpacked_tail(file)
    elif file.size:
        with file.full.open("rb") as raw:
            if raw.read(len(_GZIP)) == _GZIP:
                raise Cut("it is packed by gzip, and its name does not end in .gz: rename it")
            raw.seek(-min(4, file.size), os.SEEK_END)
            tail = raw.read()
    else:
        tail = b""
    if not tail:
        raise Cut("it is empty, so it may still be being written")
    if not tail.rstrip(b"\0").endswith((b"\n", b"\r")):
        raise Cut("its last line does not end with a newline, so it may still be being written")


def _unpacked_tail(file: Found) -> Generator[int, None, bytes]:
    tail = b""
    try:
        with gzip.open(file.full, "rb") as unpacked:
            while chunk := unpacked.read(BLOCK):
                tail = chunk[-4:]
                yield len(chunk)
    except EOFError:
        raise Cut("its gzip is cut, so it may still be being written") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Cut(f"it is named .gz, but is no whole gzip: {error}") from None
    return tail
