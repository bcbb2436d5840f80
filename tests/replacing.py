"""One word for a record with some fields changed, whether the catalog's or the config's."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from msgspec import Struct, structs

R = TypeVar("R")


def replace(record: R, /, **changes: object) -> R:
    """The record with these fields changed."""
    how = structs.replace if isinstance(record, Struct) else dataclasses.replace
    return how(record, **changes)  # type: ignore[type-var]
