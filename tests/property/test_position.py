"""Cursor positions: bytes order as values do, equal values have equal bytes (C4)."""

from __future__ import annotations

import contextlib
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from catalog.position import MAX_INT_DIGITS, TAGS, BadPosition, decode, encode, parse
from catalog.records import Position

_LARGEST = 10**MAX_INT_DIGITS - 1
_DECIMALS = st.decimals(allow_nan=False, allow_infinity=False) | st.builds(
    lambda digits, exponent: Decimal((digits < 0, tuple(map(int, str(abs(digits)))), exponent)),
    st.integers(-(10**12), 10**12),
    st.integers(-20, 20),
)
_MICROS = st.integers(-(2**63), 2**63 - 1) | st.integers(-(10**16), 10**16)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-_LARGEST, _LARGEST) | st.integers(-70_000, 70_000),
    "decimal": _DECIMALS,
    "timestamp": _MICROS,
    "naive_timestamp": _MICROS,
    "date": st.dates(),
    "uuid": st.uuids(),
    "text": st.text(),
    "token": st.text(),
    "snapshot": st.integers(0, 2**64),
}
PAIRS = st.sampled_from(TAGS).flatmap(lambda tag: st.tuples(st.just(tag), VALUES[tag], VALUES[tag]))


def order(tag: str, value: Any) -> Any:
    """What defines the order: UTF-8 bytes for text (COLLATE "C"), itself otherwise."""
    return value.encode() if isinstance(value, str) else value


@settings(max_examples=500, deadline=None)
@given(PAIRS)
@example(("decimal", Decimal("1.0"), Decimal("1.00")))
@example(("decimal", Decimal("-0"), Decimal("0E+5")))
@example(("decimal", Decimal("-1.2"), Decimal("-1.23")))
@example(("int", -256, -255))
@example(("int", -1, 0))
@example(("text", "\uffff", "\U00010000"))
def test_bytes_order_as_values_do_and_equal_values_are_equal_bytes(
    pair: tuple[str, Any, Any],
) -> None:
    tag, one, other = pair
    first, second = encode(tag, one), encode(tag, other)
    assert (first.data < second.data) == (order(tag, one) < order(tag, other))
    assert (first.data == second.data) == (one == other)
    assert (first.text == second.text) == (one == other)


@settings(max_examples=300, deadline=None)
@given(PAIRS)
def test_a_value_survives_the_round_trip(pair: tuple[str, Any, Any]) -> None:
    tag, value, _ = pair
    position = encode(tag, value)
    assert decode(position) == value
    assert encode(tag, decode(position)) == position


@given(st.sampled_from(TAGS), st.binary(max_size=12))
def test_foreign_bytes_are_a_value_or_a_sentence_never_a_crash(tag: str, data: bytes) -> None:
    with contextlib.suppress(BadPosition):
        decode(Position(tag, data, ""))


@pytest.mark.parametrize(
    ("tag", "value", "says"),
    [
        ("int", 1.5, "float"),
        ("int", True, "bool"),
        ("int", 10**40, "40 digits"),
        ("decimal", Decimal("NaN"), "finite"),
        ("decimal", Decimal("Infinity"), "finite"),
        ("timestamp", 2**63, "64 bits"),
        ("timestamp", datetime(2026, 1, 1, tzinfo=UTC), "datetime"),
        ("date", datetime(2026, 1, 1, tzinfo=UTC), "datetime"),
        ("text", "\ud800", "surrogate"),
        ("float", 1.5, "no cursor has tag 'float'"),
    ],
)
def test_a_value_that_has_no_position_is_refused_with_a_sentence(
    tag: str, value: Any, says: str
) -> None:
    with pytest.raises(BadPosition, match=says):
        encode(tag, value)


