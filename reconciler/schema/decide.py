"""The answer to a proposed schema: go on, and how; or hold until a person answers. Pure.

The target is what the table has: it only grows or widens, so that every row already there fits
it (see ``types.common``); what the source dropped stays and becomes NULL.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from catalog.records import Decision, Hold, HoldKind, Micros, SchemaVersion
from reconciler.config.desired import SchemaPolicy, fold
from reconciler.schema import asking
from reconciler.schema.answers import Answered, Proposal, answer, policy_decisions
from reconciler.schema.changes import Change, compare
from reconciler.schema.model import Field, Schema, dump, fingerprint, load
from reconciler.schema.own import reserved, reserved_text
from reconciler.schema.types import BadType, Type, canonical, common, parse, same


@dataclass(frozen=True, slots=True)
class ColumnRule:
    """How a column of the source becomes one of the target.

    ``as_is``: types agree. ``cast``: to the target's type; a row whose value does not fit is set
    aside with its reason. ``ignore``: not written; ``target`` is empty. A column of the target
    that no rule names is NULL.
    """

    source: str
    target: str
    action: Literal["as_is", "cast", "ignore"]


@dataclass(frozen=True, slots=True)
class GoOn:
    """Go on with ``version`` (the current one, or a new one that the next commit records)."""

    version: SchemaVersion
    target: Schema
    columns: tuple[ColumnRule, ...]
    decisions: tuple[Decision, ...] = ()
    """Made by policy just now, and not recorded before: the next commit records them."""


@dataclass(frozen=True, slots=True)
class HoldOn:
    """End the stream at its last committed batch and wait for a person (F)."""

    hold: Hold


Verdict: TypeAlias = GoOn | HoldOn


def decide(
    stream: str,
    current: SchemaVersion | None,
    proposed: Schema,
    policy: SchemaPolicy,
    decisions: Sequence[Decision],
    now: Micros,
) -> Verdict:
    """How a stream goes on with the schema its source has now (F). Never raises for a schema.

    ``current`` is the stream's last version, None before its first commit; ``decisions`` all that
    were recorded for it, oldest first. The same call gives the same answer, and an answered
    proposal proposed again keeps the version that it led to.
    """
    version = 0 if current is None else current.version
    if current is not None and not proposed.fields:
        proposed = _nothing_shown(load(current.body), proposed.key)
    if (unusable := _unusable(proposed)) is not None:
        return HoldOn(
            Hold(
                HoldKind.SCHEMA,
                f"{unusable}; then `retry` to look again",
                now,
                ("retry",),
                version,
                fingerprint(proposed),
                asking.detail(proposed, ()),
            )
        )
    if current is None:
        return _first(proposed, now)
    known = load(current.body)
    proposed, theirs = _named_as_known(known, proposed)
    proposal = Proposal(stream, version, known, proposed, tuple(decisions))
    answers = answer(compare(known, proposed), policy, proposal)
    held = tuple(c for c, answered in answers.items() if answered.settled == "hold")
    if held:
        return HoldOn(_hold(proposal, held, now))
    target, rules = _shape(known, proposed, answers)
    columns = tuple(replace(rule, source=theirs.get(rule.source, rule.source)) for rule in rules)
    made = policy_decisions(proposal, answers, policy, now)
    if target == known:
        return GoOn(current, known, columns, made)
    grown = SchemaVersion(version + 1, fingerprint(target), dump(target), now)
    return GoOn(grown, target, columns, made)


def _nothing_shown(known: Schema, key: tuple[str, ...]) -> Schema:
    """For a read of no file at all, which says nothing of columns: they are as they were."""
    return Schema(tuple(field for field in known.fields if not field.aside), key)


def _first(proposed: Schema, now: Micros) -> GoOn:
    target = Schema(tuple(Field(f.name, f.type) for f in proposed.fields), proposed.key)
    columns = tuple(ColumnRule(f.name, f.name, "as_is") for f in target.fields)
    return GoOn(SchemaVersion(1, fingerprint(target), dump(target), now), target, columns)


def _unusable(proposed: Schema) -> str | None:
    """Why no table could have this schema, whatever anybody answers; None: one could."""
    if taken := reserved(proposed):
        return reserved_text(taken)
    seen: dict[str, str] = {}
    for number, field in enumerate(proposed.fields, 1):
        folded = field.name.casefold()
        if (other := seen.get(folded)) is not None:
            return (
                f"the source's columns {other!r} and {field.name!r} differ in case alone or not at "
                "all, which a table cannot hold; rename one with a `query` for the stream"
            )
        seen[folded] = field.name
        if why := _unusable_column(number, field):
            return why
    names = {f.name for f in proposed.fields}
    if missing := [column for column in proposed.key if column not in names]:
        return (
            f"key column {', '.join(map(repr, missing))} is not among the source's columns "
            f"({', '.join(names)}); name another `key` for the stream"
        )
    return None


def _unusable_column(number: int, field: Field) -> str:
    if not field.name:
        return (
            f"column {number} of the source has an empty name, which a table cannot hold; name it "
            "there, or with a `query` for the stream"
        )
    try:
        members = _unusable_members(parse(field.type))
    except BadType as error:
        return f"column {field.name!r}: {error}"
    return (
        f"column {field.name!r} is a struct {members}; change it with a `query`" if members else ""
    )


def _unusable_members(found: Type) -> str:
    """What is wrong with the names within a struct, at any depth; empty: nothing is."""
    names = [name for name, _ in found.fields] if found.name == "struct" else []
    if "" in names:
        return "that has a field with an empty name, which a table cannot hold"
    if len({name.casefold() for name in names}) < len(names):
        return f"whose fields {', '.join(map(repr, names))} differ in case alone"
    return next(filter(None, (_unusable_members(inner) for _, inner in found.fields)), "")


def _named_as_known(known: Schema, proposed: Schema) -> tuple[Schema, dict[str, str]]:
    """The source's schema in the table's spelling of names, which holds no two that differ in case
    alone; and by such a name how the source spells it.
    """
    ours = {fold(f.name): f.name for f in known.fields}
    new = {f.name for f in proposed.fields} - {f.name for f in known.fields}
    names = {name: ours[fold(name)] for name in new if fold(name) in ours}
    fields = tuple(replace(f, name=names.get(f.name, f.name)) for f in proposed.fields)
    key = tuple(names.get(column, column) for column in proposed.key)
    return Schema(fields, key), {name: theirs for theirs, name in names.items()}


# -- what becomes of the columns -----------------------------------------------------------------


def _shape(
    known: Schema, proposed: Schema, answers: Mapping[Change, Answered]
) -> tuple[Schema, tuple[ColumnRule, ...]]:
    """The target, and how each column of the source gets there.

    Every column of the target may be NULL: rows from before it was added have no value for it.
    """
    target = {f.name: f.type for f in known.fields}
    asides = {f.name for f in known.fields if f.aside and proposed.field(f.name) is None}
    settled = {change.column: (change, given.settled) for change, given in answers.items()}
    rekeyed = any(c.kind == "key_changed" and a.settled == "evolve" for c, a in answers.items())
    key = proposed.key if rekeyed else known.key
    rules: list[ColumnRule] = []
    for field in proposed.fields:
        change, answer = settled.get(field.name, (None, "keep"))
        if change is None:
            rules.append(_into(field, target))
        elif answer == "new_column":
            taken = {f.name for f in proposed.fields} | (target.keys() - asides)
            aside = _aside_name(field, target, taken)
            target.setdefault(aside, field.type)
            asides.add(aside)
            rules.append(replace(_into(replace(field, name=aside), target), source=field.name))
        elif answer == "evolve" or (field.name in key and change.kind == "added"):
            # A column of a key that was approved comes with it, whatever is said of new ones.
            target[field.name] = (
                common(target[field.name], field.type) if field.name in target else field.type
            )
            rules.append(_into(field, target))
        elif change.kind == "added":
            rules.append(ColumnRule(field.name, "", "ignore"))
        else:
            rules.append(_into(field, target))
    fields = tuple(Field(n, t, aside=n in asides) for n, t in target.items())
    return Schema(fields, key), tuple(rules)


def _into(field: Field, target: Mapping[str, str]) -> ColumnRule:
    agree = target[field.name] == field.type
    return ColumnRule(field.name, field.name, "as_is" if agree else "cast")


def _suffix(word: str) -> str:
    return "__" + re.sub(r"\W+", "_", word).strip("_")


def _aside_name(field: Field, target: Mapping[str, str], taken: Collection[str]) -> str:
    """Where values of another type go: ``amount__text``; with a number where that is taken."""
    plain = field.name + _suffix(canonical(field.type))
    folded = {other.casefold() for other in taken}
    name, number = plain, 2
    while name.casefold() in folded or (name in target and not same(target[name], field.type)):
        name, number = f"{plain}_{number}", number + 1
    return name


# -- asking --------------------------------------------------------------------------------------


def _hold(proposal: Proposal, held: tuple[Change, ...], now: Micros) -> Hold:
    current, proposed = proposal.current, proposal.proposed
    stuck = any(c.kind == "key_changed" for c in held) and not asking.old_key_remains(
        current, proposed
    )
    choices = ("approve", "retry") if stuck else ("approve", "reject", "retry")
    return Hold(
        kind=HoldKind.SCHEMA,
        reason=asking.question(held, choices),
        at=now,
        choices=choices,
        from_version=proposal.version,
        fingerprint=proposal.fingerprint,
        detail=asking.detail(proposed, held),
    )
