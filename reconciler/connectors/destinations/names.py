"""Names as parts of paths. Loads nothing heavy: the command line says where tables are."""

from __future__ import annotations

import hashlib
from urllib.parse import quote

_LONGEST = 180


def encode_name(name: str, longest: int = _LONGEST) -> str:
    """``name`` as one safe component of a path, at most ``longest`` bytes; another for each name.

    Letters, digits, ``_``, ``-`` and inner dots stay, all else is percent-encoded. A long one is
    cut and ends in ``%~`` and a hash of the whole.
    """
    text = quote(name, safe="")
    text = text.replace("~", "%7E")
    if text.startswith("."):
        text = "%2E" + text[1:]
    if len(text) > longest:
        cut = text[: longest - 34]
        text = f"{cut}%~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return text or "%"
