"""JSON lines: what is known of the lines before makes a file faster to read, and changes nothing.

Each example is a file of lines that are mostly alike, read through the public source twice: as it
is, and with each line decoded by itself. Both must give the same types, rows and lines set aside.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.ports import Secrets
from reconciler.connectors.registry import open_source
from reconciler.connectors.sources import file_jsonl
from tests.bad_input import DAMAGE, WIDE, damaged, examples
from tests.source_kit import take

NAMES = (b"id", b"name", b"\xc3\xbc", b"", b"_0", b"n")
ODD_NAMES = (b"\\u0069d", b"ID", b'a\\"b', b"\xff")
GOOD = (
    *rb"""
    0 -0 7 9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809
    9007199254740993 1111111111111111111111111111111111111111 0.5 1.0 1.10 -0.0 1e3 1e-400
    9007199254740993.0 0.3000000000000000001 12345678901234567.89 true false null null
    "t" "" "\u00fc" "\ud83d\ude00" "\u0000" "q\"q\\" "1.50" "2026-01-31" "2026-01-31T10:00:00Z"
    "00000000-0000-0000-0000-000000000005" [] {} [1.10,0.30] {"a":1,"a":2} {"a":{"b":["x",null]}}
    """.split(),
    *(b'"\xc3\xbc"', b'"x  y"', b"[ 1.10,\t0.30 ]", b'{"a" : ["x  y"]}', b"[" * 50 + b"]" * 50),
)
BAD = (
    *rb"""
    01 1E400 NaN - 1. .5 +1 tru " "\ud800" "\udc00" "\x" [1,] [1e400] {"a":1e400} ["\ud800"]
    {"a"} [NaN]
    """.split(),
    *(b"", b'"\0"', b'"\xff"', b'"\xed\xa0\x80"', b'["\xff"]', b'{"\xff":1}', b"1" * 400),
    *(b"1" * 5000, b"[" * 2000, b"[" * 2000 + b"]" * 2000),
)
NO_OBJECTS = (
    *(b"", b" \t\r", b"[1]", b"7", b"null", b"{}", b"no", b'{"id": 1} {"id": 2}', b'{"id": 1'),
    *(b'\xef\xbb\xbf{"id": 1}', b'{"id": 1}\r', b'{"id": 1,}', b"{id: 1}", b'{"id" 1}', b"\0"),
)
TYPES = ("int64", "float64", "text", "json", "decimal(20,2)", "bool", "timestamp", "uuid", "uint8")
Members = list[tuple[bytes, bytes]]


def line(members: Members, space: bytes = b"") -> bytes:
    inside = (b'"' + name + b'":' + space + value for name, value in members)
    return space + b"{" + (b"," + space).join(inside) + space + b"}" + space


@st.composite
def others(draw: st.DrawFn, members: Members) -> bytes:
    """A line that differs from the others in something, or in nothing."""
    changed = list(members)
    at = draw(st.integers(0, len(members) - 1))
    value = draw(st.sampled_from(BAD if draw(st.integers(0, 5)) == 0 else GOOD))
    match draw(st.sampled_from(("value", "value", "value", "twice", "gone", "more", "same", "no"))):
        case "value":
            changed[at] = (members[at][0], value)
        case "twice":
            changed.insert(draw(st.integers(0, len(members))), (members[at][0], value))
        case "gone":
            del changed[at]
        case "more":
            changed.append((draw(st.sampled_from(NAMES + ODD_NAMES)), value))
        case "no":
            return draw(st.sampled_from(NO_OBJECTS))
    return line(changed, draw(st.sampled_from((b"", b" ", b"\t "))))


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Lines that are alike, and then some that are not, each so often that it is known by then."""
    names = st.sampled_from(NAMES + ODD_NAMES if draw(st.integers(0, 9)) == 0 else NAMES)
    member = st.tuples(names, st.sampled_from(GOOD))
    members = draw(st.lists(member, min_size=1, max_size=3, unique_by=lambda one: one[0]))
    alike = line(members, b" ") + b"\n"
    runs = draw(st.lists(st.tuples(others(members), st.integers(1, 5)), min_size=1, max_size=8))
    body = alike * 4 + b"".join((other + b"\n") * count + alike for other, count in runs)
    mark = draw(st.sampled_from((b"", b"", b"", b"\xef\xbb\xbf")))
    return damaged(mark + body, draw(DAMAGE) if draw(st.integers(0, 5)) == 0 else []) + b"\n"


def read(body: bytes, columns: dict[str, str]) -> tuple[str, ...]:
    """All that a read gives, written so that -0.0 is not 0.0, nor True 1."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "f.jsonl").write_bytes(body)
        source = open_source("inbox", "files", {"path": folder}, Secrets({}))
        settings = StreamSettings(
            path="*", mode=Mode.APPEND, settle=0.0, columns=tuple(columns.items())
        )
        taken = take(source, "s", settings)
    return str(taken.schema), repr(taken.rows), repr(taken.rejected), repr(taken.notes)


def read_is_the_same_line_by_line(data: st.DataObject) -> None:
    body = data.draw(files(), "file")
    names = st.sampled_from(("id", "name", "ü", ""))
    columns = data.draw(st.dictionaries(names, st.sampled_from(TYPES), max_size=2), "columns")
    with pytest.MonkeyPatch.context() as patch:
        for name, sizes in (("_AT_ONCE", (3, 99)), ("_ROWS", (5, 99)), ("BLOCK", (60, 5000))):
            patch.setattr(file_jsonl, name, data.draw(st.sampled_from(sizes), name))
        found = read(body, columns)
        patch.setattr(file_jsonl, "_record", lambda _: file_jsonl._refuse)
        assert found == read(body, columns)


@examples(100)
@given(st.data())
def test_a_file_is_read_as_if_each_line_were_the_only_one(data: st.DataObject) -> None:
    read_is_the_same_line_by_line(data)


@pytest.mark.slow
@examples(WIDE)
@given(st.data())
def test_files_read_as_if_each_line_were_the_only_one_searched_widely(data: st.DataObject) -> None:
    read_is_the_same_line_by_line(data)
