"""cursor get|set|adopt|rewind, schema [diff], catalog check and config show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from catalog import position
from catalog.port import Catalog, new_operation_id
from catalog.records import (
    Batch,
    Commit,
    Cursor,
    CursorKind,
    Edit,
    Hold,
    HoldKind,
    Outcome,
    SetCursor,
    StreamState,
)
from catalog.sqlite.backend import SqliteCatalog
from reconciler.cli.failure import Exit
from reconciler.run.mismatch import AGREES
from tests.cli_kit import (
    PROPOSAL,
    Result,
    Shop,
    claim,
    cursor_at,
    finish,
    held,
    held_at_first,
    make_shop,
    ran,
)
from tests.replacing import replace


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    return make_shop(tmp_path, capsys)


def orders(shop: Shop) -> StreamState:
    return shop.on(lambda catalog: catalog.streams("shop"))[0]


# -- cursor --------------------------------------------------------------------------------------


def test_cursor_get_shows_where_it_is(shop: Shop) -> None:
    assert shop.cli("cursor", "get", "shop").code == Exit.NOTHING
    shop.on(ran)
    (record,) = shop.cli("cursor", "get", "shop.orders", "--json").json
    assert record["cursor"]["position"]["text"] == "10"
    assert record["seq"] == 1
    assert "10" in shop.cli("cursor", "get", "shop").out
    shop.on(lambda catalog: put(catalog, cursor_at(3), "more"))
    (record,) = shop.cli("cursor", "get", "shop.more", "--json").json
    assert (record["stream"], record["cursor"]["position"]["text"]) == ("more", "3")
    assert 'No pipeline is named "shpo"' in shop.cli("cursor", "get", "shpo").err


async def put(catalog: Catalog, cursor: Cursor | None, stream: str = "orders") -> None:
    """The stream's cursor is there, as it were."""
    await catalog.edit(new_operation_id(), "ann", "", SetCursor("shop", stream, cursor))


def cursor_of(tag: str, text: str, kind: CursorKind = CursorKind.MONOTONIC) -> Cursor:
    return Cursor(kind, f"updated_at {tag}", position.parse(tag, text))


def test_cursor_set_moves_it_and_says_from_where(shop: Shop) -> None:
    shop.on(ran)
    result = shop.cli("cursor", "set", "shop.orders", "7", "--why", "rows were late")
    assert result.code == Exit.GOOD
    assert "is at 7 now (it was 10)" in result.out
    assert "with mode append they would be there twice" in result.err
    assert orders(shop).cursor == cursor_at(7)
    assert orders(shop).seq == 1


def test_cursor_set_refuses_a_value_of_another_kind(shop: Shop) -> None:
    shop.on(ran)
    result = shop.cli("cursor", "set", "shop.orders", "yesterday")
    assert result.code == Exit.USAGE
    assert "yesterday" in result.err
    assert "updated_at int64" in result.err
    assert orders(shop).cursor == cursor_at(10)


def test_cursor_set_needs_a_cursor_to_know_the_kind_of(shop: Shop) -> None:
    assert shop.cli("cursor", "set", "shop.orders", "7").code == Exit.NOTHING


def test_cursor_set_of_what_was_never_read_says_to_run_it_first(shop: Shop) -> None:
    shop.on(lambda catalog: put(catalog, None))
    result = shop.cli("cursor", "set", "shop.orders", "7")
    assert result.code == Exit.FAILED
    assert "Run it once first: reconciler run shop.orders" in result.err


def test_cursor_set_of_what_counts_reads_says_what_to_do_instead(shop: Shop) -> None:
    counts = cursor_of("int", "4", CursorKind.SNAPSHOT_ID)
    shop.on(lambda catalog: put(catalog, counts))
    result = shop.cli("cursor", "set", "shop.orders", "7")
    assert result.code == Exit.USAGE
    assert "cursor rewind shop.orders --to-batch N" in result.err
    assert orders(shop).cursor == counts


def redefined(tag: str, choice: str = "cursor set") -> Hold:
    new = {"definition": f"changed_at {tag}", "kind": "monotonic", "tag": tag}
    detail = msgspec.json.encode(new).decode()
    return Hold(HoldKind.DEFINITION, "It is another column.", 1, (choice,), detail=detail)


