"""Type words: reading them, and which holds which."""

from __future__ import annotations

import pytest

from reconciler.schema.types import (
    SIMPLE,
    BadType,
    common,
    holds,
    parse,
    same,
    struct_word,
)


@pytest.mark.parametrize(
    "word",
    [
        *sorted(SIMPLE),
        "decimal(18,2)",
        "list<int64>",
        "list<list<decimal(3,3)>>",
        "struct<a: int64, b: list<struct<c: text>>>",
        'struct<"a, b>": int64, "says \\"hi\\"": text>',
        "struct<größe: text>",
        "struct<>",
    ],
)
def test_a_word_reads_back_as_itself(word: str) -> None:
    assert parse(word).word == word


def test_a_struct_quotes_names_that_are_not_plain() -> None:
    assert struct_word([("a", "int8"), ("b: c", "text")]) == 'struct<a: int8, "b: c": text>'


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("", "a type is missing at character 1"),
        ("number", "there is no type 'number'"),
        ("int64 x", "'x' is left over"),
        ("list<int64", "'>' is missing at character 11"),
        ("list", "'<' is missing"),
        ("decimal", "there is no type 'decimal'"),
        ("decimal(3,4)", "a scale of at most that"),
        ("decimal(39,0)", "a precision of 1 to 38"),
        ("struct<a int64>", "':' is missing"),
        ("struct<a: int64 b: text>", "',' is missing"),
        ("struct<a: int8, a: int8>", "two fields 'a'"),
        ("struct<1: int8>", "a field's name is missing"),
    ],
)
def test_a_word_that_is_none_is_refused_with_words(word: str, why: str) -> None:
    with pytest.raises(BadType, match="allowed are") as caught:
        parse(word)
    assert why in str(caught.value)


WIDENINGS = [
    ("int8", "int16"),
    ("int16", "int32"),
    ("int32", "int64"),
    ("uint8", "uint64"),
    ("uint8", "int16"),
    ("uint32", "int64"),
    ("int8", "float64"),
    ("int64", "float64"),
    ("uint64", "float64"),
    ("int16", "float32"),
    ("float32", "float64"),
    ("decimal(10,2)", "decimal(12,2)"),
    ("decimal(10,2)", "decimal(12,4)"),
    ("int32", "decimal(10,0)"),
    ("int64", "decimal(21,2)"),
    ("uint64", "decimal(20,0)"),
    ("null", "text"),
    ("null", "list<int64>"),
    ("list<int8>", "list<int64>"),
    ("list<null>", "list<text>"),
    ("struct<a: int8>", "struct<a: int16>"),
    ("struct<a: int8>", "struct<b: text, a: int8>"),
]


@pytest.mark.parametrize(("old", "new"), WIDENINGS)
def test_a_type_that_holds_all_of_the_old_is_a_widening(old: str, new: str) -> None:
    assert holds(parse(new), parse(old))
    assert not holds(parse(old), parse(new))
    assert common(old, new) == common(new, old) == new


RETYPES = [
    ("int64", "text"),
    ("text", "int64"),
    ("int8", "uint64"),
    ("int64", "uint64"),
    ("int32", "float32"),
    ("float64", "decimal(38,10)"),
    ("decimal(10,2)", "decimal(10,3)"),
    ("int64", "decimal(20,2)"),
    ("int32", "decimal(9,0)"),
    ("uint32", "decimal(9,0)"),
    ("uint64", "decimal(19,0)"),
    ("date", "timestamp"),
    ("timestamp", "naive_timestamp"),
    ("bool", "int8"),
    ("json", "text"),
    ("uuid", "text"),
    ("list<int64>", "int64"),
    ("list<int64>", "list<text>"),
    ("struct<a: int8, b: text>", "struct<a: int16>"),
]


@pytest.mark.parametrize(("old", "new"), RETYPES)
def test_anything_else_is_another_type(old: str, new: str) -> None:
    assert not holds(parse(new), parse(old))
    assert not holds(parse(old), parse(new))
    assert common(old, new) == "text"


def test_a_date_and_a_naive_timestamp_meet_without_a_zone() -> None:
    assert common("date", "naive_timestamp") == "naive_timestamp"
    assert common("naive_timestamp", "date") == "naive_timestamp"


def test_the_order_of_a_structs_fields_means_nothing() -> None:
    assert same("struct<a: int8, b: text>", "struct<b: text, a: int8>")
    assert not same("struct<a: int8>", "struct<a: int16>")


def test_a_struct_that_grows_keeps_the_types_it_shows_no_value_for() -> None:
    assert common("struct<y: date>", "struct<x: text, y: null>") == "struct<x: text, y: date>"
