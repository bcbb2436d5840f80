"""Damage to bytes, as strategies; and what the tests of bad input ask of a sentence."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

WIDE = int(os.environ.get("RECONCILER_TEST_EXAMPLES", "2000"))
"""Examples of each wide search (``-m slow``)."""
NO_SENTENCE = ("fault of its own", "nobody foresaw", "Traceback", "<class", " object at 0x")
"""What no sentence to a person contains."""
SURPRISES = (
    *(b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b'"', b",", b";", b"\t"),
    *(b"\n", b"\r", b"\n\n", b"\x1a", b"9" * 400, b"[" * 2000, b"{}\n", b"null\n", b"PAR1"),
    b"\x1f\x8b\x08",
)

Damage: TypeAlias = tuple[str, float, bytes]
DAMAGE: st.SearchStrategy[list[Damage]] = st.lists(
    st.tuples(
        st.sampled_from(("cut", "behead", "flip", "insert", "overwrite", "append", "double")),
        st.floats(0, 1, allow_nan=False),
        st.one_of(st.sampled_from(SURPRISES), st.binary(min_size=1, max_size=12)),
    ),
    max_size=4,
)


def damaged(data: bytes, damage: Sequence[Damage]) -> bytes:
    """The bytes after each damage in turn."""
    for kind, share, what in damage:
        at = round(share * len(data))
        match kind:
            case "cut":
                data = data[:at]
            case "behead":
                data = data[at:]
            case "flip":
                flipped = bytes(b ^ 1 << (what[0] & 7) for b in data[at : at + 1])
                data = data[:at] + flipped + data[at + 1 :]
            case "insert":
                data = data[:at] + what + data[at:]
            case "overwrite":
                data = data[:at] + what + data[at + len(what) :]
            case "append":
                data += what
            case _:
                data += data
    return data


def is_plain(sentence: str) -> bool:
    """Whether it is for a person: one line of real text, and nothing of the program's inside."""
    sentence.encode()
    return bool(sentence) and "\n" not in sentence and not any(m in sentence for m in NO_SENTENCE)


def examples(number: int) -> Callable[[Any], Any]:
    """Hypothesis with so many examples, however slow the machine is; as many as ``WIDE``: others
    each time."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    found: Callable[[Any], Any] = settings(
        max_examples=number, derandomize=number < WIDE, suppress_health_check=checks
    )
    return found
