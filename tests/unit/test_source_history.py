"""The project's own history as a source: no run is passed over, none comes before it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from catalog.clock import SystemClock
from catalog.open import open_catalog
from catalog.port import Catalog, new_operation_id
from catalog.records import Candidate, Claimed, Finish, Holder, Lease, Outcome, Trigger, TriggerKind
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.ports import ConnectorError, Secrets, Source
from reconciler.connectors.registry import open_source
from tests.source_kit import Taken, take

APPEND = StreamSettings(mode=Mode.APPEND)


class Project:
    """A catalog file, changed by short visits as other processes make them."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self.holder = Holder("me", "here", 1)
        self.source: Source = open_source("own", "history", {"url": self.url}, Secrets({}))

    def visit(self, what: Callable[[Catalog], Awaitable[object]]) -> object:
        async def main() -> object:
            async with open_catalog(self.url, clock=SystemClock()) as catalog:
                return await what(catalog)

        return anyio.run(main)

    def begin(self, pipeline: str) -> Lease:
        async def claim(catalog: Catalog) -> Lease:
            state = await catalog.pipeline(pipeline)
            trigger = Trigger(TriggerKind.TICK, tick=(state.tick or 0) + 1)
            candidate = Candidate(pipeline, state.version, trigger, "due")
            (answer,) = await catalog.claim(
                new_operation_id(), self.holder, [candidate], ttl=60.0, limits={}
            )
            assert isinstance(answer, Claimed)
            return answer.lease

        lease = self.visit(claim)
        assert isinstance(lease, Lease)
        return lease

    def end(self, lease: Lease, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        self.visit(lambda c: c.finish(new_operation_id(), lease, Finish(outcome, "it ended")))

    def take(self, after: Taken | None = None) -> Taken:
        return take(self.source, "runs", APPEND, after.cursor if after else None)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "catalog.db")


def test_each_finished_run_comes_once(project: Project) -> None:
    project.visit(lambda catalog: catalog.stats())  # that of a project that never ran
    assert project.take().has_news is False
    one = project.begin("a")
    project.end(one)
    first = project.take()
    assert [(r["epoch"], r["pipeline"], r["outcome"]) for r in first.rows] == [
        (one.epoch, "a", "succeeded")
    ]
    assert first.rows[0]["finished_at"] >= first.rows[0]["started_at"]
    assert first.marks[0].data_at is not None
    assert project.take(first).has_news is False
    two = project.begin("b")
    project.end(two, Outcome.FAILED)
    assert project.take(first).column("outcome") == ["failed"]


def test_a_run_waits_for_those_that_began_before_it(project: Project) -> None:
    early = project.begin("a")
    late = project.begin("b")
    project.end(late)
    first = project.take()
    assert first.has_news is False
    assert f"run {early.epoch} of pipeline 'a' is still open" in first.idle
    project.end(early)
    assert sorted(project.take(first).column("epoch")) == [early.epoch, late.epoch]


def test_there_is_one_stream(project: Project) -> None:
    assert [s.name for s in project.source.discover([], {})] == ["runs"]
    assert project.source.check({"runs": APPEND})[0].level == "ok"
    with pytest.raises(ConnectorError, match="no stream 'run'; did you mean 'runs'"):
        take(project.source, "run", APPEND)


def test_a_check_before_the_first_run_is_good_and_makes_no_catalog(tmp_path: Path) -> None:
    source = Project(tmp_path / "state" / "catalog.db").source
    assert [f.level for f in source.check({"runs": APPEND})] == ["ok"]
    assert list(tmp_path.iterdir()) == []


def test_a_catalog_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_text("no catalog" * 200)
    source = Project(tmp_path / "catalog.db").source
    with pytest.raises(ConnectorError, match="connection 'own': the catalog"):
        take(source, "runs", APPEND)
    assert source.check({})[0].level == "problem"


def test_a_catalog_that_was_moved_away_is_waited_for_and_none_is_made(tmp_path: Path) -> None:
    away = Project(tmp_path / "state" / "catalog.db")
    with pytest.raises(ConnectorError, match="nothing is at sqlite://"):
        away.take()
    assert not (tmp_path / "state").exists()
