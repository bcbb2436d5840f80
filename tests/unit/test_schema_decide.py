"""How a stream goes on with a changed schema: the policies, and the answers of persons (F)."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from catalog.records import Decision, HoldKind, SchemaVersion
from reconciler.config.desired import SchemaPolicy
from reconciler.schema.answers import ALLOWED
from reconciler.schema.changes import ChangeKind, load_changes
from reconciler.schema.decide import ColumnRule, GoOn, HoldOn, Verdict, decide
from reconciler.schema.model import Field, Schema, fingerprint, load
from reconciler.schema.own import ReservedColumn, with_own
from tests.replacing import replace

NOW = 1_790_000_000 * 10**6


def schema(*key: str, **types: str) -> Schema:
    return Schema(tuple(Field(n, t) for n, t in types.items()), key)


def proposed(
    new: Schema,
    current: SchemaVersion | None = None,
    decisions: tuple[Decision, ...] = (),
    **policy: str,
) -> Verdict:
    return decide("orders", current, new, SchemaPolicy(**policy), decisions, NOW)  # type: ignore[arg-type]


def on(verdict: Verdict) -> GoOn:
    assert isinstance(verdict, GoOn), verdict
    return verdict


def held(verdict: Verdict) -> HoldOn:
    assert isinstance(verdict, HoldOn), verdict
    return verdict


def answered(verdict: Verdict, answer: str, by: str = "ada") -> Decision:
    """As the catalog records a person's answer to a hold."""
    hold = held(verdict).hold
    return Decision(
        "orders",
        hold.from_version,
        hold.fingerprint,
        answer,
        hold.detail,
        by,
        "",  # type: ignore[arg-type]
    )


def types(verdict: Verdict) -> dict[str, str]:
    return {f.name: f.type for f in on(verdict).target.fields}


def rules(verdict: Verdict) -> list[tuple[str, str, str]]:
    return [(r.source, r.target, r.action) for r in on(verdict).columns]


BASE = schema("id", id="int64", amount="int32")
V1 = on(proposed(BASE)).version


def test_the_first_schema_is_version_one() -> None:
    verdict = on(proposed(BASE))
    assert (verdict.version.version, verdict.version.fingerprint) == (1, fingerprint(BASE))
    assert load(verdict.version.body) == verdict.target == BASE
    assert rules(verdict) == [("id", "id", "as_is"), ("amount", "amount", "as_is")]
    assert verdict.decisions == ()


def test_the_same_schema_keeps_its_version_and_needs_no_decision() -> None:
    verdict = on(proposed(BASE, V1))
    assert verdict.version is V1
    assert verdict.decisions == ()


def test_no_column_of_a_table_is_bound_to_have_a_value() -> None:
    strict = Schema((Field("id", "int64", nullable=False),), ("id",))
    assert on(proposed(strict)).target.fields == (Field("id", "int64"),)


# -- policies --------------------------------------------------------------------------------------


def test_an_added_column_is_added() -> None:
    verdict = on(proposed(schema("id", id="int64", note="text", amount="int32"), V1))
    assert verdict.version.version == 2
    assert types(verdict) == {"id": "int64", "amount": "int32", "note": "text"}
    (decision,) = verdict.decisions
    assert (decision.by, decision.answer, decision.from_version) == ("policy", "approved", 1)
    assert decision.why == "column 'note' (text) is new: added = 'add'"


def test_an_added_column_is_ignored() -> None:
    verdict = on(
        proposed(schema("id", id="int64", amount="int32", note="text"), V1, added="ignore")
    )
    assert verdict.version is V1
    assert ("note", "", "ignore") in rules(verdict)
    assert verdict.decisions[0].answer == "rejected"


def test_a_widened_column_is_widened() -> None:
    verdict = proposed(schema("id", id="int64", amount="float64"), V1)
    assert types(verdict)["amount"] == "float64"
    assert on(verdict).version.version == 2


def test_a_dropped_column_stays_and_becomes_null() -> None:
    verdict = on(proposed(schema("id", id="int64"), V1))
    assert verdict.version is V1
    assert types(verdict) == {"id": "int64", "amount": "int32"}
    assert rules(verdict) == [("id", "id", "as_is")]


def test_a_read_of_no_file_says_nothing_of_columns() -> None:
    first = on(proposed(schema("id", id="int64", note="text"))).version
    again = on(proposed(schema("id"), first, dropped="hold"))
    assert again.version == first


