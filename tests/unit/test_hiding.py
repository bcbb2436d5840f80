"""Secrets are kept out of text, however they came to be written in it (rule 9)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.config.hiding import MIN_SECRET, REDACTED, Hiding

WRITTEN: dict[str, Callable[[str], str]] = {
    "plain": str,
    "percent-encoded": lambda v: quote(v, safe=""),
    "percent-encoded as a path": quote,
    "as a form": quote_plus,
    "in Python": repr,
    "in JSON": json.dumps,
    "in JSON as it is": lambda v: json.dumps(v, ensure_ascii=False),
    "in JSON within JSON": lambda v: json.dumps(json.dumps(v)),
    "in Python within JSON": lambda v: json.dumps(repr(v)),
    "in SQL": lambda v: "'" + v.replace("'", "''") + "'",
    "in base64": lambda v: base64.b64encode(v.encode()).decode(),
    "in base64 for URLs": lambda v: base64.urlsafe_b64encode(v.encode()).decode().rstrip("="),
    "in hexadecimal": lambda v: v.encode().hex(),
}


@pytest.mark.parametrize("how", WRITTEN)
@given(value=st.text(st.characters(exclude_categories=["Cs"]), min_size=MIN_SECRET, max_size=20))
def test_a_secret_is_found_in_every_way_of_writing_it(how: str, value: str) -> None:
    written = WRITTEN[how](value)
    bare = written.strip("\"'\\") if how.startswith("in ") else written
    text = Hiding([value]).redact(f"before <{written}> after")
    assert REDACTED in text
    assert bare == "" or bare in REDACTED or bare not in text


def test_what_is_too_short_is_left() -> None:
    assert Hiding(["abc"]).redact("abc") == "abc"
