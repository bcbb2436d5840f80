"""Files and databases in any state: right rows, or an error that names them; nothing is lost.

Each example is a run of the real code, from the source to the destination's marker. What is asked
of it, whatever lies in the folder: it ends with an outcome and a sentence; the ledger notes a file
only with the hash of the bytes that lie there; the whole file that lies beside is loaded once; and
when the bad one was mended, the next run loads it whole.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.records import ErrorClass, Outcome, StreamResult
from reconciler.config.desired import FileFormat, Mode, StreamSettings
from reconciler.connectors.ports import ConnectorError, NeedsAnswer, Secrets
from reconciler.connectors.registry import open_source
from tests.bad_input import DAMAGE, WIDE, damaged, examples, is_plain
from tests.run_kit import Bench, files_bench, order
from tests.source_kit import Taken, take

# -- what a file may be ---------------------------------------------------------------------------

NAMES = ["id", "name", "ID", "a b", "ü", "", "na\0me", "_run_id", 'q"', "x.y", "n" * 300, "id "]
VALUES: list[Any] = [
    *(0, -1, 2**63 - 1, 2**63, 10**70, 1.5, float("inf"), True, None, "", "t", "ü\0", "\ud800"),
    *("2026-01-31", "9999-12-31T23:59:59Z", "1" * 5000, 'q"q', "a,b", "l\nm", "NaN"),
    *([1], [], {"a": 1}, {}, [None], {"": [{}]}),
]
ARROW: list[pa.Array] = [
    pa.array(values, kind)
    for kind, values in (
        (pa.int64(), [1, None]),
        (pa.uint64(), [2**64 - 1, 0]),
        (pa.string(), ["a", None]),
        (pa.float64(), [float("nan"), float("inf")]),
        (pa.float16(), [None, None]),
        (pa.timestamp("ns"), [2**62, -(2**62)]),
        (pa.timestamp("us", "UTC"), [2**62, 0]),
        (pa.date32(), [2**30, 0]),
        (pa.duration("us"), [5, None]),
        (pa.decimal128(38, 10), [1, None]),
        (pa.decimal256(60, 2), [1, None]),
        (pa.binary(), [b"\xff", None]),
        (pa.dictionary(pa.int32(), pa.string()), ["a", None]),
        (pa.list_(pa.struct([("k", pa.list_(pa.string()))])), [[{"k": ["a"]}], None]),
        (pa.map_(pa.string(), pa.int64()), [[("a", 1)], None]),
        (pa.struct([("a", pa.int64())]), [{"a": 1}, None]),
        (pa.struct([("", pa.int64())]), [{"": 1}, None]),
        (pa.struct([("a", pa.int64()), ("A", pa.int64())]), [{"a": 1, "A": 2}, None]),
        (pa.struct([("a", pa.int64()), ("a", pa.int64())]), [None, None]),
        (pa.json_(), ["{]", "1"]),
        (pa.null(), [None, None]),
    )
]
TYPES = ["int64", "text", "date", "decimal(18,2)", "timestamp", "json", "uuid", "bool", "uint8"]


def as_csv(rows: list[dict[str, Any]], names: list[str]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    with contextlib.suppress(csv.Error):
        writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def as_jsonl(rows: list[dict[str, Any]], plain: bool) -> bytes:
    lines = (json.dumps(row, ensure_ascii=plain) + "\n" for row in rows)
    return "".join(lines).encode("utf-8", "surrogatepass")


def as_parquet(columns: list[pa.Array], names: list[str]) -> bytes:
    body = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, names[: len(columns)]), body)
    return body.getvalue()


@st.composite
def contents(draw: st.DrawFn, kind: str) -> bytes:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    if kind == "parquet":
        twice = draw(st.booleans())
        columns = draw(st.lists(st.sampled_from(ARROW), min_size=1, max_size=4))
        return as_parquet(columns, [names[0], *names, *"wxyz"] if twice else [*names, *"wxyz"])
    row = st.fixed_dictionaries({name: st.sampled_from(VALUES) for name in names})
    rows = draw(st.lists(row, max_size=5))
    return as_csv(rows, names) if kind == "csv" else as_jsonl(rows, draw(st.booleans()))


GOOD = {
    "csv": b"id,name\n7,seven\n",
    "jsonl": b'{"id": 7, "name": "seven"}\n',
    "parquet": as_parquet([pa.array([7]), pa.array(["seven"])], ["id", "name"]),
}


@st.composite
def streams(draw: st.DrawFn, kind: str, destination: str) -> StreamSettings:
    modes = [Mode.APPEND, Mode.REPLACE, *([Mode.MERGE] if destination == "duckdb" else [])]
    mode = draw(st.sampled_from(modes))
    typed = draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TYPES), max_size=2))
    return StreamSettings(
        path="*",
        mode=mode,
        key=("id",) if mode is Mode.MERGE else (),
        settle=0.0,
        columns=tuple(typed.items()),
        changed="reread" if mode is Mode.MERGE else "hold",
        format=FileFormat(
            type=draw(st.sampled_from([kind, "auto"])),
            delimiter=draw(st.sampled_from([",", ";"])),
            quote=draw(st.sampled_from(['"', "'", ""])),
            header=draw(st.booleans()),
            encoding=draw(st.sampled_from(["utf-8", "utf-8", "latin-1", "utf-16"])),
        ),
    )


@contextlib.contextmanager
def a_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def said(bench: Bench, result: StreamResult) -> str:
    """The outcome's sentence and the notes, once they are found to be sentences."""
    for text in (result.reason, *bench.notes):
        assert is_plain(text), text
    return "\n".join((result.reason, *bench.notes))