def test_a_dropped_column_that_comes_back_goes_on_where_it_was() -> None:
    gone = on(proposed(schema("id", id="int64"), V1))
    more = on(proposed(schema("id", id="int64", more="text"), V1, gone.decisions))
    assert [c.column for d in more.decisions for c in load_changes(d.changes)] == ["more"]
    back = on(proposed(BASE, gone.version, gone.decisions))
    assert back.version is V1
    assert ("amount", "amount", "as_is") in rules(back)


@pytest.mark.parametrize("answer", ["reject", "keep"])
def test_a_narrowed_column_can_keep_its_type(answer: str) -> None:
    verdict = proposed(schema("id", id="int64", amount="int8"), V1, narrowed=answer)
    assert on(verdict).version is V1
    assert on(verdict).decisions[0].answer == "rejected"
    assert ("amount", "amount", "cast") in rules(verdict)


@pytest.mark.parametrize(("kind", "word"), [("widened", "int64"), ("retyped", "text")])
def test_reject_casts_to_the_old_type(kind: str, word: str) -> None:
    verdict = proposed(schema("id", id="int64", amount=word), V1, **{kind: "reject"})
    assert on(verdict).version is V1
    assert ("amount", "amount", "cast") in rules(verdict)


def test_new_column_keeps_values_of_another_type_beside_the_old_ones() -> None:
    verdict = proposed(schema("id", id="int64", amount="decimal(9,2)"), V1, retyped="new_column")
    assert types(verdict) == {
        "id": "int64",
        "amount": "int32",
        "amount__decimal_9_2": "decimal(9,2)",
    }
    assert ("amount", "amount__decimal_9_2", "as_is") in rules(verdict)
    assert on(verdict).version.version == 2


def test_a_column_kept_aside_is_not_taken_for_a_dropped_one() -> None:
    new = schema("id", id="int64", amount="text")
    first = on(proposed(new, V1, retyped="new_column", dropped="hold"))
    again = on(proposed(new, first.version, first.decisions, retyped="new_column", dropped="hold"))
    assert again.version is first.version
    assert rules(again) == [("id", "id", "as_is"), ("amount", "amount__text", "as_is")]
    assert on(proposed(BASE, first.version, dropped="hold")).version is first.version


def test_a_place_beside_that_is_taken_gets_a_number() -> None:
    new = schema("id", id="int64", amount="text", amount__text="date")
    verdict = proposed(new, V1, retyped="new_column")
    assert rules(verdict) == [
        ("id", "id", "as_is"),
        ("amount", "amount__text_2", "as_is"),
        ("amount__text", "amount__text", "as_is"),
    ]


def test_a_place_beside_is_of_one_type_whatever_the_order_of_a_structs_fields() -> None:
    def beside(word: str, current: SchemaVersion) -> GoOn:
        new = schema("id", id="int64", amount=word)
        return on(proposed(new, current, retyped="new_column"))

    first = beside("struct<x: int64, y: text>", V1)
    turned = beside("struct<y: text, x: int64>", first.version)
    assert turned.version is first.version
    assert rules(turned)[1][1] == "amount__struct_x_int64_y_text"

    listed = beside("struct<x: list<int64>>", V1)
    other = beside("struct<x_list: int64>", listed.version)
    assert rules(other)[1][1] == rules(listed)[1][1] + "_2"


@pytest.mark.parametrize("name", ["amount__text", "Amount__TEXT"])
def test_a_place_beside_is_not_a_column_that_the_source_had(name: str) -> None:
    current = on(proposed(schema(amount="int32", **{name: "text"}))).version
    new = schema(amount="text")

    asked = held(proposed(new, current, retyped="new_column", dropped="hold"))
    assert f"{name!r} (text) is gone" in asked.hold.reason

    first = on(proposed(new, current, retyped="new_column"))
    assert rules(first) == [("amount", "amount__text_2", "as_is")]
    decisions = first.decisions
    again = on(proposed(new, first.version, decisions, retyped="new_column", dropped="hold"))
    assert again.version is first.version
    assert rules(again) == rules(first)


def test_a_place_beside_that_the_source_takes_over_is_a_column_of_its_own() -> None:
    current = on(proposed(schema(amount="int32"))).version
    beside = on(proposed(schema(amount="text"), current, retyped="new_column")).version
    theirs = on(proposed(schema(amount="int32", amount__text="text"), beside)).version
    assert "is gone" in held(proposed(schema(amount="int32"), theirs, dropped="hold")).hold.reason


@pytest.mark.parametrize(
    ("new", "column"),
    [
        (schema("id", id="text", amount="int32"), "id"),
        (schema("amount", id="text", amount="int32"), "id"),
        (schema("amount", id="int64", amount="text"), "amount"),
    ],
    ids=["the key", "the old key", "the new key"],
)
def test_a_key_column_is_never_put_beside(new: Schema, column: str) -> None:
    assert f"'{column}' retyped" in held(proposed(new, V1, retyped="new_column")).hold.reason


