"""A month in seconds stays flat, and each planted leak is found."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.daemon import upkeep
from tests.memory import MEMORY
from tests.soak.month import Plan, play
from tests.soak.samples import judge

_SHORT = Plan(pipelines=20, days=20, speed=1600, keep_days=5, news=0.3, samples=24)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="reconciler-soak-", dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rounds of retention as there would be in three hours."""
    monkeypatch.setattr(upkeep, "RETAIN_EVERY", 60.0)


def test_nothing_grows(folder: Path) -> None:
    seen = play(_SHORT, folder)
    assert sum(sample.commits for sample in seen) > 500
    # How long anything took is judged by the long form alone.
    assert judge(seen, _SHORT.keep_days, waits=False) == []


@pytest.mark.parametrize(
    ("plant", "found"), [("no_retention", "file"), ("descriptors", "fds"), ("memory", "rss")]
)
def test_a_leak_is_found(folder: Path, plant: str, found: str) -> None:
    seen = play(replace(_SHORT, plant=plant), folder)
    problems = judge(seen, _SHORT.keep_days, waits=False)
    assert [problem.split()[0] for problem in problems] == [found]