def hashed(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=32).hexdigest()


# -- any bytes ------------------------------------------------------------------------------------


def any_bytes_in_files(data: st.DataObject, destination: str) -> None:
    kind = data.draw(st.sampled_from(sorted(GOOD)), "kind")
    settings = data.draw(streams(kind, destination), "settings")
    with a_folder() as folder:
        bench = files_bench(folder, settings, destination)
        for number in range(data.draw(st.integers(1, 3), "runs")):
            body = damaged(data.draw(contents(kind)), data.draw(DAMAGE))
            ending = f".{kind}"
            if kind != "parquet" and data.draw(st.booleans(), "packed"):
                body = damaged(gzip.compress(body), data.draw(DAMAGE))
                ending += ".gz"
            name = f"bad{data.draw(st.integers(0, number), 'name')}{ending}"
            file = folder / "in" / name
            file.write_bytes(body)
            before = bench.files()
            result = bench.run()
            text = said(bench, result)
            after = bench.files()
            assert bench.unpublished() == (), text  # what no table can hold is not committed
            if result.outcome is Outcome.FAILED or result.outcome is Outcome.HELD:
                assert after == before
            for path in after.keys() - before.keys():
                assert after[path].hash == hashed(folder / "in" / path)
            if name not in after and result.outcome is not Outcome.FAILED:
                assert result.outcome is Outcome.HELD or repr(name) in text, text


@examples(25)
@given(st.data())
def test_any_bytes_in_a_file_are_rows_or_a_sentence(data: st.DataObject) -> None:
    any_bytes_in_files(data, "parquet")


@examples(15)
@given(st.data())
def test_any_bytes_in_a_file_reach_a_database_or_are_a_sentence(data: st.DataObject) -> None:
    any_bytes_in_files(data, "duckdb")


@pytest.mark.slow
@examples(WIDE)
@given(st.data())
def test_any_bytes_in_a_file_searched_widely(data: st.DataObject) -> None:
    any_bytes_in_files(data, data.draw(st.sampled_from(["parquet", "duckdb"]), "destination"))


# -- a bad file among good ones, and mended -------------------------------------------------------


def a_bad_file_and_its_mending(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(GOOD)), "kind")
    packed = kind != "parquet" and data.draw(st.booleans(), "packed")
    body = damaged(GOOD[kind], data.draw(DAMAGE))
    ending = f".{kind}" + (".gz" if packed else "")
    if packed:
        body = damaged(gzip.compress(body, mtime=0), data.draw(DAMAGE))
    settings = StreamSettings(path="*", mode=Mode.APPEND, settle=0.0)
    whole = gzip.compress(GOOD[kind].replace(b"7", b"8")) if packed else GOOD[kind]
    with a_folder() as folder:
        bench = files_bench(folder, settings)
        bad, good = folder / "in" / f"bad{ending}", folder / "in" / f"good{ending}"
        good.write_bytes(whole)
        bad.write_bytes(body)
        said(bench, bench.run())
        assert bench.unpublished() == ()
        first = bench.files()
        mended = GOOD[kind].replace(b"seven", b"SEVEN") if kind != "parquet" else third_parquet()
        bad.write_bytes(gzip.compress(mended) if packed else mended)
        result = bench.run()
        text = said(bench, result)
        if bad.name in first:  # it was rows before: another content is for a person to judge
            assert result.outcome is Outcome.HELD
            assert bad.name in text
        elif result.outcome is Outcome.HELD:  # by the columns that the other file brought
            assert "column" in text, text
        else:
            assert result.outcome is Outcome.SUCCEEDED, text
            assert {bad.name, good.name} == set(bench.files())
            assert loaded(folder) == sorted(["SEVEN", "seven"])


