"""What people write: schedules, durations, sizes, names, types, cursor values, command lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.port import Catalog
from tests.bad_input import DAMAGE, NO_SENTENCE, WIDE, Damage, damaged, examples
from tests.cli_kit import Shop, failed, make_shop, ran
from tests.fuzz.targets import SEEDS, TARGETS

FILES = ("config", "csv", "jsonl", "packed", "parquet")  # these have searches of their own
QUICK = [name for name in TARGETS if name not in FILES]


@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzers_begin_with_is_taken_or_refused_in_words(target: str) -> None:
    for seed in SEEDS[target]:
        TARGETS[target](seed)


def inputs(target: str) -> st.SearchStrategy[bytes]:
    seed = st.sampled_from(SEEDS[target])
    text = st.text(max_size=30).map(str.encode)
    return st.one_of(st.builds(damaged, seed, DAMAGE), text, st.binary(max_size=60))


@pytest.mark.parametrize("target", QUICK)
@examples(30)
@given(data=st.data())
def test_any_text_is_taken_or_refused_in_words(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(inputs(target)))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@examples(WIDE)
@given(data=st.data())
def test_texts_searched_widely(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(inputs(target)))


# -- the command line -----------------------------------------------------------------------------

VERBS = [
    *("status", "why", "plan", "runs", "show", "logs", "leases", "pause", "resume", "cancel"),
    *("retry", "approve", "reject", "refresh", "schema", "cursor get", "cursor adopt"),
    *("cursor rewind", "config show", "frobnicate"),
]
ODD = [
    *("", " ", ".", "..", "../../etc/passwd", "shop/../x", "\0", "\ud800", "x" * 300, "-", "--"),
    *("-x", "--json=1", "*", "shop.*", "[", "'; drop table runs;--", "%s", "{0}", "\n", "\x1b[31m"),
    *("0", "-1", "9" * 5000, "\N{SUPERSCRIPT TWO}", "nan", "$(id)", "~", "shop", "shop.orders"),
]


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    shop = make_shop(tmp_path, capsys)

    async def fill(catalog: Catalog) -> None:
        await ran(catalog, at=5)

    shop.on(fill)
    return shop


def says_so(shop: Shop, words: list[str]) -> None:
    found = shop.cli(*words)
    assert found.code in range(6), (words, found)
    assert not any(mark in found.out + found.err for mark in NO_SENTENCE), (words, found)
    assert "\x1b" not in found.out + found.err, (words, found)
    assert found.code == 0 or found.out or found.err, (words, found)


@pytest.mark.parametrize("word", ["\ud800", "9" * 5000, "\N{SUPERSCRIPT TWO}", "\0", "\x1b[31m"])
def test_words_that_no_name_can_be_are_refused(shop: Shop, word: str) -> None:
    for verb in ("show", "logs", "why", "pause", "config show"):
        says_so(shop, [*verb.split(), word])


def test_what_a_server_said_cannot_steer_the_terminal(shop: Shop) -> None:
    async def fail(catalog: Catalog) -> None:
        await failed(catalog, "red \x1b[31m, and over\r what was said\x9b2J")

    shop.on(fail)
    for command in ("why shop", "runs", "show shop", "status", "runs --json"):
        found = shop.cli(*command.split())
        assert not set(found.out + found.err) & {"\x1b", "\r", "\x9b"}, found
    assert found.json[0]["reason"] == "red \x1b[31m, and over\r what was said\x9b2J"


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_any_word_after_any_verb_is_answered(shop: Shop, verb: str) -> None:
    for word in ODD:
        says_so(shop, [*verb.split(), word])
        says_so(shop, [*verb.split(), word, word])


@pytest.mark.parametrize("value", ["9" * 5000, "-1e5", "NaN", "\0", "\n", "", "2026-13-01", "0x10"])
def test_a_cursor_value_of_another_kind_is_refused_and_moves_nothing(
    shop: Shop, value: str
) -> None:
    before = shop.cli("cursor", "get", "shop.orders", "--json").json
    found = shop.cli("cursor", "set", "shop.orders", "--", value)
    assert found.code == 2, found
    assert "cannot be set so" in found.err
    assert shop.cli("cursor", "get", "shop.orders", "--json").json == before


def test_damage_is_of_all_kinds() -> None:
    """The searches rely on it: each kind changes some bytes."""
    kinds: list[Damage] = [
        (kind, 0.5, b"xyz")
        for kind in ("cut", "behead", "flip", "insert", "overwrite", "append", "double")
    ]
    assert len({damaged(b"0123456789", [damage]) for damage in kinds}) == len(kinds)
