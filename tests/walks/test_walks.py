"""Random walks end with each row at the destination once; and with a fault planted they do not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.run.shape import Shape
from reconciler.run.stream import StreamRun
from tests.servers import PostgresServer
from tests.walks.sources import Folder, Postgres, Source, Sqlite
from tests.walks.stage import Stage
from tests.walks.walk import Walk, Wrong


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def _sqlite(chance: random.Random, folder: Path) -> Source:
    return Sqlite(folder, by_time=chance.random() < 0.5)


def _files(chance: random.Random, folder: Path) -> Source:
    return Folder(folder, chance.choice(("csv", "jsonl", "parquet")))


@pytest.mark.parametrize("source", [_sqlite, _files])
def test_each_row_is_there_once_whatever_people_and_machines_do(
    source: Callable[[random.Random, Path], Source], stage: Stage, tmp_path: Path
) -> None:
    Walk(7, tmp_path, stage, source).go(12)


@pytest.mark.postgres
def test_each_row_of_a_server_is_there_once(
    stage: Stage, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    def source(chance: random.Random, folder: Path) -> Source:
        return Postgres(postgres_server, "walk", by_time=chance.random() < 0.5)

    Walk(7, tmp_path, stage, source).go(12)


def _lose_a_row() -> None:
    shape = Shape.apply

    def apply(self: Shape, batch: Any) -> Any:
        shaped, misfits = shape(self, batch)
        return shaped.slice(1), misfits

    Shape.apply = apply  # type: ignore[method-assign]


def _forget_what_was_committed() -> None:
    StreamRun._still_to_publish = lambda self: []  # type: ignore[method-assign]


def _look_at_no_marker() -> None:
    StreamRun._check_marker = lambda *_: None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("plant", "walks"),
    [
        (_lose_a_row, 1),
        pytest.param(_forget_what_was_committed, 30, marks=pytest.mark.slow),
        pytest.param(_look_at_no_marker, 30, marks=pytest.mark.slow),
    ],
)
def test_a_planted_fault_is_found(plant: Callable[[], None], walks: int, tmp_path: Path) -> None:
    def all_go(stage: Stage) -> None:
        for seed in range(walks):
            folder = tmp_path / str(seed)
            folder.mkdir()
            Walk(seed, folder, stage, _sqlite).go(12)

    with Stage(plant) as stage, pytest.raises(Wrong):
        all_go(stage)