def third_parquet() -> bytes:
    return as_parquet([pa.array([9]), pa.array(["SEVEN"])], ["id", "name"])


def loaded(folder: Path) -> list[Any]:
    """What the destination shows of the two files' name column."""
    pattern = folder / "out" / "s" / "**" / "*.parquet"
    rows = duckdb.execute(f"select name from read_parquet('{pattern}', union_by_name = true)")
    return sorted(row[0] for row in rows.fetchall())


@examples(15)
@given(st.data())
def test_a_mended_file_is_loaded_whole_and_the_good_one_once(data: st.DataObject) -> None:
    a_bad_file_and_its_mending(data)


@pytest.mark.slow
@examples(WIDE)
@given(st.data())
def test_mended_files_searched_widely(data: st.DataObject) -> None:
    a_bad_file_and_its_mending(data)


# -- files that change while they are read --------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": lambda file: file.write_bytes(file.read_bytes() + b"8,eight\n"),
    "is cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "is emptied": lambda file: os.truncate(file, 0),
    "goes away": lambda file: file.unlink(),
    "is replaced": lambda file: _replace(file, b"other\nvalues\n"),
    "is replaced by a folder": lambda file: _replace(file, None),
    "is filled anew": lambda file: file.write_bytes(os.urandom(file.stat().st_size)),
}


def _replace(file: Path, body: bytes | None) -> None:
    if body is None:
        file.unlink()
        file.mkdir()
    else:
        other = file.with_name(".other")
        other.write_bytes(body)
        other.rename(file)


def attempt(folder: Path, look: Callable[[], bool]) -> Taken | str:
    """What a read gave, or the sentence it ended with."""
    source = open_source("inbox", "files", {"path": str(folder)}, Secrets({}))
    settings = StreamSettings(path="f.*", mode=Mode.APPEND, settle=0.0)
    try:
        return take(source, "s", settings, stopped=look)
    except (ConnectorError, NeedsAnswer) as error:
        return str(error)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_file_that_changes_while_it_is_read_is_not_noted_as_read(
    tmp_path: Path, kind: str, change: str
) -> None:
    """Changed after each look that the reader takes, in turn."""
    base = kind.removesuffix(".gz")
    body = (
        GOOD[base]
        if base == "parquet"
        else GOOD[base] + b"".join(GOOD[base].splitlines(keepends=True)[-1] for _ in range(9_000))
    )
    for moment in range(1, 4):
        folder = tmp_path / str(moment)
        folder.mkdir()
        file = folder / f"f.{kind}"
        file.write_bytes(gzip.compress(body) if kind.endswith(".gz") else body)
        looks = itertools.count(1)

        def look(file: Path = file, looks: Iterator[int] = looks, moment: int = moment) -> bool:
            if next(looks) == moment:
                CHANGES[change](file)
            return False

        found = attempt(folder, look)
        if isinstance(found, str):
            assert is_plain(found), found
            assert file.name in found
        elif next(looks) > moment:  # it was changed before the end
            assert [entry for mark in found.marks for entry in mark.files] == []
            assert found.notes
            assert all(file.name in note for note in found.notes)


# -- what else may lie there ----------------------------------------------------------------------


def put(folder: Path, what: str) -> None:
    odd = folder / "odd.csv"
    match what:
        case "a folder":
            odd.mkdir()
        case "a pipe":
            os.mkfifo(odd)
        case "a link to nowhere":
            odd.symlink_to("nowhere")
        case "a link to itself":
            odd.symlink_to("odd.csv")
        case "a device":
            odd.symlink_to("/dev/zero")
        case "an endless file":
            odd.symlink_to("/proc/self/mem")
        case "a name that is no text":
            (Path(os.fsdecode(os.fsencode(folder) + b"/od\xffd.csv"))).write_text("id\n1\n")
        case "an empty file":
            odd.touch()
        case _:
            odd.write_bytes(b"\0" * 5000)


