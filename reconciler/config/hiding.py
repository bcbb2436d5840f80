"""Text without secrets (rule 9): the ways in which a secret comes to be written, and their removal.

The last line of defence and no licence: a secret that nobody named, or one shorter than
``MIN_SECRET`` characters, is not found.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus

MIN_SECRET: Final = 4
"""Characters; shorter values are left: they would be found in half of all ordinary text."""
REDACTED: Final = "[secret]"


def forms(value: str) -> frozenset[str]:
    """How ``value`` may be written: plain, percent-encoded, escaped, in base64 and in hexadecimal.
    Empty for one that is too short.
    """
    if len(value) < MIN_SECRET:
        return frozenset()
    raw = value.encode("utf-8", "surrogatepass")
    escaped = {value, value.replace("'", "''"), *_escaped(value)}
    escaped |= {twice for once in escaped for twice in _escaped(once)}  # a record in a record
    found = {*escaped, quote(raw, safe=""), quote(raw), quote_plus(raw), raw.hex()}
    for coded in (base64.b64encode(raw), base64.urlsafe_b64encode(raw)):
        found |= {coded.decode(), coded.decode().rstrip("=")}
    return frozenset(found)


def _escaped(text: str) -> Iterator[str]:
    yield repr(text)[1:-1]
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]


class Hiding:
    """Secrets that are to be kept out of text."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._forms: dict[str, bytes] = {}
        """Longest first: an escaped form may contain the plain one."""
        for value in values:
            self.add(value)

    def add(self, value: str) -> None:
        """Keep this one out too."""
        if value in self._forms:  # each run reads its secrets anew
            return
        found = sorted({*self._forms, *forms(value)}, key=len, reverse=True)
        self._forms = {form: form.encode("utf-8", "surrogatepass") for form in found}

    def redact(self, text: str) -> str:
        """``text`` with a mark in place of every secret."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, REDACTED)
        return text

    def redact_bytes(self, line: bytes) -> bytes:
        """The same of text that is encoded already."""
        for form in self._forms.values():
            if form in line:
                line = line.replace(form, REDACTED.encode())
        return line