def test_cursor_set_of_another_column_takes_what_that_one_takes(shop: Shop) -> None:
    shop.on(lambda catalog: put(catalog, cursor_of("int", "4", CursorKind.SNAPSHOT_ID)))
    shop.on(lambda catalog: held_at_first(catalog, redefined("date")))
    assert shop.cli("cursor", "set", "shop.orders", "7").code == Exit.USAGE
    assert shop.cli("cursor", "set", "shop.orders", "2026-11-01").code == Exit.GOOD
    new = Cursor(CursorKind.MONOTONIC, "changed_at date", position.parse("date", "2026-11-01"))
    assert orders(shop).cursor == new


@pytest.mark.parametrize(
    "hold", [redefined("date", "refresh"), replace(redefined("date"), kind=HoldKind.NULL_KEY)]
)
def test_cursor_set_of_the_same_column_takes_what_it_took(shop: Shop, hold: Hold) -> None:
    shop.on(lambda catalog: held(catalog, hold))
    assert shop.cli("cursor", "set", "shop.orders", "2026-11-01").code == Exit.USAGE
    assert shop.cli("cursor", "set", "shop.orders", "7").code == Exit.GOOD
    assert orders(shop).cursor == cursor_at(7)


@pytest.mark.parametrize(
    ("now", "new", "code"),
    [
        ("2026-11-01 10:00:00", "2026-10-01 09:30:00", Exit.GOOD),
        ("2026-11-01 10:00:00", "2026-10-01", Exit.GOOD),
        ("2026-11-01", "2026-10-01 09:30", Exit.GOOD),
        ("2026-11-01 10:00:00", "2026-10-01T09:30:00", Exit.USAGE),
        ("2026-11-01 10:00:00", "1.10.2026", Exit.USAGE),
        ("b-17", "a", Exit.GOOD),
    ],
)
def test_a_time_kept_as_text_is_set_as_the_source_writes_it(
    shop: Shop, now: str, new: str, code: Exit
) -> None:
    shop.on(lambda catalog: put(catalog, cursor_of("text", now)))
    assert shop.cli("cursor", "set", "shop.orders", new).code == code
    assert orders(shop).cursor == cursor_of("text", new if code == Exit.GOOD else now)


def test_a_time_of_another_column_is_not_compared_with_this_ones(shop: Shop) -> None:
    shop.on(lambda catalog: put(catalog, cursor_of("text", "2026-11-01 10:00:00")))
    shop.on(lambda catalog: held_at_first(catalog, redefined("text")))
    assert shop.cli("cursor", "set", "shop.orders", "1.10.2026").code == Exit.GOOD


def test_cursor_set_of_what_is_held_before_its_first_run_does_not_say_to_run_it(shop: Shop) -> None:
    shop.on(held_at_first)
    result = shop.cli("cursor", "set", "shop.orders", "7")
    assert result.code == Exit.FAILED
    assert "first answer that: reconciler why shop.orders" in result.err


def test_cursor_adopt_of_what_is_not_held_is_of_a_destination_that_agrees(shop: Shop) -> None:
    shop.on(ran)
    assert shop.cli("cursor", "adopt", "shop.orders").code == Exit.GOOD
    assert (orders(shop).directive, orders(shop).seen) == ("adopt", AGREES)


def test_cursor_adopt_of_a_held_stream_is_of_the_destination_that_the_last_run_saw(
    shop: Shop,
) -> None:
    hold = mismatch(9, cursor_at(4))
    shop.on(lambda catalog: held(catalog, hold))
    result = shop.cli("cursor", "adopt", "shop.orders")
    assert result.code == Exit.GOOD
    assert "those that it has would be there twice" in result.err
    assert (orders(shop).directive, orders(shop).seen) == ("adopt", hold.detail)


def mismatch(seq: int, cursor: Cursor | None, epoch: int = 1) -> Hold:
    detail = msgspec.json.encode({"seq": seq, "epoch": epoch, "cursor": cursor}).decode()
    return Hold(
        HoldKind.DESTINATION,
        "the catalog was restored",
        at=1,
        choices=("cursor rewind --to-destination", "refresh", "cursor adopt"),
        detail=detail,
    )


