"""The word for something that is not there, with the names that come nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from catalog.records import ErrorClass
from reconciler.connectors.ports import ConnectorError


def no_such(what: str, name: str, known: Iterable[str], where: str) -> ConnectorError:
    """A permanent error: there is no ``what`` of that name in ``where``."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?"
    elif names:
        shown = ", ".join(repr(n) for n in names[:8])
        hint = f"there {'are' if len(names) > 1 else 'is'} {shown}{', …' if len(names) > 8 else ''}"
    else:
        hint = "there is none at all, or none that may be read"
    return ConnectorError(
        ErrorClass.PERMANENT, f"connection {where!r}: there is no {what} {name!r}; {hint}"
    )
