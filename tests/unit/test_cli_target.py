"""The grammar of targets, and the nearest right word."""

from __future__ import annotations

import shlex

import pytest

from reconciler.cli.failure import Exit, Failure
from reconciler.cli.target import Target, parse, parse_pipeline, parse_stream, unmatched


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("shop", Target("shop")),
        ("shop.orders", Target("shop", "orders")),
        ("shop.public.orders", Target("shop", "public.orders")),
        ("shop.a b.c", Target("shop", "a b.c")),
    ],
)
def test_a_target_is_split_at_its_first_dot(text: str, target: Target) -> None:
    assert parse(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text", ["shop", "shop.public.orders", "shop.Order Items; ls", "shop.it's"]
)
def test_a_target_is_told_as_a_shell_takes_it(text: str) -> None:
    assert shlex.split(f"run {parse(text).typed}") == ["run", text]


@pytest.mark.parametrize("text", ["", ".orders", "shop.", "."])
def test_half_a_target_is_a_usage_error(text: str) -> None:
    with pytest.raises(Failure) as caught:
        parse(text)
    assert caught.value.code == Exit.USAGE


def test_a_verb_for_pipelines_refuses_a_stream_and_says_what_to_write() -> None:
    with pytest.raises(Failure, match="whole pipeline") as caught:
        parse_pipeline("shop.public.orders")
    assert caught.value.code == Exit.USAGE
    assert caught.value.hint == "Write shop."


def test_a_verb_for_streams_names_the_streams_there_are() -> None:
    with pytest.raises(Failure) as caught:
        parse_stream("shop", ["public.orders", "public.items"])
    assert caught.value.hint == "Write shop.public.orders or shop.public.items."


@pytest.mark.parametrize(
    ("word", "known", "close"),
    [
        ("shpo", {"shop", "stock"}, "shop"),
        ("SHOP", {"shop", "stock"}, "shop"),
        ("orders", {"public.orders", "public.items"}, "public.orders"),
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one(word: str, known: set[str], close: str) -> None:
    failure = unmatched("pipeline", word, known)
    assert failure.code == Exit.NOTHING
    assert failure.hint == f'Did you mean "{close}"?'


def test_a_name_like_no_other_gets_what_there_is() -> None:
    assert unmatched("pipeline", "zzz", {"shop", "stock"}).hint == "There is: shop, stock."
