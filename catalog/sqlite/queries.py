"""The backend's statements: read from the ``.sql`` files beside this one, by name."""

from __future__ import annotations

import re
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def parse(text: str) -> dict[str, str]:
    """The statements of one file: each follows a line ``-- name: its_name``.

    Comments and line breaks are taken out, since they would be hashed at each execution.
    """
    _, *parts = _NAME.split(text)
    found = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        lines = [line.partition("-- ")[0].strip() for line in body.splitlines()]
        found[name] = " ".join(line for line in lines if line).rstrip(";")
    return found


def load() -> dict[str, str]:
    """All statements by name. A name that is there twice is a fault of this program."""
    found: dict[str, str] = {}
    folder = resources.files("catalog.sqlite") / "sql"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        for name, sql in parse(file.read_text("utf-8")).items():
            assert name not in found, f"two statements are named {name}"
            found[name] = sql
    return found


SQL = load()
"""Every statement of ``sql/*.sql``; one string object each, as SQLite's statement cache likes."""
