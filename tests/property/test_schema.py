"""Laws of schema changes, whatever the schemas."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from catalog.records import Decision, SchemaVersion
from reconciler.config.desired import SchemaPolicy
from reconciler.schema.answers import ALLOWED
from reconciler.schema.changes import compare
from reconciler.schema.decide import GoOn, HoldOn, decide
from reconciler.schema.model import Field, Schema, dump, fingerprint, load
from reconciler.schema.types import SIMPLE, Type, common, holds, parse

NAMES = ("id", "a", "b", "c", "d")

words: st.SearchStrategy[str] = st.recursive(
    st.one_of(
        st.sampled_from(sorted(SIMPLE)),
        st.integers(1, 38).flatmap(
            lambda p: st.integers(0, p).map(lambda s: Type("decimal", p, s).word)
        ),
    ),
    lambda inner: st.one_of(
        inner.map(lambda w: f"list<{w}>"),
        st.dictionaries(st.sampled_from(["x", "y", "z z"]), inner, max_size=3).map(
            lambda d: Type("struct", fields=tuple((n, parse(w)) for n, w in d.items())).word
        ),
    ),
    max_leaves=4,
)


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    fields = tuple(Field(n, draw(words), draw(st.booleans())) for n in names)
    keyed = "id" in names and draw(st.booleans())
    return Schema(fields, ("id",) if keyed else ())


@st.composite
def policies(draw: st.DrawFn) -> SchemaPolicy:
    return SchemaPolicy(
        **{kind: draw(st.sampled_from(answers)) for kind, answers in ALLOWED.items()}
    )


def first(schema: Schema) -> SchemaVersion:
    verdict = decide("s", None, schema, SchemaPolicy(), (), 1)
    assert isinstance(verdict, GoOn)
    return verdict.version


def approve(verdict: HoldOn) -> Decision:
    hold = verdict.hold
    return Decision("s", hold.from_version, hold.fingerprint, "approved", hold.detail, "ada", "")


def settle(
    current: SchemaVersion, new: Schema, policy: SchemaPolicy
) -> tuple[GoOn, tuple[Decision, ...]]:
    """Propose; approve what is asked; go on."""
    verdict = decide("s", current, new, policy, (), 2)
    decisions: tuple[Decision, ...] = ()
    if isinstance(verdict, HoldOn):
        decisions = (approve(verdict),)
        verdict = decide("s", current, new, policy, decisions, 2)
    assert isinstance(verdict, GoOn)
    return verdict, decisions + verdict.decisions


@given(words, words, words)
def test_holding_is_an_order(a: str, b: str, c: str) -> None:
    one, two, three = parse(a), parse(b), parse(c)
    assert holds(one, one)
    if holds(one, two) and holds(two, three):
        assert holds(one, three)


@given(words, words)
def test_the_common_type_never_loses_what_is_there(old: str, new: str) -> None:
    meeting = common(old, new)
    assert meeting in ("text", "naive_timestamp") or (
        holds(parse(meeting), parse(old)) and holds(parse(meeting), parse(new))
    )


@given(schemas())
def test_an_equal_schema_never_changes_the_version(schema: Schema) -> None:
    current = first(schema)
    verdict = decide("s", current, schema, SchemaPolicy(), (), 2)
    assert isinstance(verdict, GoOn)
    assert verdict.version is current
    assert verdict.decisions == ()


@given(schemas(), st.randoms())
def test_order_and_nullability_never_alarm(schema: Schema, random: Random) -> None:
    turned = list(schema.fields)
    random.shuffle(turned)
    other = Schema(tuple(replace(f, nullable=not f.nullable) for f in turned), schema.key)
    assert fingerprint(other) == fingerprint(schema)
    assert compare(schema, other) == ()
    all_held = SchemaPolicy("hold", "hold", "hold", "hold", "hold")
    verdict = decide("s", first(schema), other, all_held, (), 2)
    assert isinstance(verdict, GoOn)


@given(schemas())
def test_a_fingerprint_survives_its_record(schema: Schema) -> None:
    assert load(dump(schema)) == schema
    assert fingerprint(load(dump(schema))) == fingerprint(schema)


@given(schemas(), schemas())
def test_no_difference_means_types_that_hold_each_others_values(old: Schema, new: Schema) -> None:
    if compare(old, new) == ():
        for field in new.fields:
            known = old.field(field.name)
            assert known is not None
            assert holds(parse(known.type), parse(field.type))


@given(schemas(), schemas(), policies())
def test_an_answered_proposal_proposed_again_keeps_its_version(
    old: Schema, new: Schema, policy: SchemaPolicy
) -> None:
    settled, decisions = settle(first(old), new, policy)
    again = decide("s", settled.version, new, policy, decisions, 3)
    assert isinstance(again, GoOn)
    assert again.version is settled.version
    assert again.columns == settled.columns
    third = decide("s", settled.version, new, policy, decisions + again.decisions, 4)
    assert isinstance(third, GoOn)
    assert third.decisions == ()


@given(schemas(), schemas(), policies())
def test_what_the_table_has_always_fits_it(old: Schema, new: Schema, policy: SchemaPolicy) -> None:
    settled, _ = settle(first(old), new, policy)
    for field in old.fields:
        kept = settled.target.field(field.name)
        assert kept is not None
        assert kept.type == common(field.type, kept.type)


@given(schemas(), schemas())
def test_added_and_widened_columns_take_every_row(old: Schema, new: Schema) -> None:
    settled, _ = settle(first(old), new, SchemaPolicy())
    rules = {rule.source: rule for rule in settled.columns}
    for change in compare(old, new):
        if change.kind in ("added", "widened"):
            target = settled.target.field(rules[change.column].target)
            assert target is not None
            assert holds(parse(target.type), parse(change.new))


@given(schemas(), schemas(), policies())
def test_every_column_has_one_rule_and_no_two_share_a_target(
    old: Schema, new: Schema, policy: SchemaPolicy
) -> None:
    settled, _ = settle(first(old), new, policy)
    assert [rule.source for rule in settled.columns] == [f.name for f in new.fields]
    targets = [rule.target for rule in settled.columns if rule.action != "ignore"]
    assert len(set(targets)) == len(targets)
    for rule in settled.columns:
        field = settled.target.field(rule.target)
        if rule.action == "as_is":
            source = new.field(rule.source)
            assert field is not None
            assert source is not None
            assert field.type == source.type


@given(schemas(), schemas(), policies())
def test_a_source_that_changes_its_mind_is_not_asked_about_for_ever(
    old: Schema, new: Schema, policy: SchemaPolicy
) -> None:
    version, decisions = first(old), ()
    for proposed in (new, old, new, old):
        verdict = decide("s", version, proposed, policy, decisions, 2)
        if isinstance(verdict, HoldOn):
            decisions = (*decisions, approve(verdict))
            verdict = decide("s", version, proposed, policy, decisions, 2)
        assert isinstance(verdict, GoOn)
        version, decisions = verdict.version, decisions + verdict.decisions
    kinds = {change.kind for change in compare(old, new)}
    for proposed in (new, old, new):
        verdict = decide("s", version, proposed, policy, decisions, 3)
        assert isinstance(verdict, GoOn) or "key_changed" in kinds
        if isinstance(verdict, HoldOn):
            break
        assert verdict.version is version or "key_changed" in kinds
