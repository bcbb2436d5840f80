"""What the simulation found, each as a story of its own: no chance, one trouble."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from catalog.records import (
    Adopt,
    EditAction,
    HoldKind,
    Outcome,
    Refresh,
    Release,
    RequestRun,
    StreamState,
)
from reconciler.config.desired import (
    Connection,
    Daemon,
    Every,
    Mode,
    Pipeline,
    Project,
    StreamSettings,
)
from tests.replacing import replace
from tests.simulation.daemon import NOWHERE
from tests.simulation.destination import Content
from tests.simulation.play import seams
from tests.simulation.source import Row, Table
from tests.simulation.story import HOUR, TTL, Story, Trouble
from tests.simulation.vtime import Node, World
from tests.simulation.workers import SimWorker

_SETTINGS = StreamSettings(mode=Mode.APPEND, cursor=("at",), key=("id",))
_PIPELINE = Pipeline("p0", "source", "here", Every(HOUR), streams={"t00": _SETTINGS})


class Still(Story):
    """One daemon, one pipeline that appends, and nothing that the test does not do."""

    _quiet_writers = True

    def __init__(self) -> None:
        self.ends_at = ""
        """The step at which a worker is to end, once."""
        self.when: dict[str, Callable[[], None]] = {}
        """What is to happen, once, right after a transaction of this kind."""
        super().__init__(0)
        self.wanted_daemons = 1

    def begin(self) -> None:
        self.add(5)
        self._start_daemon()
        self.world.run(60.0)

    def _draw_trouble(self) -> Trouble:
        return Trouble((), every=HOUR)

    def _draw_project(self) -> Project:
        self.database.tables["t00"] = Table("t00")
        return Project(
            "still",
            NOWHERE,
            "memory:",
            daemon=Daemon(lease_ttl=TTL),
            connections={name: Connection(name, "simulated") for name in ("source", "here")},
            pipelines={"p0": _PIPELINE},
        )

    def fate(self, worker: SimWorker, step: str) -> None:
        if step == self.ends_at:
            self.ends_at = ""
            worker.end("the worker was killed by SIGKILL")

    def _told(self, node: Node, verb: str, args: tuple[Any, ...], answer: Any) -> None:
        super()._told(node, verb, args, answer)
        self.when.pop(verb, lambda: None)()

    def add(self, rows: int) -> None:
        table, (_, now) = self.database.tables["t00"], self.now()
        new = [
            Row(len(table.log) + i, now // 10**6 * 10**6, len(table.log) + i) for i in range(rows)
        ]
        table.opened[0] = now
        table.commit(0, new)
        self.pass_time(2.0)  # a bound passes no second that is not over

    def empty(self) -> None:
        self.put_back({})

    def put_back(self, tables: dict[str, Content]) -> None:
        self.warehouse.tables, self.warehouse.durable = dict(tables), dict(tables)
        self.history.shaken.add("t00")

    def edit(self, action: EditAction) -> None:
        self._edit(action)
        self.pass_time(1.0)

    def catalog_is_away(self, seconds: float) -> None:
        self.around.weather.away_until = self.world.now + seconds

    def run_once(self) -> None:
        self.edit(RequestRun("p0", f"r{self.world.count()}"))
        self.pass_time(60.0)

    def pass_time(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)

    @property
    def stream(self) -> StreamState:
        return self.store.streams[("p0", "t00")]

    @property
    def arrived(self) -> list[int]:
        content = self.warehouse.tables.get("t00")
        return [] if content is None else sorted(content.versions())


@pytest.fixture
def still() -> Iterator[Still]:
    story = Still()
    with seams(story):
        story.begin()
        yield story
        assert story.world.fault is None


@pytest.mark.parametrize("name", ["a-before-p0-by-name", "z-behind-p0-by-name"])
def test_what_comes_after_runs_at_once_whatever_it_is_called(still: Still, name: str) -> None:
    table = StreamSettings(mode=Mode.APPEND, cursor=("at",), key=("id",), table=name)
    later = replace(_PIPELINE, name=name, schedule=None, after=("p0",), streams={"t00": table})
    still._adopt_project(replace(still.project, pipelines={"p0": _PIPELINE, name: later}))
    still.pass_time(60.0)
    for _ in range(3):
        before = len(still.history.answered.get(name, ()))
        still.add(1)
        still.run_once()
        assert len(still.history.answered[name]) == before + 1


def test_it_runs_by_itself(still: Still) -> None:
    still.add(3)
    still.pass_time(2 * HOUR)
    assert still.arrived == list(range(8))


def test_rows_of_a_run_that_adopted_the_marker_and_died_before_publishing_arrive(
    still: Still,
) -> None:
    still.run_once()
    still.add(5)
    still.run_once()
    still.empty()
    still.run_once()
    hold = still.stream.hold
    assert hold is not None
    assert hold.kind is HoldKind.DESTINATION
    still.edit(Adopt("p0", "t00"))
    still.add(4)
    still.ends_at = "destination.publish"
    still.run_once()
    still.run_once()
    assert still.stream.seq == still.stream.published
    assert still.arrived == [10, 11, 12, 13]


def test_a_hold_because_of_the_destination_is_of_the_destination_as_the_last_run_saw_it(
    still: Still,
) -> None:
    still.run_once()
    still.add(5)
    still.run_once()
    backup = still.warehouse.copy()[0]
    still.empty()
    still.run_once()
    emptied = still.stream.hold
    assert emptied is not None
    assert "retry" not in emptied.choices
    still.put_back(backup)
    still.run_once()
    restored = still.stream.hold
    assert restored is not None
    assert restored.at == emptied.at
    assert "fits the catalog again" in restored.reason
    assert restored.choices[0] == "retry"
    still.edit(Release("p0", "t00"))
    still.add(1)
    still.run_once()
    assert still.arrived == list(range(11))


def test_a_table_put_back_from_another_past_between_the_look_and_the_publish_is_held(
    still: Still,
) -> None:
    still.run_once()
    there = still.warehouse.tables["t00"]
    assert there.marker is not None
    another = replace(there.marker, epoch=there.marker.epoch + 1_000_000)
    past = replace(there, rows=there.rows[:2], marker=another)
    still.add(1)
    still.when["commit"] = lambda: still.put_back({"t00": past})
    still.run_once()
    hold = still.stream.hold
    assert hold is not None
    assert hold.choices == ("refresh",)
    assert still.arrived == [0, 1]
    still.edit(Refresh("p0", "t00"))
    still.run_once()
    assert still.arrived == list(range(6))


def test_a_refresh_that_is_cut_off_leaves_a_marker_that_promises_no_row_the_table_lacks(
    still: Still,
) -> None:
    still.run_once()
    backup = still.warehouse.copy()[0]
    there = backup["t00"].marker
    still.add(5)
    still.run_once()
    still.put_back(backup)
    still.run_once()
    still.edit(Refresh("p0", "t00"))
    still.ends_at = "destination.stage"
    still.edit(RequestRun("p0", "r"))
    assert not still.ends_at
    marker = still.warehouse.durable["t00"].marker
    assert marker is not None
    assert marker == there
    still.run_once()
    assert still.arrived == list(range(10))


def test_a_refresh_into_an_emptied_table_that_was_busy_is_published_by_a_later_run(
    still: Still,
) -> None:
    still.run_once()
    still.empty()
    still.run_once()
    still.edit(Refresh("p0", "t00"))
    still.warehouse.busy_until = still.world.now + 90.0
    still.run_once()
    assert still.stream.seq > still.stream.published
    still.pass_time(60.0)
    still.run_once()
    assert still.stream.hold is None
    assert still.arrived == list(range(5))


def test_a_run_whose_end_the_catalog_did_not_take_keeps_its_pipeline_for_no_longer_than_a_ttl(
    still: Still,
) -> None:
    still.run_once()
    still.when["claim"] = lambda: still.catalog_is_away(60.0)
    still.edit(RequestRun("p0", "first"))
    still.pass_time(60.0 + 2 * TTL)
    assert still.store.pipelines["p0"].holder == ""
    still.add(1)
    still.edit(RequestRun("p0", "second"))
    still.pass_time(2 * TTL)
    assert still.store.pipelines["p0"].last_outcome is Outcome.SUCCEEDED
    assert still.arrived == list(range(6))


def test_a_config_edited_while_the_catalog_is_away_ends_no_daemon(still: Still) -> None:
    still.catalog_is_away(60.0)
    faster = replace(_PIPELINE, schedule=Every(600.0))
    still._adopt_project(replace(still.project, pipelines={"p0": faster}))
    still.pass_time(60.0)
    began = len(still.history.runs)
    still.pass_time(HOUR)
    assert [one.ended for one in still.daemons] == [None]
    assert len(still.history.runs) - began >= 5


def test_a_pipeline_removed_while_its_run_is_being_claimed_ends_no_daemon(still: Still) -> None:
    def remove() -> None:
        still.project = replace(still.project, pipelines={})
        for one in still.daemons:
            one.reload(still.project)

    still.when["claim"] = remove
    still.edit(RequestRun("p0", "r"))
    still.pass_time(120.0)
    assert [one.ended for one in still.daemons] == [None]


def test_a_clock_that_was_ahead_and_is_set_right_skips_no_tick(still: Still) -> None:
    still.machine.wall_off = 24 * HOUR
    still.pass_time(2 * HOUR)
    still.machine.wall_off = 0.0
    began = len(still.history.runs)
    still.pass_time(5 * HOUR)
    assert len(still.history.runs) - began >= 5


def test_a_timer_is_due_once_the_world_has_come_to_it() -> None:
    world = World(0)
    loop = Node(world, "d1").loop
    loop.lost = 1_000.0
    loop.call_at(math.nextafter(65_000.0, math.inf), lambda: None)  # the sum is rounded down
    world.now = loop.next_timer() or 0.0
    loop.due_timers()
    assert len(loop.ready) == 1