def test_each_kind_allows_hold_and_its_default() -> None:
    for kind in get_args(ChangeKind):
        if kind != "key_changed":
            assert {"hold", getattr(SchemaPolicy(), kind)} <= set(ALLOWED[kind])


# -- persons ---------------------------------------------------------------------------------------

RETYPED = schema("id", id="int64", amount="text", note="date")
QUESTION = proposed(RETYPED, V1)


def test_a_hold_says_what_changed_and_what_each_answer_does() -> None:
    hold = held(QUESTION).hold
    assert hold.kind is HoldKind.SCHEMA
    assert (hold.from_version, hold.fingerprint) == (1, fingerprint(RETYPED))
    assert hold.choices == ("approve", "reject", "retry")
    assert hold.reason == (
        "Column 'amount' retyped from int32 to text. "
        "approve: 'amount' becomes text, rows already there with it. "
        "reject: 'amount' stays int32; rows whose value does not fit it are set aside with the "
        "reason. retry: looks again, once the source is as it was or the config answers."
    )
    detail = json.loads(hold.detail)
    assert [f["name"] for f in detail["schema"]["fields"]] == ["id", "amount", "note"]
    assert [c.column for c in load_changes(hold.detail)] == ["amount"]


def test_approved_the_column_takes_a_type_that_holds_old_and_new() -> None:
    verdict = on(proposed(RETYPED, V1, (answered(QUESTION, "approved"),)))
    assert verdict.version.version == 2
    assert types(verdict) == {"id": "int64", "amount": "text", "note": "date"}


def test_approved_types_that_do_not_meet_become_text() -> None:
    new = schema("id", id="int64", amount="date")
    question = proposed(new, V1)
    assert "'amount' becomes text, which holds both" in held(question).hold.reason
    verdict = proposed(new, V1, (answered(question, "approved"),))
    assert types(verdict)["amount"] == "text"
    assert ("amount", "amount", "cast") in rules(verdict)


@pytest.mark.parametrize("word", ["date", "int32"])
@pytest.mark.parametrize("policy", ["hold", "new_column"])
def test_both_types_of_an_approved_change_are_let_in_for_good(word: str, policy: str) -> None:
    new = schema("id", id="int64", amount="date")
    decision = answered(proposed(new, V1), "approved")
    settled = on(proposed(new, V1, (decision,)))
    new = schema("id", id="int64", amount=word)
    again = on(proposed(new, settled.version, (decision,), retyped=policy))
    assert again.version is settled.version
    assert ("amount", "amount", "cast") in rules(again)


def test_an_approved_narrowing_keeps_the_wider_type() -> None:
    new = schema("id", id="int64", amount="int8")
    question = proposed(new, V1)
    assert "'amount' stays int32, which holds every int8" in held(question).hold.reason
    assert on(proposed(new, V1, (answered(question, "approved"),))).version is V1


def test_rejected_the_old_type_stays_and_the_policy_decides_the_rest() -> None:
    verdict = proposed(RETYPED, V1, (answered(QUESTION, "rejected"),))
    assert types(verdict) == {"id": "int64", "amount": "int32", "note": "date"}
    assert ("amount", "amount", "cast") in rules(verdict)


def test_rejected_an_added_column_that_was_asked_about_is_ignored() -> None:
    question = proposed(RETYPED, V1, added="hold")
    verdict = proposed(RETYPED, V1, (answered(question, "rejected"),), added="hold")
    assert on(verdict).version is V1
    assert ("note", "", "ignore") in rules(verdict)


def test_an_answer_holds_whatever_the_order_of_a_structs_fields_and_of_the_key() -> None:
    one = "struct<a: int64, b: struct<c: text, d: date>>"
    other = "struct<b: struct<d: date, c: text>, a: int64>"
    asked = schema("id", "amount", id="int64", amount=one)
    turned = schema("amount", "id", id="int64", amount=other)
    assert fingerprint(asked) == fingerprint(turned)
    question = proposed(asked, V1)

    approved = on(proposed(turned, V1, (answered(question, "approved"),)))

    assert approved.target == schema("amount", "id", id="int64", amount="text")
    kept = answered(question, "approved")
    again = schema("id", "amount", id="int64", amount=other)
    assert on(proposed(again, approved.version, (kept,))).version is approved.version


