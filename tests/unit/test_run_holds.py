"""One stream of a run that is held: by its source, its schema, or its destination (B4)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.position import encode
from catalog.records import (
    Cursor,
    CursorKind,
    Hold,
    HoldKind,
    Outcome,
)
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.ports import (
    Marker,
    NeedsAnswer,
    Owner,
    Rejected,
)
from reconciler.run import messages as m
from reconciler.run import stream as module
from reconciler.run.mismatch import AGREES, marker_detail
from tests.replacing import replace
from tests.stream_kit import (
    FILE,
    KEY,
    OTHER,
    OWNER,
    REJECTED,
    TO_DESTINATION,
    FakeRead,
    World,
    at,
    cursor,
    held,
    mark,
    rows,
    waiting,
)

# -- holds -----------------------------------------------------------------------------------------


def test_a_hold_is_since_when_it_was_first_met(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: 5.0, time_ns=lambda: 2_000_999)
    monkeypatch.setattr(module, "time", clock)
    need = NeedsAnswer(HoldKind.NULL_KEY, "a key is null", ("release",), "[1]")
    world = World(FakeRead(need))
    assert held(world.run()) == Hold(
        HoldKind.NULL_KEY, "a key is null", 2_000, ("release",), detail="[1]"
    )
    mismatch = Hold(HoldKind.DESTINATION, "gone", 7, ("refresh",))
    assert held(World().run(published=1, seq=1, hold=mismatch)).at == 7
    lost = replace(mismatch, kind=HoldKind.LOST_BATCH)
    assert held(World().run(published=1, seq=1, hold=lost)).at == 2_000


def test_a_stream_that_waits_for_an_answer_is_not_read() -> None:
    world = World(FakeRead(rows(1), mark(7)))
    found = world.run(hold=Hold(HoldKind.SCHEMA, "narrowed", 7, ("approve",)))
    assert (found.outcome, found.reason, found.hold) == (Outcome.HELD, "narrowed", None)
    assert world.requests == []


@pytest.mark.parametrize("kind", [HoldKind.DESTINATION, HoldKind.LOST_BATCH])
def test_a_destination_that_fits_again_still_waits_for_a_person(kind: HoldKind) -> None:
    world = World(FakeRead(rows(1), mark(7)), marker=at(3))
    found = held(world.run(seq=3, published=3, hold=Hold(kind, "gone", 7, ())))
    assert found.choices == ("retry", "refresh")
    assert detail(found)["seq"] == 3
    assert found.reason == ("table 'orders' fits the catalog again, at batch 3: `retry` goes on")
    about = "" if kind is HoldKind.LOST_BATCH else found.detail
    fresh = held(World().run(hold=Hold(kind, "gone", 7, (), detail=about)))
    assert "at batch 0" in fresh.reason


def test_a_table_that_somebody_else_made_does_not_fit_because_it_has_no_marker() -> None:
    foreign = Hold(HoldKind.DESTINATION, "somebody else made it", 7, ("cursor adopt", "retry"))
    result = World().run(hold=foreign)
    assert (result.outcome, result.reason) == (Outcome.HELD, "somebody else made it")
    assert result.hold is None  # what is recorded stays, with its choices


def test_a_schema_that_is_held_ends_the_stream_before_anything_is_staged() -> None:
    hold = Hold(HoldKind.SCHEMA, "amount was narrowed", 7, ("approve",), 1, "f2")
    world = World(FakeRead(rows(1), mark(7)), verdict=m.Verdict(1, hold=hold))
    assert held(world.run()) == hold
    assert world.stages == []


def test_replacing_rows_by_none_is_held_unless_it_is_meant() -> None:
    replaces = replace(KEY, mode=Mode.REPLACE)
    world = World(FakeRead(mark(7)), marker=at(1))
    found = held(world.run(seq=1, published=1, settings=replaces))
    assert (found.kind, found.choices) == (HoldKind.EMPTY_REPLACE, ("retry", "refresh"))
    assert found.reason == (
        "the source has no rows now, and table 'orders' has some: replacing them by none is "
        "held; `allow_empty = true` on the stream lets it happen"
    )
    assert world.diary == ["abort"]
    for settings, marker in (
        (replace(replaces, allow_empty=True), at(1)),
        (replaces, at(1, has_rows=False)),
        (replaces, None),
    ):
        world = World(FakeRead(mark(7)), marker=marker)
        seq = 1 if marker else 0
        assert world.run(seq=seq, published=seq, settings=settings).outcome is Outcome.NOTHING_NEW
        assert world.commits[0][0].replaces
        assert world.stages[0].request.may_empty == settings.allow_empty


def test_rows_that_waited_to_be_published_are_not_replaced_by_none_either() -> None:
    """(B7) They are there by the time the source is read."""
    replaces = replace(KEY, mode=Mode.REPLACE)
    world = World(FakeRead(mark(7)))
    world.unpublished = (waiting(1, mode=Mode.REPLACE),)
    assert held(world.run(seq=1, settings=replaces)).kind is HoldKind.EMPTY_REPLACE


def test_replacing_rows_by_such_as_are_all_set_aside_is_held_in_its_own_words() -> None:
    replaces = replace(KEY, mode=Mode.REPLACE)
    world = World(FakeRead(Rejected((REJECTED, REJECTED)), mark(7)), marker=at(1))
    found = held(world.run(seq=1, published=1, settings=replaces))
    assert found.reason == (
        "all rows that the source has now (2) are set aside, and table 'orders' has some: "
        "replacing them by none is held; `allow_empty = true` on the stream lets it happen"
    )


# -- the destination's marker ----------------------------------------------------------------------


def detail(hold: Hold) -> Any:
    assert hold.kind is HoldKind.DESTINATION
    return msgspec.json.decode(hold.detail)


def test_a_destination_without_its_marker_is_new_or_was_emptied() -> None:
    world = World(FakeRead(rows(1), mark(7)))
    found = held(world.run(seq=3, published=2))
    assert found.reason == (
        "table 'orders' has no marker, but the catalog published up to batch 2: the destination "
        "is new, was emptied or is not mounted"
    )
    assert found.choices == TO_DESTINATION
    assert detail(found) == {"seq": 0, "epoch": 0, "cursor": None, "owner": None}
    assert world.requests == []


def test_a_table_that_is_there_without_a_marker_is_not_filled_from_the_beginning() -> None:
    """One renamed by hand has the rows: to read them again would double them."""
    world = World(FakeRead(rows(1), mark(7)), unmarked=True)
    assert held(world.run(seq=2, published=2)).choices == ("retry", "cursor adopt")
    assert held(world.run(seq=2, published=2)).detail == ""
    told_of_none = marker_detail(None)
    found = held(world.run(seq=2, published=2, directive="adopt", seen=told_of_none))
    assert found.choices == ("retry", "cursor adopt")
    assert (world.adopted, world.requests) == ([], [])
    world.run(seq=2, published=2, directive="adopt", seen="", cursor=cursor(5))
    assert world.adopted == [(2, cursor(5))]


def test_where_batches_wait_a_table_without_a_marker_leaves_a_refresh_alone() -> None:
    world = World(unmarked=True)
    world.unpublished = (waiting(2),)
    assert held(world.run(seq=2, published=1)).choices == ("refresh",)


def test_a_destination_behind_the_catalog_was_restored() -> None:
    found = held(World(marker=at(1)).run(seq=3, published=2))
    assert found.reason == (
        "table 'orders' is at batch 1, but the catalog published up to 2: the destination was "
        "emptied or restored"
    )
    assert found.choices == TO_DESTINATION
    assert detail(found)["seq"] == 1
    assert msgspec.convert(detail(found)["cursor"], Cursor) == cursor(1)


def test_a_destination_ahead_of_the_catalog_is_of_a_newer_one() -> None:
    world = World(marker=at(5))
    world.unpublished = (waiting(3),)
    found = held(world.run(seq=3, published=2))
    assert found.reason == (
        "table 'orders' is at batch 5, but the catalog knows only 3: the catalog is new or was "
        "restored"
    )
    assert found.choices == TO_DESTINATION
    assert detail(found)["seq"] == 5
    assert world.diary == ["publish 3"]


def test_appended_rows_that_the_catalog_does_not_know_are_not_offered_to_be_read_again() -> None:
    appends = StreamSettings(mode=Mode.APPEND)
    found = held(World(marker=at(5)).run(settings=appends, seq=3, published=3))
    assert found.choices == TO_DESTINATION[:2]
    found = held(World(marker=at(0, OTHER)).run(settings=appends))
    assert found.reason.endswith("also what is there, which is there twice then")


@pytest.mark.parametrize("seq", [2, 3])
def test_a_destination_between_what_is_published_and_what_is_committed_is_right(seq: int) -> None:
    assert World(marker=at(seq)).run(seq=3, published=2).outcome is Outcome.NOTHING_NEW


def test_batches_that_wait_and_do_not_fit_leave_a_refresh_alone() -> None:
    world = World(marker=at(1))
    world.unpublished = (waiting(3), waiting(4))
    found = held(world.run(seq=4, published=2))
    assert found.reason.endswith(
        "; 2 committed batches wait to be published and do not fit it: `refresh` reads all again"
    )
    assert found.choices == ("refresh",)


def test_another_owners_table_is_left_alone_until_a_person_takes_it_over() -> None:
    whose = (
        "table 'orders' belongs to pipeline 'other', stream 'items' of catalog cat2; another name "
        "in `table`, and then '{0}', leaves it alone"
    )
    world = World(FakeRead(rows(1), mark(7)), marker=at(0, OTHER))
    world.ledgers["orders"] = ()
    found = held(world.run())
    assert found.reason == (
        f"{whose.format('retry')}, 'cursor rewind --to-destination' takes it over and goes on "
        "where it stands, "
        "'cursor adopt' takes it over and reads on from here"
    )
    assert found.choices == ("retry", "cursor rewind --to-destination", "cursor adopt")
    assert msgspec.convert(detail(found)["cursor"], Cursor) == cursor(0)
    world.unpublished = (waiting(1),)
    found = held(world.run(seq=1))
    assert (found.reason, found.choices) == (whose.format("refresh"), ("refresh",))
    assert world.diary == []


def test_a_table_that_is_gone_is_made_again_by_a_replacement_that_waits() -> None:
    """It stands for all that was committed before it."""
    world = World()
    whole = Mode.REPLACE
    world.unpublished = (waiting(2), waiting(3, mode=whole), waiting(4, mode=whole), waiting(5))
    assert world.run(seq=5, published=1).outcome is Outcome.NOTHING_NEW
    assert world.diary == ["publish 4 5"]
    world = World()
    world.unpublished = (waiting(2), waiting(3))
    found = held(world.run(seq=3, published=1))
    assert (found.choices, world.diary) == (("refresh",), [])


APPENDS = StreamSettings(mode=Mode.APPEND)


def read(times: int) -> Cursor:
    """How often files were read, which says nothing of which."""
    return Cursor(CursorKind.SNAPSHOT_ID, "{}", encode("snapshot", times))


REPLACES = replace(KEY, mode=Mode.REPLACE)


def files_at(seq: int, owner: Owner = OWNER, by: int = 0) -> Marker:
    return Marker(owner, seq, read(seq), 1, epoch=by)


@pytest.mark.parametrize(
    ("settings", "marker", "choices"),
    [
        (KEY, at(3, epoch=7), TO_DESTINATION),
        (APPENDS, at(3, epoch=7), TO_DESTINATION[:2]),
        (APPENDS, replace(files_at(3), epoch=7), ("refresh",)),
    ],
)
def test_a_marker_of_the_same_number_and_another_run_was_restored(
    settings: StreamSettings, marker: Marker, choices: tuple[str, ...]
) -> None:
    state = {"seq": 3, "published": 3, "cursor": marker.cursor}
    world = World(marker=marker)
    found = held(world.run(settings=settings, published_by=9, **state))
    assert found.reason == (
        "table 'orders' is at batch 3 of run 7, but the catalog's batch 3 is of run 9: one of the "
        "two was restored, and they went different ways since"
    )
    assert found.choices == choices
    for by in (0, 7):
        assert World(marker=marker).run(published_by=by, **state).hold is None
    unknown = at(3)
    assert World(marker=unknown).run(published_by=9, **state).hold is None
    assert World(marker=marker).run(published_by=9, directive="refresh", **state).hold is None


def test_a_batch_that_waits_and_is_there_of_another_run_is_not_taken_for_published() -> None:
    world = World(marker=at(4, epoch=7))
    world.unpublished = (waiting(4),)
    found = held(world.run(seq=4, published=3, published_by=3))
    assert "is at batch 4 of run 7" in found.reason
    assert found.choices == ("refresh",)


@pytest.mark.parametrize(
    ("marker", "state", "choices"),
    [
        (files_at(2, by=7), {"seq": 3, "published": 3, "ledger_from": 2}, TO_DESTINATION),
        (files_at(2, by=8), {"seq": 3, "published": 3, "ledger_from": 2}, ("refresh",)),
        (files_at(1), {"seq": 3, "published": 3, "ledger_from": 2}, TO_DESTINATION[1:]),
        (None, {"seq": 3, "published": 3, "cursor": read(3)}, TO_DESTINATION),
        (files_at(4), {"seq": 3, "published": 3}, ("refresh",)),
        (files_at(4, OTHER), {"seq": 0}, ("retry", "cursor adopt")),
    ],
    ids=["behind", "behind in another way", "behind the ledger", "gone", "ahead", "another's"],
)
def test_what_was_read_of_files_is_rewound_only_as_far_as_the_ledger_tells(
    marker: Marker | None, state: dict[str, Any], choices: tuple[str, ...]
) -> None:
    world = World(marker=marker)
    world.ledgers["orders"] = (replace(FILE, seq=1, epoch=5), replace(FILE, seq=2, epoch=7))
    assert held(world.run(settings=APPENDS, **state)).choices == choices


@pytest.mark.parametrize(
    ("settings", "marker", "choices"),
    [
        (REPLACES, files_at(4, by=7), TO_DESTINATION[1:]),
        (REPLACES, files_at(1, by=7), TO_DESTINATION),
        (KEY, files_at(4, OTHER, by=7), ("retry", TO_DESTINATION[2])),
    ],
    ids=["replaced and ahead", "replaced and behind", "merged and another's"],
)
def test_a_table_that_the_ledger_does_not_speak_of_is_no_place_to_rewind_to(
    settings: StreamSettings, marker: Marker, choices: tuple[str, ...]
) -> None:
    world = World(marker=marker)
    state = {"seq": 3, "published": 3, "cursor": read(3)}
    world.ledgers["orders"] = ()
    whole_tables = held(world.run(settings=settings, **state)).choices
    assert TO_DESTINATION[0] in whole_tables
    world.ledgers["orders"] = (FILE,)
    assert held(world.run(settings=settings, **state)).choices == choices


def test_files_of_another_stream_are_no_place_to_rewind_to_where_none_were_read() -> None:
    """Which of them its table has is in its own ledger."""
    world = World(marker=files_at(4, OTHER))
    world.ledgers["orders"] = ()
    assert held(world.run(settings=APPENDS)).choices == ("retry", TO_DESTINATION[2])


def test_files_that_are_merged_may_be_read_again() -> None:
    for marker in (files_at(4), files_at(1)):
        found = held(World(marker=marker).run(seq=3, published=3, ledger_from=2))
        assert found.choices == TO_DESTINATION


def test_adopt_sets_the_marker_to_what_the_catalog_knows() -> None:
    world = World(FakeRead(rows(1), mark(7)), marker=at(9, OTHER))
    found = world.run(seq=3, published=3, directive="adopt", cursor=cursor(5))
    assert world.adopted == [(3, cursor(5))]
    assert (found.outcome, found.adopted) == (Outcome.SUCCEEDED, True)
    assert world.commits[0][0].follows == 3


@pytest.mark.parametrize(
    ("now", "said"), [(at(3), "it is at batch 3 now"), (None, "it has no marker now")]
)
def test_what_a_person_said_of_another_marker_is_asked_again(now: Marker | None, said: str) -> None:
    seen = held(World(marker=at(1)).run(seq=3, published=3)).detail
    world = World(FakeRead(rows(1), mark(7)), marker=now)
    found = held(world.run(seq=3, published=3, directive="adopt", seen=seen, cursor=cursor(5)))
    assert found.reason == (
        f"table 'orders' changed since a person said what is to become of it: {said}"
    )
    assert found.choices == TO_DESTINATION
    assert found.detail != seen
    assert (world.adopted, world.requests) == ([], [])


@pytest.mark.parametrize(
    ("before", "now", "choices"),
    [(at(1), at(3), TO_DESTINATION[:2]), (files_at(1), files_at(3), ("refresh",))],
    ids=["by cursor", "files"],
)
def test_a_table_that_changed_since_is_not_adopted_where_its_rows_would_be_there_twice(
    before: Marker, now: Marker, choices: tuple[str, ...]
) -> None:
    """The cursor was put back to what the table was; now it has rows beyond that again."""
    seen = held(World(marker=before).run(settings=APPENDS, seq=3, published=3)).detail
    state = {"seq": 3, "published": 3, "directive": "adopt", "seen": seen}
    found = held(World(marker=now).run(settings=APPENDS, cursor=before.cursor, **state))
    assert found.choices == choices


def test_the_marker_that_a_person_spoke_of_is_adopted_and_once_adopted_is_right() -> None:
    seen = held(World(marker=at(1)).run(seq=3, published=3)).detail
    state = {"seq": 3, "published": 3, "directive": "adopt", "seen": seen, "cursor": cursor(5)}
    world = World(marker=at(1))
    assert world.run(**state).adopted
    assert world.adopted == [(3, cursor(5))]
    # Had it been cut off it could not have said so, nor that all is durable: it is done again.
    assert world.run(**state).adopted
    assert world.adopted == [(3, cursor(5))] * 2


def test_a_marker_at_the_same_place_by_another_number_is_not_where_adopting_puts_it() -> None:
    seen = held(World(marker=at(1)).run(seq=3, published=3)).detail
    world = World(marker=Marker(OWNER, 9, cursor(5), 1))
    state = {"directive": "adopt", "seen": seen, "cursor": cursor(5)}
    assert "it is at batch 9 now" in held(world.run(seq=3, published=3, **state)).reason
    assert world.adopted == []


@pytest.mark.parametrize("now", [at(2), at(5), at(3, OTHER), at(3, epoch=7), None])
def test_what_was_not_held_is_adopted_only_if_it_fits(now: Marker | None) -> None:
    state = {"seq": 3, "published": 3, "published_by": 8, "directive": "adopt", "seen": AGREES}
    world = World(marker=now)
    assert held(world.run(**state)).kind is HoldKind.DESTINATION
    assert world.adopted == []
    world = World(marker=at(3, epoch=8))
    assert world.run(**state).adopted
    assert world.run(**state).adopted, "also where the run that did it was cut off"
    assert world.adopted == [(3, None)] * 2
    world = World(unmarked=True)
    assert held(world.run(directive="adopt", seen=AGREES)).choices == ("retry", "cursor adopt")


def test_adopt_passes_over_no_batch_that_waits() -> None:
    world = World(marker=at(3))
    world.unpublished = (waiting(4),)
    found = world.run(seq=4, published=3, directive="adopt", cursor=cursor(5))
    assert (world.adopted, world.diary) == ([], ["publish 4"])
    assert found.adopted


def test_a_refresh_reads_all_again_into_the_place_of_what_is_there() -> None:
    world = World(FakeRead(rows(1), mark(7), has_news=False), marker=at(1))
    found = world.run(seq=3, published=2, directive="refresh", cursor=cursor(5))
    assert world.adopted == []  # until it is replaced, the table says what it has
    assert not found.adopted
    assert (world.requests[0].cursor, world.requests[0].refresh) == (None, True)
    ((batch, published),) = world.commits
    assert (batch.replaces, batch.follows) == (True, 3)
    assert published == {"orders": 3}  # what waited is void then
    assert world.stages[0].request.mode is Mode.REPLACE


def test_a_refresh_of_a_table_that_is_gone_needs_nothing_that_waited_for_it() -> None:
    world = World(FakeRead(rows(1), mark(7)))
    world.unpublished = (waiting(3),)
    found = world.run(seq=3, published=2, directive="refresh")
    assert found.outcome is Outcome.SUCCEEDED
    assert world.diary == ["seal", "commit", "publish 4"]
    assert world.adopted == []


def test_a_refresh_takes_no_other_owners_table() -> None:
    world = World(FakeRead(rows(1), mark(7)), marker=at(2, OTHER))
    held(world.run(seq=3, published=2, directive="refresh"))
    assert world.adopted == []
