"""The small grammars: what is read, how it is written again, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.config import locations, words
from reconciler.config.desired import Cron, Every
from reconciler.config.words import Wrong
from reconciler.schema.types import SIMPLE, parse


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("15m", 900),
        ("1h30m", 5400),
        ("90d", 7776000),
        ("500ms", 0.5),
        ("1m5ms", 60.005),
        ("1d1h1m1s1ms", 90061.001),
        ("0s", 0),
    ],
)
def test_a_duration_is_whole_numbers_with_units(text: str, seconds: float) -> None:
    assert words.duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "30", "1.5h", "-1s", "1 h", "30m1h", "1h1h", "1H", "s", "1w", "five minutes", "1s\n"],
)
def test_no_other_duration_is_read(text: str) -> None:
    with pytest.raises(Wrong, match="duration"):
        words.duration(text)


def test_a_duration_of_more_than_a_century_is_refused() -> None:
    with pytest.raises(Wrong, match="hundred years"):
        words.duration("99999999d")


@given(st.integers(min_value=0, max_value=10**11))
def test_a_duration_that_is_written_is_read_again(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert words.duration(words.duration_text(seconds)) == pytest.approx(seconds)


def test_schedules() -> None:
    assert words.schedule("every 15m", None) == Every(900)
    assert words.schedule("0  6 * * mon-fri", "Europe/Berlin") == Cron(
        "0 6 * * mon-fri", "Europe/Berlin"
    )
    assert words.schedule("0 0 29 2 *", None) == Cron("0 0 29 2 *", "UTC")


@pytest.mark.parametrize(
    "text", ["every", "every 50ms", "@daily", "* * * *", "0 0 31 2,4 *", "0 0 31 9 *", "x * * * *"]
)
def test_a_schedule_that_never_fires_or_too_often_is_refused(text: str) -> None:
    with pytest.raises(Wrong):
        words.schedule(text, None)


@pytest.mark.parametrize("text", ["Mars/Base", "Europe", "../UTC", "", "europe/\0"])
def test_a_time_zone_is_an_iana_name(text: str) -> None:
    with pytest.raises(Wrong, match="time zone"):
        words.timezone(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("int64", "int64"),
        ("naive_timestamp", "naive_timestamp"),
        ("decimal( 18 ,2 )", "decimal(18,2)"),
        ("list<decimal(18, 2)>", "list<decimal(18,2)>"),
        ("struct<a: text,b:list<int8>>", "struct<a: text, b: list<int8>>"),
    ],
)
def test_a_type_has_one_spelling(text: str, canonical: str) -> None:
    assert words.type_word(text) == canonical
    assert parse(canonical).word == canonical


@pytest.mark.parametrize("word", sorted(SIMPLE - {"null"}))
def test_every_type_that_schemas_know_can_be_said(word: str) -> None:
    assert words.type_word(word) == word


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "decimal",
        "decimal(0,0)",
        "decimal(5,6)",
        "list<>",
        "struct<a>",
        "struct<a b: text>",
        "int",
    ],
)
def test_no_other_type_is_read(text: str) -> None:
    with pytest.raises(Wrong, match="no type"):
        words.type_word(text)


def test_sizes() -> None:
    assert words.size("10GiB") == 10 * 2**30
    assert words.size("500MB") == 500 * 10**6
    with pytest.raises(Wrong):
        words.size("10")


def test_addresses() -> None:
    assert words.listen("[::1]:8790") == "[::1]:8790"
    for text in ("8790", "localhost:", "localhost:99999", "http://localhost:1", "::1:80"):
        with pytest.raises(Wrong):
            words.listen(text)


def test_partitions() -> None:
    assert words.partition("day( booked_on )") == "day(booked_on)"
    assert words.partition("country") == "country"
    with pytest.raises(Wrong):
        words.partition("hour(x)")


BASE = Path("/etc/reconciler")


def test_a_sqlite_path_is_relative_to_the_file_that_names_it() -> None:
    url = locations.source_url("sqlite:///data/../shop.db", BASE)
    assert url == "sqlite:////etc/reconciler/shop.db"
    assert locations.source_url("sqlite:////var/shop.db", BASE) == "sqlite:////var/shop.db"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://reader@db.internal:5432/shop?sslmode=verify-full",
        "postgresql:///shop",
        "postgresql://reader@a:5432,[::1]:5433,c/shop?target_session_attrs=read-write",
        "postgresql://reader%40corp@db/shop",
    ],
)
def test_a_url_without_a_password_stays_as_it_is(text: str) -> None:
    assert locations.source_url(text, BASE) == text


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://reader:hunter2@db/shop",
        "postgresql://reader:@db/shop",
        "postgresql://reader@db/shop?password=hunter2",
        "postgresql://reader@db/shop?PassWord=hunter2&x=1",
        "postgresql://reader@db/shop?sslpassword=hunter2",
        "postgresql://reader:hunter2#x@db/shop",
        "postgresql://reader:hunter2?x@db/shop",
        "postgresql://reader:hunter2/x@db/shop",
        "postgresql://reader:hunter2,b:5433/shop",
        "postgresql://reader:1/hunter2@db/shop",
        "postgresql://reader:hunter2@[db/shop",
        "postgresql:reader:hunter2@db/shop",
        "sqlite://reader:hunter2@db/shop",
        "oracle://reader:hunter2@db/shop",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(Wrong) as caught:
        locations.source_url(text, BASE)
    error = caught.value
    assert error.secret
    assert "hunter2" not in f"{error!r}{error.allowed}{error.hint}"
    assert error.__cause__ is None


def test_a_cron_field_of_thousands_of_digits_is_no_cron_line() -> None:
    for field in ("9" * 5000, "*/" + "9" * 5000):
        with pytest.raises(Wrong, match="no cron line that ever fires"):
            words.schedule(f"{field} * * * *", None)