def test_an_answer_to_another_change_does_not_count() -> None:
    moved_on = schema("id", id="int64", amount="date")
    assert held(proposed(moved_on, V1, (answered(QUESTION, "approved"),)))


@pytest.mark.parametrize("answer", ["approved", "rejected"])
def test_the_same_change_in_another_proposal_is_not_asked_about_again(answer: str) -> None:
    grown = schema("id", id="int64", amount="text", note="date", more="int8")
    decision = answered(QUESTION, answer)
    assert "more" in types(proposed(grown, V1, (decision,)))


def test_an_answer_is_to_what_was_asked_and_not_to_what_the_config_answered_then() -> None:
    current = on(proposed(schema(a="int64", b="int64"))).version
    new = schema(a="int32", b="text")
    approval = answered(proposed(new, current, retyped="reject"), "approved")

    verdict = held(proposed(new, current, (approval,), retyped="hold"))

    assert [c.column for c in load_changes(verdict.hold.detail)] == ["b"]


def test_a_damaged_record_of_an_answer_is_none() -> None:
    damaged = replace(answered(QUESTION, "approved"), changes="[{")
    assert held(proposed(RETYPED, V1, (damaged,)))


def test_the_latest_answer_counts() -> None:
    decisions = (answered(QUESTION, "rejected"), answered(QUESTION, "approved"))
    assert types(proposed(RETYPED, V1, decisions))["amount"] == "text"


def test_a_policy_of_the_past_is_no_persons_approval() -> None:
    made = on(proposed(RETYPED, V1, retyped="reject")).decisions
    assert held(proposed(RETYPED, V1, made))


def test_a_policy_that_answers_in_another_way_is_on_record_again() -> None:
    first = on(proposed(RETYPED, V1, retyped="reject", added="ignore"))
    assert first.version == V1
    again = on(proposed(RETYPED, V1, first.decisions, retyped="reject", added="ignore"))
    assert again.decisions == ()
    (other,) = on(proposed(RETYPED, V1, first.decisions, retyped="new_column")).decisions
    assert "retyped = 'new_column'" in other.why


def test_a_policy_that_answers_comes_before_an_older_answer() -> None:
    rejected = (answered(QUESTION, "rejected"),)
    verdict = proposed(RETYPED, V1, rejected, retyped="new_column")
    assert "amount__text" in types(verdict)


def test_what_the_config_answers_is_recorded_once_and_again_when_it_answers_otherwise() -> None:
    """(Rule 8) The new version has the decision that led to it."""
    new = schema("id", id="int64", amount="text", note="text")
    ignored = on(proposed(new, V1, added="ignore", retyped="reject")).decisions
    assert on(proposed(new, V1, ignored, added="ignore", retyped="reject")).decisions == ()

    (added,) = on(proposed(new, V1, ignored, added="add", retyped="reject")).decisions

    assert (added.answer, added.why) == ("approved", "column 'note' (text) is new: added = 'add'")
    assert [c.column for c in load_changes(added.changes)] == ["note"]
    both = (*ignored, added)
    (mixed,) = on(proposed(new, V1, added="add", retyped="reject")).decisions
    assert mixed.answer == "approved"
    (back,) = on(proposed(new, V1, both, added="ignore", retyped="reject")).decisions
    assert (back.answer, back.why) == (
        "rejected",
        "column 'note' (text) is new: added = 'ignore'",
    )


def test_a_type_that_was_rejected_is_not_let_in() -> None:
    new = schema("id", id="int64", amount="int8")
    rejected = (answered(proposed(new, V1), "rejected"),)
    assert on(proposed(new, V1, rejected)).version is V1
    assert "amount__int8" in types(proposed(new, V1, rejected, narrowed="new_column"))


@pytest.mark.parametrize("answer", ["approved", "rejected"])
def test_a_dropped_column_is_asked_about_once(answer: str) -> None:
    new = schema("id", id="int64")
    question = proposed(new, V1, dropped="hold")
    decisions = (answered(question, answer),)
    assert on(proposed(new, V1, decisions, dropped="hold")).version is V1
    grown = on(proposed(schema("id", id="int64", more="text"), V1, decisions, dropped="hold"))
    assert types(grown) == {"id": "int64", "amount": "int32", "more": "text"}
    later = schema("id", id="int64", more="text", again="text")
    assert on(proposed(later, grown.version, decisions, dropped="hold"))


# -- keys ------------------------------------------------------------------------------------------


