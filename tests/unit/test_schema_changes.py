"""What counts as a change of schema, and what is a false alarm."""

from __future__ import annotations

from reconciler.schema.changes import Change, compare, dump_changes, load_changes
from reconciler.schema.model import Field, Schema, fingerprint

ORDERS = Schema(
    (
        Field("id", "int64", nullable=False),
        Field("amount", "decimal(10,2)"),
        Field("tags", "list<text>"),
        Field("extra", "struct<a: int8, b: text>"),
    ),
    ("id",),
)


def orders(*, key: tuple[str, ...] = ("id",), **types: str) -> Schema:
    """The orders with these types changed or added; an empty word drops the column."""
    fields = {f.name: f.type for f in ORDERS.fields} | types
    return Schema(tuple(Field(n, t) for n, t in fields.items() if t), key)


def test_a_fingerprint_is_of_names_types_and_key_whatever_their_order() -> None:
    """(F) A proposal is told from another by it."""
    turned = orders(key=("tags", "id"), extra="struct<b: text, a: int8>")
    turned = Schema(turned.fields[::-1], turned.key)
    assert fingerprint(turned) == fingerprint(orders(key=("id", "tags")))
    others = (
        orders(amount="decimal(10,3)"),
        orders(extra="struct<a: int8, b: json>"),
        orders(key=("id", "tags")),
        orders(more="int8"),
        orders(tags=""),
    )
    assert len({fingerprint(ORDERS), *map(fingerprint, others)}) == 6


def test_nothing_changed() -> None:
    assert compare(ORDERS, ORDERS) == ()


def test_order_and_nullability_are_no_change() -> None:
    turned = Schema(
        tuple(Field(f.name, f.type, not f.nullable) for f in reversed(ORDERS.fields)), ("id",)
    )
    assert compare(ORDERS, turned) == ()


def test_the_order_of_a_structs_fields_is_no_change() -> None:
    assert compare(ORDERS, orders(extra="struct<b: text, a: int8>")) == ()


def test_a_read_that_shows_no_value_is_no_change() -> None:
    shown = orders(amount="null", tags="list<null>", extra="struct<a: null, b: text>")
    assert compare(ORDERS, shown) == ()


def test_whole_numbers_among_floats_are_no_change() -> None:
    assert compare(orders(amount="float64"), orders(amount="int64")) == ()
    (change,) = compare(orders(amount="int64"), orders(amount="float64"))
    assert change.kind == "widened"


def test_each_kind_of_change_is_told_apart() -> None:
    new = orders(
        amount="decimal(12,2)", tags="text", extra="struct<a: int8>", id="", note="text", key=()
    )
    assert compare(ORDERS, new) == (
        Change("dropped", "id", old="int64"),
        Change("widened", "amount", "decimal(10,2)", "decimal(12,2)"),
        Change("retyped", "tags", "list<text>", "text"),
        Change("narrowed", "extra", "struct<a: int8, b: text>", "struct<a: int8>"),
        Change("added", "note", new="text"),
        Change("key_changed", "", "id", ""),
    )


def test_a_rename_is_a_dropped_and_an_added_column() -> None:
    kinds = [c.kind for c in compare(ORDERS, orders(amount="", total="decimal(10,2)"))]
    assert kinds == ["dropped", "added"]


def test_the_order_of_a_key_is_no_change() -> None:
    one = orders(key=("id", "amount"))
    assert compare(one, orders(key=("amount", "id"))) == ()


def test_a_change_reads_as_a_sentence() -> None:
    texts = [str(c) for c in compare(ORDERS, orders(amount="text", tags="", note="date", key=()))]
    assert texts == [
        "column 'amount' retyped from decimal(10,2) to text",
        "column 'tags' (list<text>) is gone",
        "column 'note' (date) is new",
        "the key changed from id to none",
    ]


def test_changes_survive_their_record() -> None:
    changes = compare(ORDERS, orders(amount="text", note="date"))
    assert load_changes(dump_changes(changes)) == changes
    assert load_changes("") == ()
