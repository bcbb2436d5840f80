"""What is fed: every small grammar and format that takes what people, files and peers write.

Each target is told bytes and answers nothing. What it refuses in its own words is fine; anything
else that is raised is a fault, and so is an answer that contradicts itself.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import tempfile
from collections.abc import Callable
from pathlib import Path

from catalog import position
from reconciler.config import ConfigError, load, words
from reconciler.config.desired import FileFormat, Mode, StreamSettings
from reconciler.config.words import Wrong
from reconciler.connectors.parse import parser
from reconciler.connectors.ports import ConnectorError, NeedsAnswer, Secrets
from reconciler.connectors.registry import open_source
from reconciler.plan.schedule import BadSchedule, latest_due, next_after
from reconciler.run import messages as m
from reconciler.schema import types
from tests.source_kit import take

_NOW = int(dt.datetime(2026, 11, 24, tzinfo=dt.UTC).timestamp()) * 1_000_000


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def schedule(data: bytes) -> None:
    """A schedule that is taken comes due, before and after any moment, in order."""
    line, _, zone = _text(data).partition("|")
    try:
        found = words.schedule(line, words.timezone(zone) if zone else None)
        due = next_after(found, "p", _NOW)
        last = latest_due(found, "p", None, _NOW)
    except (Wrong, BadSchedule):
        return
    assert due > _NOW
    assert last is not None
    assert last <= _NOW
    assert next_after(found, "p", last) > _NOW or next_after(found, "p", last) == due


def duration(data: bytes) -> None:
    """A duration that is taken says the same when it is written out."""
    with contextlib.suppress(Wrong):
        seconds = words.duration(_text(data))
        assert words.duration(words.duration_text(seconds)) == seconds


def size(data: bytes) -> None:
    """A size is a number of bytes."""
    with contextlib.suppress(Wrong):
        assert words.size(_text(data)) >= 0


def name(data: bytes) -> None:
    """Names of every kind."""
    text = _text(data)
    for check in (words.stream_name, words.table, words.partition, words.listen, words.timezone):
        with contextlib.suppress(Wrong):
            assert check(text)
    with contextlib.suppress(Wrong):
        found = words.name(text, "pipeline")
        assert found == text
        assert "/" not in found
        assert "." not in found


def type_word(data: bytes) -> None:
    """A type of the config is a type of the schema."""
    with contextlib.suppress(Wrong):
        types.parse(words.type_word(_text(data)))
    with contextlib.suppress(types.BadType):
        found = types.parse(_text(data))
        assert types.parse(found.word) == found


def cursor(data: bytes) -> None:
    """A cursor value that is taken is read back as itself."""
    text = _text(data)
    for tag in position.TAGS:
        with contextlib.suppress(position.BadPosition):
            found = position.parse(tag, text)
            assert position.encode(tag, position.decode(found)) == found
            assert len(found.text) <= len(text) + 100


def value(data: bytes) -> None:
    """A value of a column, or a sentence."""
    for word in ("int64", "decimal(18,2)", "timestamp", "date", "time", "uuid", "json", "bool"):
        with contextlib.suppress(ValueError, ArithmeticError, TypeError):
            parser(word)(_text(data))


def message(data: bytes) -> None:
    """A message of either side, or a broken peer."""
    for decode in (m.for_daemon, m.for_worker):
        with contextlib.suppress(m.BrokenPeer):
            repr(decode(data))


def config(data: bytes) -> None:
    """A config file is a project, or a list of problems."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            load(path, {})


def _file(kind: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"f.{kind}").write_bytes(data)
        source = open_source("inbox", "files", {"path": folder}, Secrets({}))
        settings = StreamSettings(path="*", mode=Mode.APPEND, settle=0.0, format=FileFormat())
        with contextlib.suppress(ConnectorError, NeedsAnswer):
            taken = take(source, "s", settings)
            for row in taken.rejected:
                (row.place + row.reason + row.raw).encode()


def csv(data: bytes) -> None:
    """A CSV file is rows, rows set aside, or an error of the connectors' classes."""
    _file("csv", data)


def jsonl(data: bytes) -> None:
    """JSON lines likewise."""
    _file("jsonl", data)


def packed(data: bytes) -> None:
    """A gzip likewise."""
    _file("csv.gz", data)


def parquet(data: bytes) -> None:
    """A Parquet file likewise."""
    _file("parquet", data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *(schedule, duration, size, name, type_word, cursor, value, message, config),
        *(csv, jsonl, packed, parquet),
    )
}
SEEDS: dict[str, tuple[bytes, ...]] = {
    "schedule": (
        *(b"every 15m", b"0 0 * * *|Europe/Berlin", b"*/5 2,3 1-7 FEB MON#1", b"0 0 L 2 *|UTC"),
        *(b"0 0 29 2 *", b"0 0 30 2 *", b"0 0 31 4,6 *", b"30 1 * * 7#5|Australia/Lord_Howe"),
    ),
    "duration": (b"1h30m", b"500ms", b"90d", b"9" * 5000 + b"d", "٣m".encode(), b"9" * 400 + b"d"),
    "size": (b"10GiB", b"500MB", b"9" * 5000 + b"GB", b"9" * 400 + b"TiB", "٣GB".encode()),
    "name": (b"shop", b"../x", b"public.orders", b"day(at)", b"[::1]:80", "127.0.0.1:٣".encode()),
    "type_word": (
        *(
            b"decimal(18,2)",
            b"list<text>",
            b"struct<a: int64, b: list<date>>",
            b"struct<a:text,A:text>",
        ),
        *(b'struct<"a\x00": text>', b'struct<"\\ud800": text>', b'struct<"\\q": text>'),
        *(b"list<" * 3000 + b"text" + b">" * 3000, b'struct<"a, b": int64>'),
    ),
    "cursor": (
        *(b"42", b"-1.5e10", b"2026-01-31 12:00:00Z", b"0001-01-01T00:00:00+14:00", b"NaN"),
        *(b"1e999999999", b"1e-999999", b"9" * 5000, b"{" + b"0" * 32 + b"}", b"2026-W01-1"),
    ),
    "value": (
        *(b"1e999999999", b"2026-01-31T00:00:00Z", b"25:00", b'{"a": [1]}', b"[" * 5000, b"yes"),
    ),
    "message": (
        m.frame(m.Done((), {"a": 1}, retry_after=1.0))[4:],
        m.frame(m.AskCommit(1, (), {}))[4:],
        b"\x81\xa1a" * 100_000,
    ),
    "config": (
        b'project = "p"\n[connections.a]\nconnector = "files"\npath = "x"\n',
        b"a" + b".a" * 3000 + b" = 1",
        b"a = " + b"[" * 3000,
        b"\xff\xfe",
    ),
    "csv": (b'id,name\n1,"a\nb"\n2,\xff\n', b"\xef\xbb\xbfid\r\n1\r\n", b'a,b\n"' + b"x\n" * 2000),
    "jsonl": (b'{"id": 1, "x": [1, {"y": null}]}\n{"id": "a"}\n', b"[" * 5000 + b"\n"),
    "packed": (
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcbL\xe12\xe4\x02\x00\x8b\xcc\x81\xae\x05",
    ),
    "parquet": (b"PAR1\x15\x04\x15\x10PAR1",),
}
