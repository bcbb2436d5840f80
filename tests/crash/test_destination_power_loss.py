"""A loss of power at every step of loading into Parquet: what was acknowledged is there (B8).

Sealed is durable: every batch whose ``seal`` returned can be published after the loss, and then
the table is exactly those batches. Published is durable: the marker is never behind a ``publish``
that returned. And the proof can fail: with any one kind of fsync left out it finds losses.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from reconciler.config.desired import Mode
from reconciler.connectors.destinations.parquet import ParquetDestination
from reconciler.connectors.destinations.parquet_table import TableFolder
from reconciler.connectors.ports import ConnectorError, NeedsAnswer, Receipt, RejectedRow
from tests.destination_kit import OWNER, TABLE, orders, request, seal
from tests.power_loss import LossyDisk, Node

LAKE = Path("/volume/lake")
FOLDER = LAKE / TABLE
MODES = (Mode.APPEND, Mode.APPEND, Mode.REPLACE, Mode.APPEND, Mode.REPLACE)
BAD = [RejectedRow("a.csv:7", "no number", "x;y")]


def ids(seq: int) -> tuple[int, ...]:
    """Of a batch; the first has no rows, as of a file that has none, and nothing set aside."""
    return (seq, 10 + seq) if seq > 1 else ()


class Story:
    """Five batches loaded one after the other; ``on_step`` looks at each moment of it."""

    def __init__(self, forgets: Callable[[str, Path], bool] = lambda kind, path: False) -> None:
        self.disk = LossyDisk(Node({"volume": Node({})}), lambda disk: self.on_step(), forgets)
        self.sealed: list[Receipt] = []
        self.published = 0
        self.on_step: Callable[[], None] = lambda: None

    def run(self) -> None:
        destination = ParquetDestination(LAKE, self.disk)
        for seq, mode in enumerate(MODES, start=1):
            wanted = request(seq, mode=mode, partition_by=("name",) if seq < 4 else ())
            self.sealed.append(
                seal(destination, wanted, orders(*ids(seq)), BAD if ids(seq) else [])
            )
            destination.publish([self.sealed[-1]])
            self.published = seq


def expected(count: int) -> list[int]:
    """Ids in the table once the first ``count`` batches are published."""
    found: list[int] = []
    for seq, mode in enumerate(MODES[:count], start=1):
        found = [*ids(seq)] if mode is Mode.REPLACE else [*found, *ids(seq)]
    return sorted(found)


def read_ids(disk: LossyDisk, names: list[str], base: Path = FOLDER) -> list[int]:
    column = "id" if base == FOLDER else "_batch_id"
    tables = [pq.read_table(io.BytesIO(disk.read(base / n)), columns=[column]) for n in names]
    return sorted(value for table in tables for value in table[column].to_pylist())


def check_after_loss(story: Story, rng: random.Random) -> None:
    disk = story.disk.after_loss(rng)
    destination = ParquetDestination(LAKE, disk)
    marker = destination.marker(TABLE)
    assert (marker.seq if marker else 0) >= story.published
    for receipt in story.sealed:
        if receipt.name.seq >= story.published:  # the catalog may not know of the last publish
            destination.publish([receipt])
    for name in destination.staged(OWNER.catalog, OWNER.pipeline):
        destination.discard(name)
    count = len(story.sealed)
    folder = TableFolder(disk, FOLDER, TABLE)
    state = folder.state()
    files = folder.manifest(state) if state else []
    assert read_ids(disk, files) == folder_ids(disk, folder) == expected(count)
    aside = TableFolder(disk, LAKE / f"{TABLE}__rejected", TABLE)
    assert read_ids(disk, aside.data_files(), aside.path) == list(range(2, count + 1))
    if state:
        assert f"batch {count}," in disk.read(FOLDER / "_view.sql").decode()


def folder_ids(disk: LossyDisk, folder: TableFolder) -> list[int]:
    return read_ids(disk, folder.data_files())


@pytest.mark.parametrize("part", range(3))
def test_no_cut_loses_what_was_acknowledged(part: int) -> None:
    story = Story()
    cuts = 0

    def cut() -> None:
        nonlocal cuts
        if story.disk.steps % 3 != part:
            return
        cuts += 1
        try:
            check_after_loss(story, random.Random(story.disk.steps))
        except (AssertionError, NeedsAnswer, ConnectorError, OSError) as error:
            pytest.fail(f"power cut at step {story.disk.steps}: {error!r}")

    story.on_step = cut
    story.run()
    assert cuts > 200


class Killed(BaseException):
    """The process ended here."""


@pytest.mark.parametrize("count", range(1, len(MODES) + 1))
def test_what_a_killed_publish_had_done_is_durable_once_it_was_published_again(count: int) -> None:
    """(B5, B8) The kill leaves a marker that says that all is done, and is not synced yet."""
    story = Story()

    def kill() -> None:
        state = TableFolder(story.disk, FOLDER, TABLE).state()
        if state and state.seq == len(story.sealed) == count:
            raise Killed

    story.on_step = kill
    with pytest.raises(Killed):
        story.run()
    assert story.published == count - 1
    story.on_step = lambda: None
    ParquetDestination(LAKE, story.disk).publish(story.sealed[-1:])
    for seed in range(20):
        disk = story.disk.after_loss(random.Random(seed))
        marker = ParquetDestination(LAKE, disk).marker(TABLE)
        assert (marker.seq if marker else 0) == count
        folder = TableFolder(disk, FOLDER, TABLE)
        state = folder.state()
        assert read_ids(disk, folder.manifest(state) if state else []) == expected(count)


def in_staging(path: Path) -> bool:
    return "staged" in path.parts


FORGOTTEN: dict[str, Callable[[str, Path], bool]] = {
    "content of staged files": lambda kind, path: kind == "file" and path.suffix == ".staged",
    "directories of staging": lambda kind, path: kind == "dir" and in_staging(path),
    "directory of the lake": lambda kind, path: kind == "dir" and path == LAKE,
    "directory that holds the lake": lambda kind, path: kind == "dir" and path == LAKE.parent,
    "table folder": lambda kind, path: kind == "dir" and path == FOLDER,
    "partition folders": lambda kind, path: kind == "dir" and path.parent == FOLDER,
    "marker": lambda kind, path: kind == "file" and path.name.startswith("_reconciler"),
    "manifest": lambda kind, path: kind == "file" and path.name.startswith("_files"),
}


class Lost(Exception):
    """A loss was found; no need to look on."""


@pytest.mark.parametrize("what", FORGOTTEN)
def test_an_fsync_left_out_is_found(what: str) -> None:
    story = Story(FORGOTTEN[what])

    def cut() -> None:
        for seed in range(3):
            try:
                check_after_loss(story, random.Random(seed))
            except Exception as loss:
                raise Lost from loss

    story.on_step = cut
    with pytest.raises(Lost):
        story.run()
