"""Verbs that steer: what they change, who is said to have changed it, and what they refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from catalog.open import open_catalog
from catalog.port import Catalog, new_operation_id
from catalog.records import (
    Edit,
    Finish,
    Hold,
    HoldKind,
    Outcome,
    Pause,
    PipelineState,
    SetCursor,
    StreamState,
)
from catalog.sqlite.backend import SqliteCatalog
from reconciler.cli import editing
from reconciler.cli.failure import Exit
from tests.cli_kit import PROPOSAL, Shop, claim, commit, finish, held, make_shop, ran
from tests.replacing import replace

NULL_KEY = Hold(HoldKind.NULL_KEY, "3 rows have no key.", at=1, choices=("retry", "refresh"))


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    return make_shop(tmp_path, capsys)


def state(shop: Shop) -> PipelineState:
    return shop.on(lambda catalog: catalog.pipeline("shop"))


def orders(shop: Shop) -> StreamState:
    return shop.on(lambda catalog: catalog.streams("shop"))[0]


def edits(shop: Shop) -> tuple[Edit, ...]:
    return shop.on(lambda catalog: catalog.edits("shop"))


def park(shop: Shop) -> None:
    async def work(catalog: Catalog) -> None:
        claimed = await claim(catalog)
        ended = Finish(Outcome.FAILED, "gave up", park="too many failures")
        await catalog.finish(new_operation_id(), claimed.lease, ended)

    shop.on(work)


def test_pause_and_resume_are_recorded_with_who_and_why(shop: Shop) -> None:
    result = shop.cli("pause", "shop", "--why", "database moves")
    assert result.code == Exit.GOOD
    assert "reconciler resume shop" in result.out
    paused = state(shop).paused
    assert paused is not None
    assert paused.why == "database moves"
    assert re.fullmatch(r"\S+@\S+", paused.by)
    assert shop.cli("resume", "shop", "--why", "it moved").code == Exit.GOOD
    assert state(shop).paused is None
    assert [(edit.action, edit.why) for edit in edits(shop)] == [
        ("resume", "it moved"),
        ("pause", "database moves"),
    ]


def test_an_edit_is_printed_as_its_audit_record(shop: Shop) -> None:
    printed = shop.cli("pause", "shop", "--why", "x", "--json").json
    assert printed["dry_run"] is False
    (edit,) = printed["edits"]
    assert (edit["action"], edit["pipeline"], edit["why"]) == ("pause", "shop", "x")
    assert edit["at"].endswith("Z")
    assert {"id", "by", "stream", "old", "new"} <= set(edit)


def test_resume_ends_a_parking(shop: Shop) -> None:
    park(shop)
    assert state(shop).parked is not None
    assert "planned again" in shop.cli("resume", "shop").out
    assert state(shop).parked is None


def test_pause_during_a_run_says_that_it_goes_on(shop: Shop) -> None:
    claimed = shop.on(claim)
    result = shop.cli("pause", "shop")
    assert f"Run {claimed.lease.epoch} is under way and goes on" in result.out
    assert "reconciler cancel shop" in result.out


def test_pause_says_nothing_of_a_run_whose_holder_stopped(shop: Shop) -> None:
    shop.on(lambda catalog: claim(catalog, ttl=0.001))
    assert "goes on" not in shop.cli("pause", "shop").out


def test_cancel_asks_the_run_under_way_to_end(shop: Shop) -> None:
    nothing = shop.cli("cancel", "shop")
    assert nothing.code == Exit.NOTHING
    assert "No run of shop is under way." in nothing.err
    claimed = shop.on(claim)
    assert f"epoch={claimed.lease.epoch}" in shop.cli("cancel", "shop", "--dry-run").out
    assert shop.cli("cancel", "shop").code == Exit.GOOD
    assert state(shop).cancel == claimed.lease.epoch


def test_cancel_of_a_run_whose_holder_stopped_asks_nobody(shop: Shop) -> None:
    claimed = shop.on(lambda catalog: claim(catalog, ttl=0.01))
    result = shop.cli("cancel", "shop")
    assert result.code == Exit.NOTHING
    assert f"Run {claimed.lease.epoch} has lapsed: {claimed.lease.holder} stopped." in result.err


def test_retry_asks_for_a_run_and_ends_a_parking(shop: Shop) -> None:
    park(shop)
    result = shop.cli("retry", "shop")
    assert result.code == Exit.GOOD
    after = state(shop)
    assert after.parked is None
    assert after.request is not None
    assert "reconciler run shop" in result.out
    with shop.daemon_lock():
        assert "reconciler status shop" in shop.cli("retry", "shop").out


def test_retry_of_a_held_stream_releases_it_and_asks_for_that_stream(shop: Shop) -> None:
    shop.on(lambda catalog: held(catalog, NULL_KEY))
    result = shop.cli("retry", "shop.orders")
    assert (result.code, result.err) == (Exit.GOOD, "")
    assert orders(shop).hold is None
    request = state(shop).request
    assert request is not None
    assert request.streams == ("orders",)


def test_retry_of_a_pipeline_says_which_streams_stay_held(shop: Shop) -> None:
    shop.on(lambda catalog: held(catalog, NULL_KEY))
    result = shop.cli("retry", "shop")
    assert "Held streams stay held: orders" in result.err
    assert orders(shop).hold is not None


def test_retry_of_a_hold_that_needs_an_answer_is_code_3_and_names_the_answers(
    shop: Shop,
) -> None:
    shop.on(held)
    result = shop.cli("retry", "shop.orders")
    assert result.code == Exit.HELD
    assert "reconciler approve shop.orders" in result.err
    assert state(shop).request is None


@pytest.mark.parametrize(
    ("kind", "choice", "code"),
    [
        (HoldKind.DESTINATION, "refresh", Exit.HELD),
        (HoldKind.DEFINITION, "refresh", Exit.HELD),
        (HoldKind.LOST_BATCH, "refresh", Exit.HELD),
        (HoldKind.DEFINITION, "retry", Exit.GOOD),
        (HoldKind.FILES_CHANGED, "refresh", Exit.GOOD),
    ],
)
def test_retry_releases_what_another_run_may_find_mended(
    shop: Shop, kind: HoldKind, choice: str, code: Exit
) -> None:
    shop.on(lambda catalog: held(catalog, Hold(kind, "It differs.", at=1, choices=(choice,))))
    assert shop.cli("retry", "shop.orders").code == code
    assert (orders(shop).hold is None) == (code == Exit.GOOD)


@pytest.mark.parametrize(("verb", "answer"), [("approve", "approved"), ("reject", "rejected")])
def test_an_answer_to_a_schema_change_is_a_decision(shop: Shop, verb: str, answer: str) -> None:
    shop.on(held)
    result = shop.cli(verb, "shop.orders", "--why", "talked to Ann")
    assert result.code == Exit.GOOD
    assert "reconciler run shop.orders" in result.out
    (decision,) = shop.on(lambda catalog: catalog.decisions("shop", "orders"))
    assert (decision.answer, decision.why) == (answer, "talked to Ann")
    assert decision.fingerprint == PROPOSAL.fingerprint
    assert orders(shop).hold is None


def test_an_answer_to_an_older_proposal_is_refused(shop: Shop) -> None:
    shop.on(held)
    result = shop.cli("approve", "shop.orders", "--fingerprint", "0000000000000000")
    assert result.code == Exit.FAILED
    assert "the source moved on" in result.err
    assert orders(shop).hold is not None
    named = ("--fingerprint", PROPOSAL.fingerprint)
    assert shop.cli("approve", "shop.orders", *named).code == Exit.GOOD


def test_an_answer_that_is_not_among_the_choices_is_refused(shop: Shop) -> None:
    stuck = replace(PROPOSAL, choices=("approve",))
    shop.on(lambda catalog: held(catalog, stuck))
    result = shop.cli("reject", "shop.orders")
    assert (result.code, orders(shop).hold) == (Exit.HELD, stuck)
    assert "shop.orders cannot be rejected: Column 'note' (text) is new." in result.err
    assert shop.cli("approve", "shop.orders").code == Exit.GOOD


def test_an_answer_where_nothing_was_asked_is_code_5(shop: Shop) -> None:
    shop.on(ran)
    assert shop.cli("approve", "shop.orders").code == Exit.NOTHING
    shop.on(lambda catalog: held(catalog, NULL_KEY))
    assert "waits for no answer about its schema" in shop.cli("approve", "shop.orders").err


def test_an_answer_to_a_whole_pipeline_names_its_streams(shop: Shop) -> None:
    shop.on(held)
    result = shop.cli("approve", "shop")
    assert result.code == Exit.USAGE
    assert "shop.orders" in result.err


def test_refresh_marks_one_stream_or_all(shop: Shop) -> None:
    assert shop.cli("refresh", "shop").code == Exit.NOTHING
    shop.on(ran)
    assert shop.cli("refresh", "shop.nope").code == Exit.NOTHING
    assert shop.cli("refresh", "shop.orders").code == Exit.GOOD
    assert orders(shop).directive == "refresh"
    other = SetCursor("shop", "other", None)
    shop.on(lambda catalog: catalog.edit(new_operation_id(), "ann", "", other))
    assert shop.cli("refresh", "shop.orders").code == Exit.GOOD
    assert [s.directive for s in shop.on(lambda c: c.streams("shop"))] == ["refresh", ""]
    assert shop.cli("refresh", "shop").code == Exit.GOOD
    assert [s.directive for s in shop.on(lambda c: c.streams("shop"))] == ["refresh", "refresh"]


def test_an_edit_that_a_run_would_overwrite_is_code_4(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editing, "PATIENCE", 0.0)
    shop.on(ran)
    shop.on(claim)
    result = shop.cli("refresh", "shop.orders")
    assert result.code == Exit.LEASED
    assert "shop.orders: run " in result.err
    assert "under way" in result.err
    assert "reconciler pause shop" in result.err


def test_what_was_done_before_an_edit_that_failed_is_said(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def two_streams(catalog: Catalog) -> None:
        claimed = await claim(catalog)
        for stream in ("lines", "orders"):
            await commit(catalog, claimed, stream)
        await finish(catalog, claimed, Outcome.SUCCEEDED)

    shop.on(two_streams)
    edit = SqliteCatalog.edit

    async def then_a_run_begins(catalog: SqliteCatalog, *args: Any) -> Edit:
        done = await edit(catalog, *args)
        await claim(catalog)
        return done

    monkeypatch.setattr(editing, "PATIENCE", 0.0)
    monkeypatch.setattr(SqliteCatalog, "edit", then_a_run_begins)
    result = shop.cli("refresh", "shop")
    assert result.code == Exit.LEASED
    assert "Done before that: refresh shop.lines." in result.err


def test_an_edit_waits_for_a_run_that_ends_soon(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.on(ran)
    claimed = shop.on(claim)

    async def a_moment(_seconds: float) -> None:
        async with open_catalog(f"sqlite:///{shop.folder}/state/catalog.db") as catalog:
            await finish(catalog, claimed, Outcome.NOTHING_NEW)

    monkeypatch.setattr(editing, "sleep", a_moment)
    assert shop.cli("refresh", "shop.orders").code == Exit.GOOD
    assert orders(shop).directive == "refresh"


VERBS = [
    ("pause", "shop"),
    ("resume", "shop"),
    ("retry", "shop"),
    ("retry", "shop.orders"),
    ("refresh", "shop"),
    ("refresh", "shop.orders"),
    ("cursor", "set", "shop.orders", "7"),
    ("cursor", "rewind", "shop.orders", "--to-batch", "1"),
]


@pytest.mark.parametrize("args", VERBS, ids=" ".join)
def test_dry_run_says_what_would_be_and_changes_nothing(shop: Shop, args: tuple[str, ...]) -> None:
    shop.on(ran)
    before = (state(shop), orders(shop))
    result = shop.cli(*args, "--dry-run")
    assert result.code == Exit.GOOD
    assert result.out.startswith("Nothing was changed.")
    proposed = shop.cli(*args, "--dry-run", "--json").json
    assert proposed["dry_run"] is True
    assert proposed["edits"][0]["pipeline"] == "shop"
    assert (state(shop), orders(shop)) == before
    assert edits(shop) == ()


def test_a_paused_pipeline_is_said_to_be_when_it_is_retried(shop: Shop) -> None:
    shop.on(lambda c: c.edit(new_operation_id(), "ann@host", "", Pause("shop")))
    assert "is paused" in shop.cli("retry", "shop").err
