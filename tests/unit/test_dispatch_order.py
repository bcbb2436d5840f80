"""When the loop looks at which pipeline, and in which order due runs get room."""

from __future__ import annotations

import time
from dataclasses import replace

from catalog.records import Candidate, Trigger, TriggerKind
from reconciler.daemon.agenda import Agenda
from reconciler.daemon.backlog import Backlog
from reconciler.daemon.loop import downstream
from tests.crash.whole_world import PIPELINE, PROJECT


def _candidate(name: str, *, asked: bool = False, connection: str = "db") -> Candidate:
    kind = TriggerKind.REQUEST if asked else TriggerKind.TICK
    return Candidate(name, 1, Trigger(kind), "due", (connection,))


def _names(backlog: Backlog, room: int) -> list[str]:
    return [candidate.pipeline for candidate, _ in backlog.take(room, lambda _: True)]


def test_the_agenda_gives_what_is_due_earliest_first_and_once() -> None:
    agenda = Agenda()
    agenda.look("b", 20)
    agenda.look("a", 10)
    agenda.look("c", 30)
    assert agenda.take_due(25, 10) == ["a", "b"]
    assert agenda.take_due(25, 10) == []
    assert agenda.next() == 30


def test_an_earlier_look_replaces_a_later_one_and_never_the_reverse() -> None:
    agenda = Agenda()
    agenda.look("a", 50)
    agenda.look("a", 10)
    agenda.look("a", 90)
    assert agenda.next() == 10
    assert agenda.take_due(100, 10) == ["a"]
    assert agenda.next() is None


def test_what_was_agreed_before_an_earlier_look_is_no_look_any_more() -> None:
    agenda = Agenda()
    agenda.look("a", 50)
    agenda.look("a", 10)
    assert agenda.take_due(10, 10) == ["a"]
    agenda.look("b", 70)
    assert agenda.next() == 70
    assert agenda.take_due(70, 10) == ["b"]
    agenda.look("a", 90)
    assert agenda.take_due(60, 10) == []
    agenda.look("a", 80)
    agenda.look("b", 85)
    assert agenda.take_due(80, 10) == ["a"]
    assert agenda.next() == 85


def test_neither_grows_by_looking_again() -> None:
    agenda, backlog = Agenda(), Backlog()
    for now in range(1000):
        agenda.look("yearly", 10**9)
        agenda.look("yearly", now)
        assert agenda.take_due(now, 10) == ["yearly"]
        backlog.drop("waits")
        backlog.put(_candidate("waits"), 5)
        assert backlog.take(1, lambda _: False) == []
    assert len(agenda._heap) + len(backlog._queue) < 200
    agenda.look("yearly", 10**9)
    assert agenda.next() == 10**9
    assert _names(backlog, 2) == ["waits"]


def test_requests_go_first_then_the_longest_due() -> None:
    backlog = Backlog()
    backlog.put(_candidate("late"), 5)
    backlog.put(_candidate("later"), 9)
    backlog.put(_candidate("asked", asked=True), 50)
    assert _names(backlog, 2) == ["asked", "late"]
    assert _names(backlog, 2) == ["later"]


def test_a_pipeline_decided_anew_keeps_its_place_in_the_queue() -> None:
    backlog = Backlog()
    backlog.put(_candidate("a"), 5)
    backlog.put(_candidate("b"), 7)
    backlog.put(_candidate("a"), 30)
    assert len(backlog) == 2
    taken = backlog.take(9, lambda _: True)
    assert [(candidate.pipeline, due) for candidate, due in taken] == [("a", 5), ("b", 7)]


def test_nothing_is_left_of_what_waited_before_a_reload() -> None:
    backlog = Backlog()
    backlog.put(_candidate("a"), 1)
    backlog.put(_candidate("b"), 2)
    backlog.clear()
    assert len(backlog) == 0
    backlog.put(_candidate("b"), 3)
    backlog.put(_candidate("a"), 4)
    assert _names(backlog, 9) == ["b", "a"]


def test_a_full_connection_does_not_keep_others_waiting() -> None:
    backlog = Backlog()
    backlog.put(_candidate("full", connection="slow"), 1)
    backlog.put(_candidate("free"), 2)
    taken = backlog.take(5, lambda candidate: "slow" not in candidate.connections)
    assert [candidate.pipeline for candidate, _ in taken] == ["free"]
    assert _names(backlog, 5) == ["full"]


def test_what_is_not_due_any_more_is_not_dispatched() -> None:
    backlog = Backlog()
    backlog.put(_candidate("a"), 1)
    backlog.drop("a")
    assert _names(backlog, 5) == []


def test_a_long_line_of_pipelines_is_known_at_once() -> None:
    """It is made on the loop, at the start and with each reload."""
    names = [f"p{number}" for number in range(20_000)]
    after = {name: (*names[max(at - 1, 0) : at], "p0") for at, name in enumerate(names)}
    pipelines = {name: replace(PIPELINE, name=name, after=after[name]) for name in names}
    begun = time.process_time()
    found = downstream(replace(PROJECT, pipelines=pipelines))
    assert time.process_time() - begun < 2
    assert len(found["p0"]) == 20_001
    assert list(found["p7"]) == ["p8"]