def test_a_changed_key_is_always_held() -> None:
    new = schema("id", "amount", id="int64", amount="int32")
    question = proposed(new, V1)
    assert held(question).hold.choices == ("approve", "reject", "retry")
    assert "The key changed from id to id, amount." in held(question).hold.reason
    approved = on(proposed(new, V1, (answered(question, "approved"),)))
    assert (approved.target.key, approved.version.version) == (("id", "amount"), 2)
    rejected = on(proposed(new, V1, (answered(question, "rejected"),)))
    assert (rejected.target.key, rejected.version) == (("id",), V1)


def test_an_approved_key_brings_its_new_column_that_the_config_ignores() -> None:
    new = schema("id", "region", id="int64", amount="int32", region="text", note="text")
    approval = answered(proposed(new, V1, added="ignore"), "approved")

    verdict = on(proposed(new, V1, (approval,), added="ignore"))

    assert verdict.target.key == ("id", "region")
    assert types(verdict) == {"id": "int64", "amount": "int32", "region": "text"}


def test_a_key_whose_column_is_gone_cannot_be_rejected() -> None:
    new = schema("code", code="text", amount="int32")
    question = proposed(new, V1)
    assert held(question).hold.choices == ("approve", "retry")
    assert held(proposed(new, V1, (answered(question, "rejected"),)))
    assert on(proposed(new, V1, (answered(question, "approved"),))).target.key == ("code",)


def test_a_key_where_there_was_none_cannot_be_rejected() -> None:
    """What is merged from now on would have nothing to be told apart by, in each run anew."""
    without = on(proposed(Schema(BASE.fields, ()))).version
    question = proposed(BASE, without)
    assert held(question).hold.choices == ("approve", "retry")
    assert held(proposed(BASE, without, (answered(question, "rejected"),)))
    assert on(proposed(BASE, without, (answered(question, "approved"),))).target.key == ("id",)


@pytest.mark.parametrize("answer", ALLOWED["widened"])
def test_the_first_value_of_a_column_gives_it_its_type(answer: str) -> None:
    empty = on(proposed(schema("id", id="int64", x="null", l="list<null>"))).version
    verdict = on(
        proposed(schema("id", id="int64", x="int64", l="list<text>"), empty, widened=answer)
    )
    assert types(verdict) == {"id": "int64", "x": "int64", "l": "list<text>"}
    (decision,) = verdict.decisions
    assert decision.answer == "approved"
    assert "no value had shown its type before" in decision.why


def test_a_column_whose_name_changes_its_case_is_the_same_column() -> None:
    verdict = on(proposed(schema("ID", ID="int64", Amount="int32", Note="text"), V1))
    assert verdict.target == schema("id", id="int64", amount="int32", Note="text")
    assert verdict.columns == (
        ColumnRule("ID", "id", "as_is"),
        ColumnRule("Amount", "amount", "as_is"),
        ColumnRule("Note", "Note", "as_is"),
    )
    question = proposed(schema("ID", ID="int64", Amount="text"), V1)
    answer = answered(question, "approved")
    approved = on(proposed(schema("id", id="int64", AMOUNT="text"), V1, (answer,)))
    assert types(approved) == {"id": "int64", "amount": "text"}


# -- proposals that nobody can accept --------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (schema(id="int64", _run_id="text"), "a column named '_run_id'"),
        (schema(_Loaded_At="text", _BATCH_ID="int8"), "columns named '_Loaded_At', '_BATCH_ID'"),
        (schema(id="int64", ID="int64"), "'id' and 'ID' differ in case alone"),
        (schema("code", id="int64"), "key column 'code' is not among the source's columns (id)"),
        (schema(id="number"), "column 'id': type 'number' is not understood"),
    ],
)
@pytest.mark.parametrize("current", [None, V1])
def test_a_schema_no_table_can_have_is_held_with_what_to_do(
    current: SchemaVersion | None, new: Schema, words: str
) -> None:
    hold = held(proposed(new, current)).hold
    assert words in hold.reason
    assert hold.choices == ("retry",)


def test_our_own_columns_stand_at_the_end_and_are_no_part_of_the_schema() -> None:
    fields = with_own(BASE).fields
    assert [f.name for f in fields] == ["id", "amount", "_run_id", "_batch_id", "_loaded_at"]
    assert [f.type for f in fields[2:]] == ["int64", "int64", "timestamp"]
    with pytest.raises(ReservedColumn, match="give it another name with a `query`"):
        with_own(schema(_run_id="int64"))


def test_a_rule_for_each_column_of_the_source() -> None:
    verdict = on(proposed(RETYPED, V1, retyped="reject"))
    assert [rule.source for rule in verdict.columns] == ["id", "amount", "note"]
    assert all(isinstance(rule, ColumnRule) for rule in verdict.columns)