@pytest.mark.parametrize(
    ("what", "outcome", "words"),
    [
        ("a folder", Outcome.SUCCEEDED, ""),
        ("a pipe", Outcome.SUCCEEDED, ""),
        ("a link to nowhere", Outcome.SUCCEEDED, ""),
        ("a link to itself", Outcome.FAILED, "odd.csv: Too many levels of symbolic links"),
        ("a device", Outcome.SUCCEEDED, ""),
        ("an endless file", Outcome.SUCCEEDED, "'odd.csv' is left for a later run: it is empty"),
        ("a name that is no text", Outcome.FAILED, r"file 'od\udcffd.csv' is no UTF-8"),
        ("an empty file", Outcome.SUCCEEDED, "'odd.csv' is left for a later run: it is empty"),
        ("NULs alone", Outcome.SUCCEEDED, "'odd.csv' is left for a later run: its last line"),
    ],
)
def test_what_is_no_file_does_not_stop_those_that_are(
    tmp_path: Path, what: str, outcome: Outcome, words: str
) -> None:
    bench = files_bench(tmp_path, StreamSettings(path="*.csv", mode=Mode.APPEND, settle=0.0))
    (tmp_path / "in" / "good.csv").write_bytes(GOOD["csv"])
    put(tmp_path / "in", what)
    result = bench.run()
    text = said(bench, result)
    assert result.outcome is outcome, text
    assert words in text
    assert set(bench.files()) == ({"good.csv"} if outcome is Outcome.SUCCEEDED else set())


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = files_bench(tmp_path, StreamSettings(path="*", mode=Mode.APPEND, settle=0.0))
    (tmp_path / "in" / f"f.{kind}").write_bytes(GOOD[kind])
    real = Path.open

    def refusing(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name.startswith("f."):  # a superuser's tests may read everything
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refusing)
    result = bench.run()
    assert result.outcome is Outcome.FAILED
    assert result.error is ErrorClass.TRANSIENT
    assert f"file 'f.{kind}' cannot be read: Permission denied" in said(bench, result)


def test_a_header_that_is_no_text_is_named_with_its_line(tmp_path: Path) -> None:
    bench = files_bench(tmp_path, StreamSettings(path="*.csv", mode=Mode.APPEND, settle=0.0))
    (tmp_path / "in" / "f.csv").write_bytes(b"id,pr\xe9nom\n1,x\n")
    result = bench.run()
    assert result.error is ErrorClass.PERMANENT
    assert "file 'f.csv': its header, line 1, names a column 'pr\N{REPLACEMENT CHARACTER}nom'" in (
        said(bench, result)
    )


@pytest.mark.parametrize(
    ("columns", "outcome", "words"),
    [
        ([("id", pa.int64()), ("id", pa.int64())], Outcome.FAILED, "columns 'id' are there twice"),
        ([("", pa.int64())], Outcome.HELD, "column 1 of the source has an empty name"),
        ([("s", pa.struct([("", pa.int8())]))], Outcome.HELD, "a field with an empty name"),
        (
            [("s", pa.list_(pa.struct([("a", pa.int8()), ("A", pa.int8())])))],
            Outcome.HELD,
            "column 's' is a struct whose fields 'a', 'A' differ in case alone",
        ),
        (
            [("s", pa.struct([("a", pa.int8()), ("a", pa.int8())]))],
            Outcome.FAILED,
            "file 'f.parquet': column 's': ",
        ),
    ],
)
def test_columns_that_no_table_can_hold_are_told_before_anything_is_committed(
    tmp_path: Path, columns: list[tuple[str, pa.DataType]], outcome: Outcome, words: str
) -> None:
    bench = files_bench(
        tmp_path, StreamSettings(path="*.parquet", mode=Mode.APPEND, settle=0.0), "duckdb"
    )
    arrays = [pa.nulls(1, kind) for _, kind in columns]
    file = tmp_path / "in" / "f.parquet"
    file.write_bytes(as_parquet(arrays, [name for name, _ in columns]))
    result = bench.run()
    assert result.outcome is outcome, result.reason
    assert words in said(bench, result)
    assert (bench.unpublished(), bench.files()) == ((), {})


def test_what_a_parquet_file_calls_json_and_is_none_is_set_aside(tmp_path: Path) -> None:
    bench = files_bench(
        tmp_path, StreamSettings(path="*.parquet", mode=Mode.APPEND, settle=0.0), "duckdb"
    )
    body = as_parquet([pa.array(['{"a": 1}', "{]", None], pa.json_())], ["doc"])
    (tmp_path / "in" / "f.parquet").write_bytes(body)
    result = bench.run()
    assert (result.outcome, result.rows, result.rejected) == (Outcome.SUCCEEDED, 2, 1)
    assert bench.unpublished() == ()


def test_a_file_in_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    form = FileFormat(encoding="utf-16")
    settings = StreamSettings(path="*.csv", mode=Mode.APPEND, settle=0.0, format=form)
    bench = files_bench(tmp_path, settings)
    (tmp_path / "in" / "f.csv").write_bytes(b"id\n1\n")
    result = bench.run()
    assert result.error is ErrorClass.PERMANENT
    assert "file 'f.csv': from line 1 on it cannot be read as utf-16" in said(bench, result)