def test_rewind_to_the_destination_takes_its_seq_and_cursor(shop: Shop) -> None:
    shop.on(lambda catalog: held(catalog, mismatch(9, cursor_at(4))))
    assert "reconciler cursor rewind shop.orders --to-destination" in shop.cli("status", "shop").out
    result = shop.cli("cursor", "rewind", "shop.orders", "--to-destination")
    assert result.code == Exit.GOOD
    after = orders(shop)
    assert (after.seq, after.published, after.cursor) == (9, 9, cursor_at(4))
    assert after.directive == "adopt"
    assert after.seen == mismatch(9, cursor_at(4)).detail
    assert after.hold is None
    assert after.ledger_from == 9


def test_what_a_later_run_than_the_destinations_read_of_files_is_struck_too(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(B4) A catalog that was restored numbers anew what it reads: the run tells them apart."""
    shop.on(lambda catalog: held(catalog, mismatch(9, cursor_at(4), epoch=7)))
    done, actions = SqliteCatalog.edit, list[Any]()

    async def spied(catalog: SqliteCatalog, op: str, by: str, why: str, action: Any) -> Edit:
        actions.append(action)
        return await done(catalog, op, by, why, action)

    monkeypatch.setattr(SqliteCatalog, "edit", spied)
    assert shop.cli("cursor", "rewind", "shop.orders", "--to-destination").code == Exit.GOOD
    assert [(a.forget_after, a.forget_later) for a in actions] == [(9, 7)]


def test_rewind_to_a_destination_without_rows_is_the_beginning(shop: Shop) -> None:
    shop.on(lambda catalog: held(catalog, mismatch(0, None)))
    result = shop.cli("cursor", "rewind", "shop.orders", "--to-destination")
    assert "the beginning" in result.out
    assert orders(shop).cursor is None


def test_what_is_held_for_another_reason_is_not_adopted(shop: Shop) -> None:
    shop.on(held)
    assert shop.cli("cursor", "adopt", "shop.orders").code == Exit.NOTHING
    assert orders(shop).hold == PROPOSAL


def test_rewind_to_a_destination_that_agrees_is_code_5(shop: Shop) -> None:
    shop.on(ran)
    assert shop.cli("cursor", "rewind", "shop.orders", "--to-destination").code == Exit.NOTHING


def test_rewind_to_a_destination_that_is_not_offered_is_code_3(shop: Shop) -> None:
    hold = replace(mismatch(9, cursor_at(4)), choices=("refresh",))
    shop.on(lambda catalog: held(catalog, hold))
    assert shop.cli("cursor", "rewind", "shop.orders", "--to-destination").code == Exit.HELD
    assert orders(shop).hold == hold


def test_rewind_to_a_destination_with_no_marker_is_code_3(shop: Shop) -> None:
    foreign = Hold(HoldKind.DESTINATION, "somebody else's table", 1, ("cursor adopt",))
    shop.on(lambda catalog: held(catalog, foreign))
    result = shop.cli("cursor", "rewind", "shop.orders", "--to-destination")
    assert result.code == Exit.HELD
    assert "somebody else's table" in result.err


def test_rewind_to_an_earlier_batch(shop: Shop) -> None:
    shop.on(ran)
    shop.on(lambda catalog: ran(catalog, at=20))
    assert orders(shop).cursor == cursor_at(20)
    assert shop.cli("cursor", "rewind", "shop.orders", "--to-batch", "1").code == Exit.GOOD
    assert orders(shop).cursor == cursor_at(10)
    assert (orders(shop).seq, orders(shop).ledger_from) == (2, 2), "what came later is struck"
    assert shop.cli("cursor", "rewind", "shop.orders", "--to-batch", "1").code == Exit.GOOD
    assert shop.cli("cursor", "rewind", "shop.orders", "--to-batch", "8").code == Exit.NOTHING


def test_files_are_rewound_no_further_than_it_is_known_which_were_read(shop: Shop) -> None:
    async def reads(catalog: Catalog) -> None:
        claimed = await claim(catalog)
        for number in range(3):
            batch = Batch(
                *("orders", number, "{}"),
                cursor=cursor_of("snapshot", str(number), CursorKind.SNAPSHOT_ID)
                if number
                else None,
            )
            await catalog.commit(new_operation_id(), claimed.lease, [batch], {})
        await finish(catalog, claimed, Outcome.SUCCEEDED)

    def rewinds(batch: int) -> Result:
        return shop.cli("cursor", "rewind", "shop.orders", "--to-batch", str(batch))

    shop.on(reads)
    assert "no batch 1 of shop.orders with a cursor" in rewinds(1).err
    assert rewinds(2).code == Exit.GOOD
    assert orders(shop).ledger_from == 3
    assert rewinds(3).code == Exit.GOOD, "its reading began anew at this one"
    result = rewinds(2)
    assert result.code == Exit.NOTHING
    assert "at batch 3 its reading began anew" in result.err


def test_rewind_to_a_batch_however_long_ago(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in (10, 20, 30):
        shop.on(lambda catalog, at=at: ran(catalog, at=at))
    commits, limits = SqliteCatalog.commits, list[int]()

    async def spied(catalog: SqliteCatalog, *args: Any, limit: int) -> tuple[Commit, ...]:
        limits.append(limit)
        return await commits(catalog, *args, limit=limit)

    monkeypatch.setattr(SqliteCatalog, "commits", spied)
    assert shop.cli("cursor", "rewind", "shop.orders", "--to-batch", "2").code == Exit.GOOD
    assert limits == [2], "as many as there are since, and there may be a million"


@pytest.mark.parametrize("options", [(), ("--to-destination", "--to-batch", "1")])
def test_rewind_wants_one_place(shop: Shop, options: tuple[str, ...]) -> None:
    assert shop.cli("cursor", "rewind", "shop.orders", *options).code == Exit.USAGE


# -- schema --------------------------------------------------------------------------------------


def test_schema_shows_columns_versions_and_decisions(shop: Shop) -> None:
    shop.on(ran)
    shown = shop.cli("schema", "shop.orders")
    assert shown.code == Exit.GOOD
    assert "amount" in shown.out
    record = shop.cli("schema", "shop.orders", "--json").json
    assert [v["version"] for v in record["versions"]] == [1]
    assert record["versions"][0]["body"]["key"] == ["id"]
    assert record["decisions"] == []


def test_schema_diff_shows_what_is_proposed(shop: Shop) -> None:
    shop.on(held)
    shown = shop.cli("schema", "diff", "shop.orders")
    assert "column 'note' (text) is new" in shown.out
    record = shop.cli("schema", "diff", "shop.orders", "--json").json
    assert record["fingerprint"] == PROPOSAL.fingerprint
    assert [(c["kind"], c["column"]) for c in record["changes"]] == [("added", "note")]


def test_schema_diff_where_nothing_changed_is_code_5(shop: Shop) -> None:
    shop.on(ran)
    assert shop.cli("schema", "diff", "shop.orders").code == Exit.NOTHING


@pytest.mark.parametrize("words", [("diff",), ("a.b", "c.d"), ("diff", "a.b", "c.d")])
def test_schema_takes_one_stream(shop: Shop, words: tuple[str, ...]) -> None:
    assert shop.cli("schema", *words).code == Exit.USAGE


# -- upkeep --------------------------------------------------------------------------------------


def test_catalog_check_finds_no_damage_in_a_sound_catalog(shop: Shop) -> None:
    shop.on(ran)
    assert "No damage found." in shop.cli("catalog", "check").out
    record = shop.cli("catalog", "check", "--json").json
    assert record["problems"] == []
    assert record["stats"]["backend"] == "sqlite"


def test_the_catalog_is_opened_with_the_ceiling_that_the_config_gives_it(shop: Shop) -> None:
    shop.on(ran)
    config = shop.folder / "config.toml"
    config.write_text(f'catalog_limit = "20GiB"\n{config.read_text()}')
    stats = shop.cli("catalog", "check", "--json").json["stats"]
    assert stats["limit_bytes"] == 20 * 2**30
    config.write_text(config.read_text().replace("20GiB", "much"))
    result = shop.cli("catalog", "check")
    assert result.code == Exit.USAGE
    assert "catalog_limit" in result.err


def test_config_show_says_where_each_value_comes_from(shop: Shop) -> None:
    assert "shop_db" in shop.cli("config", "show").out
    values = {v["key"]: v for v in shop.cli("config", "show", "shop", "--json").json["values"]}
    assert values["schedule"]["value"] == "every 15m"
    assert values["schedule"]["origin"] == "pipeline"
    assert values["schedule"]["place"]["line"] > 1
    assert values["retries"]["origin"] == "default"
    assert shop.cli("config", "show", "shpo").code == Exit.NOTHING


def test_config_schema_is_a_json_schema(shop: Shop) -> None:
    assert shop.cli("config", "schema").json["$schema"].startswith("https://json-schema.org/")
