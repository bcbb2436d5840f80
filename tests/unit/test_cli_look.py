"""Verbs that look, on a real catalog: status, why, plan, runs, show, logs, leases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from catalog.port import Catalog, new_operation_id
from catalog.records import Outcome, Pause, Rename, Run
from reconciler.cli.failure import Exit
from reconciler.config import keep, load
from reconciler.daemon import runlogs
from reconciler.daemon.renaming import take_over
from tests.cli_kit import CONFIG, Shop, claim, commit, failed, finish, held, make_shop, ran

MORE = """
[connections.more]
connector = "files"
path = "more"
[pipelines.more]
source = "more"
destination = "warehouse"
mode = "append"
[pipelines.more.streams.lines]
path = "*.csv"
"""


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    return make_shop(tmp_path, capsys)


# -- status --------------------------------------------------------------------------------------


def test_status_of_a_project_that_never_ran_shows_its_config_and_makes_no_catalog(
    shop: Shop,
) -> None:
    result = shop.cli("status", "--json")
    assert result.code == Exit.GOOD
    assert result.json["project"] == "shop"
    assert result.json["daemon_up"] is False
    assert [p["pipeline"] for p in result.json["pipelines"]] == ["shop", "stock"]
    assert not (shop.folder / "state").exists()


def test_status_says_what_stands_and_what_comes_next(shop: Shop) -> None:
    shop.on(ran)
    shop.on(lambda c: c.edit(new_operation_id(), "ann@host", "night", Pause("stock")))
    by_name = {p["pipeline"]: p for p in shop.cli("status", "--json").json["pipelines"]}
    assert by_name["shop"]["state"] == "idle"
    assert by_name["shop"]["last_outcome"] == "succeeded"
    assert by_name["shop"]["rows"] == 3
    assert by_name["shop"]["next_at"].endswith("Z")
    assert by_name["stock"]["state"] == "paused"
    assert "ann@host" in by_name["stock"]["why"]
    assert "night" in shop.cli("status").out


def standing(shop: Shop) -> dict[str, str]:
    shown = shop.cli("status", "--json").json["pipelines"]
    return {pipeline["pipeline"]: pipeline["state"] for pipeline in shown}


def test_status_knows_what_is_due_by_schedule_and_after_others(shop: Shop) -> None:
    shop.on(ran)
    shown = {p["pipeline"]: p for p in shop.cli("status", "--json").json["pipelines"]}
    assert shown["stock"]["state"] == "waiting", "shop has brought something"
    assert shown["stock"]["next_at"] is not None


def test_status_shows_a_run_whose_pipeline_left_the_config_and_no_name_that_one_had(
    shop: Shop,
) -> None:
    shop.on(lambda catalog: ran(catalog, "old"))
    shop.on(lambda catalog: catalog.edit(new_operation_id(), "ann", "", Rename("new", "old")))
    shop.on(lambda catalog: claim(catalog, "gone"))
    found = standing(shop)
    assert (found["gone"], found["new"], "old" in found) == ("running", "orphaned", False)


def test_status_says_how_many_rows_were_set_aside(shop: Shop) -> None:
    shop.on(ran)
    assert "rejected" not in shop.cli("status").out

    async def with_rejects(catalog: Catalog) -> None:
        claimed = await claim(catalog)
        await commit(catalog, claimed, at=20, rejected=1204)
        await finish(catalog, claimed, Outcome.SUCCEEDED)

    shop.on(with_rejects)
    heads, line, *_ = shop.cli("status").out.splitlines()[2:]
    assert "rejected" in heads
    assert "1,204" in line


def test_status_shows_a_run_under_way_and_a_daemon(shop: Shop) -> None:
    shop.on(claim)
    with shop.daemon_lock():
        status = shop.cli("status", "--json").json
    assert status["daemon_up"] is True
    assert status["pipelines"][0]["state"] == "running"
    assert status["pipelines"][0]["next_at"] is None, "the end of its lease is no run"


def test_status_of_a_pipeline_shows_its_streams_and_how_to_answer_a_hold(shop: Shop) -> None:
    shop.on(held)
    result = shop.cli("status", "shop")
    assert result.code == Exit.GOOD
    assert "shop.orders is held: Column 'note' (text) is new." in result.out
    assert "  reconciler approve shop.orders" in result.out
    assert "  reconciler reject shop.orders" in result.out
    record = shop.cli("status", "shop.orders", "--json").json
    assert record["state"] == "held"
    assert record["why"].startswith("held: orders; ")
    assert record["streams"][0]["hold"]["kind"] == "schema"


def test_status_of_a_stream_that_is_not_there_names_the_nearest(shop: Shop) -> None:
    shop.on(ran)
    result = shop.cli("status", "shop.order")
    assert result.code == Exit.NOTHING
    assert 'Did you mean "shop.orders"?' in result.err


def test_a_pipeline_that_left_the_config_is_shown_as_orphaned(shop: Shop) -> None:
    shop.on(lambda catalog: ran(catalog, "old"))
    by_name = {p["pipeline"]: p for p in shop.cli("status", "--json").json["pipelines"]}
    assert by_name["old"]["state"] == "orphaned"
    assert by_name["old"]["rows"] == 3


def test_status_with_a_broken_config_still_shows_the_catalog(shop: Shop) -> None:
    shop.on(ran)
    (shop.folder / "config.toml").write_text('project = "shop"\nnonsense = 1\n')
    result = shop.cli("status")
    assert result.code == Exit.GOOD
    assert "nonsense" in result.err
    assert "succeeded" in result.out


# -- plan and why --------------------------------------------------------------------------------


def test_plan_shows_each_action_with_its_reason(shop: Shop) -> None:
    actions = {a["pipeline"]: a for a in shop.cli("plan", "--json").json["actions"]}
    assert actions["shop"]["action"] == "run"
    assert actions["shop"]["trigger"]["kind"] == "tick"
    assert actions["stock"]["action"] == "wait"
    assert actions["stock"]["code"] == "upstream"
    out = shop.cli("plan").out
    assert actions["stock"]["reason"] in out


def test_plan_shows_what_edits_will_do_that_nobody_has_taken_up(shop: Shop) -> None:
    file = shop.folder / "config.toml"
    assert shop.cli("plan", "--json").json["edits"] == [], "nothing has run: nothing to compare"
    (shop.folder / "state").mkdir()
    keep(load(file, {}, secrets=False))
    assert shop.cli("plan", "--json").json["edits"] == []

    edited = file.with_name("edited.toml")
    edited.write_text(file.read_text().replace('"every 15m"', '"every 5m"') + MORE)
    result = shop.cli("--config", str(edited), "plan", "--json").json
    assert {(e["subject"], e["kind"]) for e in result["edits"]} == {
        ("shop", "schedule"),
        ("connection more", "connection_added"),
        ("more", "pipeline_added"),
    }
    assert {a["pipeline"] for a in result["actions"]} == {"shop", "stock", "more"}
    out = " ".join(shop.cli("--config", str(edited), "plan").out.split())
    assert "edit: shop: schedule" in out
    assert "Takes effect at once" in out


def test_plan_compares_included_files_as_they_were(shop: Shop) -> None:
    file = shop.folder / "config.toml"
    (shop.folder / "more.toml").write_text(MORE)
    file.write_text(file.read_text().replace("\n", '\ninclude = ["more*.toml"]\n', 1))
    (shop.folder / "state").mkdir()
    keep(load(file, {}, secrets=False))
    (shop.folder / "more.toml").unlink()
    edits = shop.cli("plan", "--json").json["edits"]
    assert [(e["subject"], e["kind"]) for e in edits] == [
        ("connection more", "connection_removed"),
        ("more", "pipeline_removed"),
    ]


def test_a_config_that_cannot_be_kept_leaves_no_older_one_to_compare_with(shop: Shop) -> None:
    file = shop.folder / "config.toml"
    (shop.folder / "state").mkdir()
    project = load(file, {}, secrets=False)
    keep(project)
    file.unlink()
    keep(project)
    assert list((shop.folder / "state").iterdir()) == []


def test_plan_without_a_readable_record_of_what_ran_shows_no_edits(shop: Shop) -> None:
    (shop.folder / "state").mkdir()
    for text in ("", "[]", "{}", '{"/nowhere": "project = 1"}', "\x00"):
        (shop.folder / "state" / "config.json").write_text(text)
        result = shop.cli("plan", "--json")
        assert result.code == Exit.GOOD
        assert result.json["edits"] == []


def test_why_names_the_cause_and_one_command(shop: Shop) -> None:
    shop.on(lambda c: c.edit(new_operation_id(), "ann@host", "move", Pause("shop")))
    result = shop.cli("why", "shop")
    assert result.code == Exit.GOOD
    assert "paused by ann@host" in result.out
    assert "Type: reconciler resume shop" in result.out
    record = shop.cli("why", "shop", "--json").json
    assert record["code"] == "paused"
    assert record["command"] == "reconciler resume shop"


def test_why_gives_the_answers_to_a_hold_as_they_are_typed(shop: Shop) -> None:
    shop.on(held)
    named = f"--config {shop.folder}/config.toml"
    out = shop.cli("why", "shop").out
    assert f"  reconciler approve shop.orders {named}\n  reconciler reject" in out


def test_why_counts_open_runs_against_the_limits_of_connections(shop: Shop) -> None:
    async def fill(catalog: Catalog) -> None:
        await claim(catalog, "a")
        await claim(catalog, "b")

    shop.on(fill)
    with shop.daemon_lock():
        record = shop.cli("why", "shop", "--json").json
    assert record["code"] == "connection_full"
    assert "2 of 2" in record["answer"]


def test_why_counts_no_run_whose_holder_stopped(shop: Shop) -> None:
    async def fill(catalog: Catalog) -> None:
        for name in ("a", "b"):
            await claim(catalog, name, ttl=0.01)
            await catalog.edit(new_operation_id(), "ann@host", "", Pause(name))

    shop.on(fill)
    with shop.daemon_lock():
        assert shop.cli("why", "shop", "--json").json["code"] == "tick"


def test_why_says_when_no_daemon_serves_the_project(shop: Shop) -> None:
    assert shop.cli("why", "shop", "--json").json["code"] == "daemon_down"


# -- runs, show, logs ----------------------------------------------------------------------------


def test_runs_are_listed_newest_first_and_can_be_filtered(shop: Shop) -> None:
    shop.on(ran)
    shop.on(failed)
    shop.on(lambda catalog: ran(catalog, "stock"))
    runs = shop.cli("runs", "--json").json
    assert [run["pipeline"] for run in runs] == ["stock", "shop", "shop"]
    assert [run["id"] for run in runs] == sorted((run["id"] for run in runs), reverse=True)
    assert [r["outcome"] for r in shop.cli("runs", "shop", "--json").json] == [
        "failed",
        "succeeded",
    ]
    assert len(shop.cli("runs", "--outcome", "failed", "--json").json) == 1
    assert len(shop.cli("runs", "--limit", "2", "--json").json) == 2
    assert "the source is away" in shop.cli("runs").out


def test_runs_that_match_nothing_are_code_5(shop: Shop) -> None:
    result = shop.cli("runs", "--json")
    assert result.code == Exit.NOTHING
    assert result.json == []
    assert shop.cli("runs", "shop").code == Exit.NOTHING
    assert 'No pipeline is named "shpo"' in shop.cli("runs", "shpo").err


def test_show_takes_a_run_a_pipeline_or_a_stream(shop: Shop) -> None:
    run = shop.on(ran)
    shown = shop.cli("show", str(run.epoch), "--json").json
    assert shown["id"] == run.epoch
    assert shop.cli("show", "shop", "--json").json == shown
    assert "brought rows" in shop.cli("show", "shop").out
    stream = shop.cli("show", "shop.orders", "--json").json
    assert stream["seq"] == 1
    assert stream["cursor"]["position"]["text"] == "10"
    assert stream["commits"][0]["rows"] == 3
    assert "1 committed, 1 published" in shop.cli("show", "shop.orders").out


def test_show_of_a_pipeline_is_of_its_own_last_run(shop: Shop) -> None:
    run = shop.on(ran)
    shop.on(lambda catalog: ran(catalog, "stock"))
    assert shop.cli("show", "shop", "--json").json["id"] == run.epoch


def test_show_of_runs_with_nothing_new_says_how_many_and_since_when(shop: Shop) -> None:
    async def nothing(catalog: Catalog) -> Run:
        return await finish(catalog, await claim(catalog), Outcome.NOTHING_NEW)

    shop.on(nothing)
    assert "since" not in shop.cli("show", "shop").out
    shop.on(nothing)
    shown = shop.cli("show", "shop").out
    assert "2 runs with nothing new" in shown
    assert "since" in shown


def test_show_of_a_stream_is_of_its_own_batches_and_edits(shop: Shop) -> None:
    async def others(catalog: Catalog) -> None:
        claimed = await claim(catalog)
        for at in range(1, 8):
            await commit(catalog, claimed, "others", rows=1_000 + at, at=at)
        await commit(catalog, claimed, rows=77, at=20)
        await finish(catalog, claimed, Outcome.SUCCEEDED)

    shop.on(ran)
    shop.on(others)
    for verb, target in (("refresh", "shop.others"), ("refresh", "shop.orders"), ("pause", "shop")):
        assert shop.cli(verb, target).code == Exit.GOOD
    shown = shop.cli("show", "shop.orders", "--json").json
    assert [batch["rows"] for batch in shown["commits"]] == [77, 3]
    assert [(edit["action"], edit["stream"]) for edit in shown["edits"]] == [
        *(("pause", ""), ("refresh", "orders"))
    ]
    assert len(shop.cli("show", "shop.others", "--json").json["commits"]) == 5


def test_show_of_a_stream_says_which_batch_is_not_yet_published(shop: Shop) -> None:
    shop.on(ran)
    assert "not yet marked" not in shop.cli("show", "shop.orders").out

    async def waits(catalog: Catalog) -> None:
        await commit(catalog, await claim(catalog), at=20)

    shop.on(waits)
    assert "not yet marked" in shop.cli("show", "shop.orders").out


def test_show_of_a_run_under_way_has_no_outcome(shop: Shop) -> None:
    claimed = shop.on(claim)
    assert shop.cli("show", "shop", "--json").json["outcome"] is None
    assert "running" in shop.cli("show", str(claimed.lease.epoch)).out


def test_an_open_run_whose_holder_stopped_is_not_called_running(shop: Shop) -> None:
    claimed = shop.on(lambda catalog: claim(catalog, ttl=-1.0))
    for verb in (["runs"], ["show", str(claimed.lease.epoch)]):
        found = shop.cli(*verb).out
        assert "lapsed" in found
        assert "running" not in found


@pytest.mark.parametrize("what", ["99", "shop", "shop.orders"])
def test_show_of_what_is_not_there_is_code_5(shop: Shop, what: str) -> None:
    assert shop.cli("show", what).code == Exit.NOTHING


def test_logs_prints_what_a_run_printed(shop: Shop) -> None:
    with pytest.raises(FileNotFoundError):
        runlogs.keep(shop.folder / "state", "shop", 1, b"while it is away", str)
    (shop.folder / "state").mkdir()
    for epoch in (3, 20):
        runlogs.keep(shop.folder / "state", "shop", epoch, f"line of {epoch}\n".encode(), str)
    assert shop.cli("logs", "shop").out == "line of 20\n"
    assert shop.cli("logs", "shop", "--run", "3").out == "line of 3\n"
    assert shop.cli("logs", "shop", "--json").json["id"] == 20
    nothing = shop.cli("logs", "shop", "--run", "4")
    assert nothing.code == Exit.NOTHING
    assert "Run 4 of shop printed nothing." in nothing.err
    assert shop.cli("logs", "stock").code == Exit.NOTHING


def test_logs_of_a_renamed_pipeline_go_along_and_are_nobody_elses(shop: Shop) -> None:
    run = shop.on(ran)
    runlogs.keep(shop.folder / "state", "shop", run.epoch, b"by its old name\n", str)
    shop.on(lambda c: c.edit(new_operation_id(), "ann", "", Rename("orders", "shop")))
    for number in ((), ("--run", str(run.epoch))):
        assert shop.cli("logs", "orders", *number).out == "by its old name\n"
        assert shop.cli("logs", "shop", *number).code == Exit.NOTHING


def test_a_name_that_a_pipeline_had_is_told_its_new_one(shop: Shop) -> None:
    shop.on(lambda catalog: ran(catalog, "old"))
    shop.on(lambda c: c.edit(new_operation_id(), "ann", "", Rename("new", "old")))
    with shop.daemon_lock():
        for verb in ("status", "why", "pause", "run", "retry"):
            result = shop.cli(verb, "old")
            assert result.code == Exit.NOTHING
            assert "'new'" in result.err


def test_a_name_that_is_used_again_is_not_told_to_begin_anew(shop: Shop) -> None:
    """As after an edit of the config was taken back: its tables belong to the new name."""
    shop.on(ran)
    shop.on(lambda c: c.edit(new_operation_id(), "ann", "", Rename("orders", "shop")))
    for verb in ("why", "run"):
        result = shop.cli(verb, "shop")
        assert "it is 'orders' now, and `renamed_from` in the config names it back" in (
            result.out + result.err
        )
        assert "reconciler resume shop" not in result.out + result.err
    (shop.folder / "config.toml").write_text(
        CONFIG.replace("[pipelines.shop]", '[pipelines.shop]\nrenamed_from = "orders"')
    )
    back = load(shop.folder / "config.toml", os.environ, secrets=False).pipelines["shop"]
    shop.on(lambda catalog: take_over(catalog, back))
    assert shop.cli("status", "shop", "--json").json["rows"] == 3


# -- leases --------------------------------------------------------------------------------------


def test_leases_shows_who_holds_what(shop: Shop) -> None:
    claimed = shop.on(claim)
    found = shop.cli("leases", "--json").json
    assert [(lease["pipeline"], lease["epoch"]) for lease in found["leases"]] == [
        ("shop", claimed.lease.epoch)
    ]
    assert found["leases"][0]["holder"] == claimed.lease.holder
    assert found["holders"][0]["holder"]["id"] == claimed.lease.holder
    assert claimed.lease.holder in shop.cli("leases").out


def test_leases_with_nothing_held_says_so(shop: Shop) -> None:
    async def run_and_end(catalog: Catalog) -> None:
        await finish(catalog, await claim(catalog), Outcome.NOTHING_NEW)

    shop.on(run_and_end)
    shown = shop.cli("leases").out
    assert "nothing runs now" in shown
    assert shop.cli("leases", "--json").json["leases"] == []