def test_a_bad_line_that_is_no_text_is_set_aside_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = files_bench(tmp_path, StreamSettings(path="*.csv", mode=Mode.APPEND, settle=0.0))
    (tmp_path / "in" / "f.csv").write_bytes(b"id,name\n1,a\n2,b\xff,c\n3,d\n")
    result = bench.run()
    assert (result.rows, result.rejected) == (2, 1)
    assert capfd.readouterr() == ("", "")
    (aside,) = (tmp_path / "out").rglob("s__rejected/*.parquet")
    assert pq.read_table(aside).column("raw").to_pylist() == ["2,b\N{REPLACEMENT CHARACTER},c"]


# -- a SQLite file as a source --------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one, of small pages, so that damage meets every part of it."""
    path = tmp_path_factory.mktemp("db") / "good.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("pragma page_size = 512")
        db.execute(
            "create table t (id integer primary key, at timestamp not null, name text, b blob)"
        )
        db.execute("create index t_at on t (at)")
        db.executemany(
            "insert into t values (?, ?, ?, ?)",
            [(i, f"2026-01-01 00:00:{i % 60:02}", f"n{i}" * 5, b"\0" * i) for i in range(80)],
        )
        db.commit()
    return path


def a_damaged_database(data: st.DataObject, whole: bytes) -> None:
    settings = StreamSettings(
        mode=data.draw(st.sampled_from([Mode.MERGE, Mode.REPLACE]), "mode"),
        cursor=data.draw(st.sampled_from([(), ("id",), ("at",)]), "cursor"),
        key=("id",),
        allow_empty=True,
        query=data.draw(st.sampled_from(["", "select id, at, name from t"]), "query"),
    )
    with a_folder() as folder:
        file = folder / "s.db"
        file.write_bytes(damaged(whole, data.draw(DAMAGE)))
        bench = Bench(
            order("db", "sql", url=f"sqlite://{file}"),
            order("out", "duckdb", path=str(folder / "o.duckdb")),
            settings,
            "t",
        )
        result = bench.run()
        text = said(bench, result)
        if result.outcome is Outcome.FAILED:
            assert "connection 'db'" in text or "cursor columns" in text, text
            assert "malformed" not in text or str(file) in text
        elif result.outcome is Outcome.HELD:
            return
        file.write_bytes(whole)
        result = bench.run()
        if result.outcome is Outcome.FAILED:  # read before with damaged values beyond these
            assert is_plain(result.reason)


@examples(6)
@given(data=st.data())
def test_a_damaged_database_is_rows_or_a_sentence(data: st.DataObject, database: Path) -> None:
    a_damaged_database(data, database.read_bytes())


@pytest.mark.slow
@examples(WIDE)
@given(data=st.data())
def test_damaged_databases_searched_widely(data: st.DataObject, database: Path) -> None:
    a_damaged_database(data, database.read_bytes())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"id,name\n1,a\n" * 100, "is damaged, or no SQLite database"),
        (b"", "there is no table 't'"),
        (b"SQLite format 3\0", "is damaged, or no SQLite database"),
    ],
)
def test_what_is_no_database_is_named_by_its_path(tmp_path: Path, body: bytes, words: str) -> None:
    file = tmp_path / "s.db"
    file.write_bytes(body)
    bench = Bench(
        order("db", "sql", url=f"sqlite://{file}"),
        order("out", "duckdb", path=str(tmp_path / "o.duckdb")),
        StreamSettings(mode=Mode.REPLACE),
        "t",
    )
    result = bench.run()
    assert result.outcome is Outcome.FAILED
    assert result.error is ErrorClass.PERMANENT
    assert words in said(bench, result)
    assert (str(file) in result.reason) is (body != b"")


def test_a_locked_database_fails_for_now_and_is_read_when_it_is_free(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.connectors.sources.sqlite._BUSY_MS", 20)
    file = tmp_path / "s.db"
    shutil.copy(database, file)
    bench = Bench(
        order("db", "sql", url=f"sqlite://{file}"),
        order("out", "duckdb", path=str(tmp_path / "o.duckdb")),
        StreamSettings(mode=Mode.APPEND, cursor=("id",)),
        "t",
    )
    # Locks of one process do not keep its own other copy of SQLite out.
    lock = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "db.execute('begin exclusive'); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", lock, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        result = bench.run()
        writer.communicate()
    assert (result.outcome, result.error) == (Outcome.FAILED, ErrorClass.TRANSIENT)
    assert "database is locked" in said(bench, result)
    result = bench.run()
    assert (result.outcome, result.rows) == (Outcome.SUCCEEDED, 80)
