"""Other processes that read the DuckDB file while we publish into it and put it right (E2, B8).

What is kept of the file is read from it while DuckDB has it open, and put back before; on Linux a
process that closes any descriptor of a file lets go of all its locks on it. So it is shown with
real processes that nobody gets in meanwhile, and that who is in is waited for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from reconciler.connectors.destinations.duckdb import DuckdbDestination
from reconciler.connectors.destinations.duckdb_file import DuckdbFile
from reconciler.connectors.ports import ConnectorError
from tests.destination_kit import TABLE, load, orders, request
from tests.unit.test_destination_duckdb import torn

COUNT = """
import duckdb, sys
with duckdb.connect(sys.argv[1], read_only=True) as db:
    print(db.execute("SELECT count(*) FROM raw.orders").fetchone()[0])
"""
HOLD = """
import duckdb, sys
db = duckdb.connect(sys.argv[1], read_only=True)
print("open", flush=True)
sys.stdin.read()
print(db.execute("SELECT count(*) FROM raw.orders").fetchone()[0])
"""
AGAIN_AND_AGAIN = """
import duckdb, json, select, sys
seen = []
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        with duckdb.connect(sys.argv[1], read_only=True, config={"threads": 1}) as db:
            sql = "SELECT count(*), count(DISTINCT id) FROM raw.orders"
            seen.append(db.execute(sql).fetchone())
            if len(seen) == 1:
                print("reading", flush=True)
    except duckdb.IOException as error:
        if "Could not set lock" not in str(error):
            raise
print(json.dumps(seen))
"""


def read(path: Path) -> subprocess.CompletedProcess[str]:
    """What a process that opens the database to read it now comes to."""
    command = [sys.executable, "-c", COUNT, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def reader(path: Path, code: str) -> Iterator[Callable[[], str]]:
    """A process that is at it; it ends, and what it saw is returned, when asked to."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield lambda: process.communicate()[0]
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.duckdb"


def test_nobody_gets_in_while_a_batch_is_published(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, receipt = torn(path, monkeypatch)
    path.write_bytes(left)  # to be put back first, by descriptors of our own
    refused = []
    checkpoint = DuckdbFile.checkpoint

    def watched(self: DuckdbFile, connection: duckdb.DuckDBPyConnection) -> None:
        refused.append(read(path))  # what is overwritten was kept
        checkpoint(self, connection)
        refused.append(read(path))  # and DuckDB has overwritten it

    monkeypatch.setattr(DuckdbFile, "checkpoint", watched)
    DuckdbDestination(path, "raw").publish([receipt])
    assert len(refused) == 2
    assert all("Could not set lock" in one.stderr for one in refused), refused
    assert read(path).stdout == "2\n"


def test_a_reader_is_waited_for_before_anything_is_put_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, receipt = torn(path, monkeypatch)
    path.write_bytes(left)
    destination = DuckdbDestination(path, "raw", wait=0.0)
    destination.marker(TABLE)  # puts it right, for the reader to get in
    with reader(path, HOLD) as ended:
        with path.open("r+b") as file:
            file.write(left)
        with pytest.raises(ConnectorError) as refusal:
            destination.publish([receipt])
        assert refusal.value.busy
        assert path.read_bytes() == left
        assert ended() == "1\n"
    destination.publish([receipt])
    assert read(path).stdout == "2\n"


def test_who_reads_again_and_again_sees_whole_batches_and_disturbs_nobody(path: Path) -> None:
    destination = DuckdbDestination(path, "raw")
    load(destination, request(1), orders(1, 2, 3))
    with reader(path, AGAIN_AND_AGAIN) as ended:
        for batch in range(2, 8):
            load(destination, request(batch), orders(*range(3 * batch - 2, 3 * batch + 1)))
        answers = json.loads(ended())
    assert all(count == distinct for count, distinct in answers)
    seen = [count for count, _ in answers]
    assert seen == sorted(seen)
    assert {rows % 3 for rows in seen} == {0}
    assert read(path).stdout == "21\n"
