"""SIGKILL between the durable steps of seal and publish, in a real process; then the books (B5).

After each kill the receipt, if it was handed over, is published by a new process's object: the
table holds exactly the rows of the batches so far, the marker is right, nothing staged is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from reconciler.config.desired import Mode
from reconciler.connectors.destinations.duckdb import DuckdbDestination
from reconciler.connectors.destinations.parquet import ParquetDestination
from reconciler.connectors.killpoints import VARIABLE
from reconciler.connectors.ports import Destination, Receipt, RejectedRow
from tests.destination_kit import (
    OWNER,
    TABLE,
    glob_ids,
    leftovers,
    load,
    orders,
    request,
    seal,
    view_rows,
)

BAD = [RejectedRow("a.csv:7", "no number", "x;y")]
SEAL = ("staging.seal.files", "staging.seal.receipt", "staging.seal.done")
APPEND = (
    "parquet.publish.renamed:1",
    "parquet.publish.renamed:2",
    "parquet.publish.renamed:3",
    "parquet.publish.moved",
    "parquet.publish.marked",
    "parquet.publish.view",
    "parquet.publish.removed",
)
REPLACE = (
    "parquet.publish.renamed:1",
    "parquet.publish.renamed:3",
    "parquet.replace.built",
    "parquet.replace.exchanged",
    "parquet.replace.emptied",
    "parquet.publish.view",
    "parquet.publish.removed",
)
DUCKDB = (
    "duckdb.make.made",
    "duckdb.publish.loaded",
    "duckdb.publish.before_commit",
    "duckdb.publish.committed",
    "duckdb.publish.checkpointed",
    "duckdb.publish.synced",
    "duckdb.publish.removed",
)


def run(kind: str, path: Path, mode: Mode, kill_at: str = "") -> int:
    """Load batch 2 in another process, which writes its receipt beside once it is sealed."""
    environment = {**os.environ, VARIABLE: kill_at}
    command = [sys.executable, "-m", "tests.crash.destination_child", kind, str(path), mode.value]
    root = Path(__file__).parents[2]
    return subprocess.run(command, env=environment, cwd=root, check=False).returncode


def open_kind(kind: str, path: Path) -> Destination:
    return ParquetDestination(path) if kind == "parquet" else DuckdbDestination(path)


def content(kind: str, path: Path) -> tuple[list[Any], int]:
    """Ids in the table as every reader sees them, and how many rows were set aside."""
    if kind == "parquet":
        ids = view_rows(path / TABLE)
        assert glob_ids(path, f"{TABLE}/**/*.parquet") == ids
        aside = list((path / f"{TABLE}__rejected").glob("*.parquet"))
        return ids, len(aside)
    with duckdb.connect(str(path), read_only=True) as connection:
        ids = [r[0] for r in connection.execute("SELECT id FROM orders ORDER BY 1").fetchall()]
        aside_rows = connection.execute("SELECT * FROM orders__rejected").fetchall()
    return ids, len(aside_rows)


def expected(mode: Mode) -> list[int]:
    return [3, 4] if mode is Mode.REPLACE else [1, 2, 3, 4]


def check_books(kind: str, path: Path, mode: Mode) -> None:
    receipt = msgspec.json.decode(path.with_name("receipt.json").read_bytes(), type=Receipt)
    destination = open_kind(kind, path)
    destination.publish([receipt])
    assert content(kind, path) == (expected(mode), 2)
    marker = open_kind(kind, path).marker(TABLE)
    assert marker is not None
    assert (marker.seq, marker.has_rows) == (2, True)
    assert leftovers(path.parent) == []
    assert destination.staged(OWNER.catalog, OWNER.pipeline) == []
    assert not list(path.parent.glob(".*swap*"))
    load(destination, request(3, mode=mode, key=("id",)), orders(5))
    assert content(kind, path)[0] == ([5] if mode is Mode.REPLACE else [*expected(mode), 5])


@pytest.mark.parametrize(
    ("kind", "mode", "point"),
    [
        *(("parquet", Mode.APPEND, point) for point in APPEND),
        *(("parquet", Mode.REPLACE, point) for point in REPLACE),
        *(("duckdb", Mode.APPEND, point) for point in DUCKDB[1:]),
        *(("duckdb", Mode.MERGE, point) for point in DUCKDB[2:4]),
        *(("duckdb", Mode.REPLACE, point) for point in DUCKDB[2:4]),
    ],
)
def test_a_publish_killed_anywhere_is_finished_by_publishing_again(
    tmp_path: Path, kind: str, mode: Mode, point: str
) -> None:
    path = tmp_path / "here" / "target"
    path.parent.mkdir()
    first = Mode.MERGE if mode is Mode.MERGE else Mode.APPEND
    load(open_kind(kind, path), request(1, mode=first, key=("id",)), orders(1, 2), BAD)
    assert run(kind, path, mode, point) == -signal.SIGKILL
    check_books(kind, path, mode)


@pytest.mark.parametrize("kind", ["parquet", "duckdb"])
@pytest.mark.parametrize("point", SEAL)
def test_a_seal_killed_anywhere_leaves_a_batch_that_can_be_discarded(
    tmp_path: Path, kind: str, point: str
) -> None:
    path = tmp_path / "here" / "target"
    path.parent.mkdir()
    mode = Mode.APPEND if kind == "parquet" else Mode.MERGE
    load(open_kind(kind, path), request(1, mode=mode, key=("id",)), orders(1, 2), BAD)
    assert run(kind, path, mode, point) == -signal.SIGKILL
    destination = open_kind(kind, path)
    assert content(kind, path) == ([1, 2], 1)
    (name,) = destination.staged(OWNER.catalog, OWNER.pipeline)
    destination.discard(name)
    assert leftovers(path.parent) == []
    wanted = request(2, epoch=2, mode=mode, key=("id",))
    destination.publish([seal(destination, wanted, orders(3, 4), BAD)])
    assert content(kind, path) == ([1, 2, 3, 4], 2)


def test_a_kill_while_the_first_database_is_made_leaves_no_half_of_one(tmp_path: Path) -> None:
    path = tmp_path / "here" / "target"
    path.parent.mkdir()
    assert run("duckdb", path, Mode.MERGE, "duckdb.make.made") == -signal.SIGKILL
    assert not path.exists()
    destination = open_kind("duckdb", path)
    assert destination.marker(TABLE) is None
    for name in destination.staged(OWNER.catalog, OWNER.pipeline):
        destination.discard(name)
    load(destination, request(1, mode=Mode.MERGE, key=("id",)), orders(1), BAD)
    assert content("duckdb", path) == ([1], 1)
    assert leftovers(path.parent) == []
