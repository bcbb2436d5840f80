"""The words in which a person is asked about a schema change, and what each answer would do."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from reconciler.schema.changes import Change
from reconciler.schema.model import Schema
from reconciler.schema.types import common


def old_key_remains(current: Schema, proposed: Schema) -> bool:
    """Whether rows can still be told apart by the key they had, if they had one."""
    return bool(current.key) and all(proposed.field(c) is not None for c in current.key)


def question(held: Sequence[Change], choices: Sequence[str]) -> str:
    """What changed, then a sentence for each answer that can be given."""
    parts = [_sentence("; ".join(map(str, held)))]
    if "approve" in choices:
        parts.append(f"approve: {'; '.join(_approved(c) for c in held)}.")
    if "reject" in choices:
        parts.append(f"reject: {'; '.join(_rejected(c) for c in held)}.")
    else:
        parts.append("It cannot be rejected: there was no key, or a column of it is gone.")
    parts.append("retry: looks again, once the source is as it was or the config answers.")
    return " ".join(parts)


def detail(proposed: Schema, held: Sequence[Change]) -> str:
    """JSON of the proposed schema and the changes asked about, for the answer to work with."""
    return msgspec.json.encode({"schema": proposed, "changes": list(held)}).decode()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _approved(change: Change) -> str:
    name = repr(change.column)
    match change.kind:
        case "added":
            return f"{name} is added; rows already there have NULL"
        case "dropped":
            return f"{name} stays in the table and is NULL from now on"
        case "key_changed":
            return f"rows are told apart by {change.new or 'nothing'} from now on"
        case _:
            return _approved_type(name, change)


def _approved_type(name: str, change: Change) -> str:
    becomes = common(change.old, change.new)
    if becomes == change.old:
        return f"{name} stays {change.old}, which holds every {change.new}"
    if becomes == change.new:
        return f"{name} becomes {becomes}, rows already there with it"
    return f"{name} becomes {becomes}, which holds both; rows already there are converted"


def _rejected(change: Change) -> str:
    name = repr(change.column)
    match change.kind:
        case "added":
            return f"{name} is not loaded"
        case "dropped":
            return f"the same, {name} stays and is NULL"
        case "key_changed":
            return f"rows are still told apart by {change.old}"
        case _:
            return (
                f"{name} stays {change.old}; rows whose value does not fit it are set aside "
                "with the reason"
            )