@pytest.mark.parametrize(
    ("tag", "value", "text"),
    [
        ("int", -42, "-42"),
        ("decimal", Decimal("1200.50"), "1200.5"),
        ("decimal", Decimal("1E+3"), "1000"),
        ("decimal", Decimal("-0.00"), "0"),
        ("decimal", Decimal("1E+59"), "1" + "0" * 59),
        ("decimal", Decimal("1E+60"), "1E+60"),
        ("timestamp", 1_767_323_045_000_000, "2026-01-02 03:04:05Z"),
        ("naive_timestamp", 1_767_323_045_000_006, "2026-01-02 03:04:05.000006"),
        ("date", date(2026, 1, 2), "2026-01-02"),
        ("uuid", UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("text", "Ünï", "Ünï"),
        ("snapshot", 7, "7"),
    ],
)
def test_the_text_is_for_people_and_parses(tag: str, value: Any, text: str) -> None:
    assert encode(tag, value).text == text
    assert parse(tag, text) == encode(tag, value)


@pytest.mark.parametrize(
    ("tag", "value", "data"),
    [
        ("int", 0, "80"),
        ("int", 255, "81ff"),
        ("int", 256, "820100"),
        ("int", -255, "7f00"),
        ("int", -256, "7efeff"),
        ("snapshot", 128, "8180"),
        ("decimal", Decimal(0), "80"),
        ("decimal", Decimal("1200.50"), "818000000000000004" + "3132303035"),
        ("decimal", Decimal("-0.012"), "7f8000000000000000" + "cecd" + "ff"),
        ("timestamp", -1, "7fffffffffffffff"),
        ("naive_timestamp", 256, "8000000000000100"),
        ("date", date(2026, 1, 2), "000b4922"),
        ("uuid", UUID(int=258), "00000000000000000000000000000102"),
        ("text", "Ü", "c39c"),
        ("token", "a", "61"),
    ],
)
def test_a_position_has_the_bytes_that_catalogs_have_of_it(tag: str, value: Any, data: str) -> None:
    """They are stored: another version of this program must find itself in them."""
    assert encode(tag, value).data.hex() == data
    assert decode(Position(tag, bytes.fromhex(data), "")) == value


@pytest.mark.parametrize(
    ("tag", "data", "says"),
    [
        ("int", "82ff", "the stored cursor '82ff' is no int: its length is wrong"),
        ("decimal", "7b01", "the stored cursor '7b01' is no decimal: its first byte is wrong"),
        ("decimal", "8001", "the stored cursor '8001' is no decimal: its first byte is wrong"),
        ("date", "01", "the stored cursor '01' is no date: it has 1 bytes instead of 4"),
        ("timestamp", "", "the stored cursor '' is no timestamp: it has 0 bytes instead of 8"),
        ("text", "ff", "the stored cursor 'ff' is no text: .*utf-8"),
    ],
)
def test_damaged_bytes_are_named_with_what_is_wrong(tag: str, data: str, says: str) -> None:
    with pytest.raises(BadPosition, match=says):
        decode(Position(tag, bytes.fromhex(data), ""))


def test_a_time_beyond_the_calendar_is_shown_in_microseconds() -> None:
    assert encode("timestamp", 2**62).text == "4611686018427387904 us Z"


def test_a_time_is_parsed_with_its_own_offset() -> None:
    assert parse("timestamp", "2026-01-02T04:04:05+01:00").text == "2026-01-02 03:04:05Z"


@pytest.mark.parametrize(
    ("tag", "text", "says"),
    [
        ("int", "12x", "like 42"),
        ("decimal", "twelve", "like 12.5"),
        ("timestamp", "2026-01-02 03:04:05", "no time zone"),
        ("naive_timestamp", "2026-01-02 03:04:05Z", "has a time zone"),
        ("date", "2026-13-01", "like 2026-01-31"),
        ("uuid", "abc", "like 123e4567"),
    ],
)
def test_a_text_that_is_no_position_is_refused_with_an_example(
    tag: str, text: str, says: str
) -> None:
    with pytest.raises(BadPosition, match=says):
        parse(tag, text)
