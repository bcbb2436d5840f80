"""Who answers a schema change, and how: the config's policy, or a person. Pure.

Each change gets its answer from the policy. Where that is ``hold`` a person's recorded decision
counts: the latest about the very same change (column, old and new type), in whichever proposal it
was asked about, so that nothing is asked twice. A column that is gone is asked about once, and a
type that a person let into a column is let in for good. The key is never changed without a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import msgspec

from catalog.records import Decision, Micros
from reconciler.config.desired import Answer, SchemaPolicy
from reconciler.schema import asking
from reconciler.schema.changes import Change, ChangeKind, dump_changes, load_changes, meant
from reconciler.schema.model import Schema, fingerprint
from reconciler.schema.types import common, filled, parse

POLICY = "policy"
"""Who decided, in a ``Decision`` that no person made."""

ALLOWED: Mapping[ChangeKind, tuple[Answer, ...]] = {
    "added": ("add", "ignore", "hold"),
    "widened": ("widen", "hold", "new_column", "reject"),
    "dropped": ("keep", "hold"),
    "narrowed": ("hold", "new_column", "reject", "keep"),
    "retyped": ("hold", "new_column", "reject"),
}
"""The answers that a policy may give to each kind of change."""

Settled: TypeAlias = Literal["evolve", "refuse", "new_column", "keep", "hold"]
_SETTLED: Mapping[Answer, Settled] = {
    "add": "evolve",
    "widen": "evolve",
    "ignore": "refuse",
    "reject": "refuse",
    "new_column": "new_column",
    "keep": "keep",
    "hold": "hold",
}


@dataclass(frozen=True, slots=True)
class Answered:
    """What becomes of a change, and whether the policy said so."""

    settled: Settled
    by_policy: bool


@dataclass(frozen=True)
class Proposal:
    """What is asked of a stream at ``version``, and what was decided before, oldest first."""

    stream: str
    version: int
    current: Schema
    proposed: Schema
    decisions: tuple[Decision, ...]

    @cached_property
    def fingerprint(self) -> str:
        """Of the proposed schema: with stream and version it names the proposal (F)."""
        return fingerprint(self.proposed)

    def asked(self, decision: Decision) -> bool:
        """Whether a decision is about this very proposal (F)."""
        return (
            decision.stream == self.stream
            and decision.from_version == self.version
            and decision.fingerprint == self.fingerprint
        )


class _Memory:
    """What persons said before about a stream's changes."""

    def __init__(self, proposal: Proposal) -> None:
        persons = [(d, _changes(d)) for d in proposal.decisions if d.by != POLICY]
        # To what was asked there, not to what the policy answered then and asks about now.
        self.same = {c: d.answer for d, changes in persons for c in changes}
        self.gone = {
            c.column for d in proposal.decisions for c in _changes(d) if c.kind == "dropped"
        }
        self.let_in = {
            (c.column, word)
            for d, changes in persons
            if d.answer == "approved"
            for c in changes
            for word in (c.old, c.new)
        }

    def told(self, change: Change) -> str:
        """The latest answer to the very same change; empty: there is none."""
        return self.same.get(meant(change), "")

    def lets_in(self, change: Change) -> bool:
        """A person approved this type for the column, whose own type has held it since."""
        return (
            change.kind in ("narrowed", "retyped")
            and (change.column, meant(change).new) in self.let_in
            and common(change.old, change.new) == change.old
        )


def answer(
    changes: Sequence[Change], policy: SchemaPolicy, proposal: Proposal
) -> dict[Change, Answered]:
    """The answer to each change; ``hold`` where a person has to give it."""
    memory = _Memory(proposal)
    answers: dict[Change, Answered] = {}
    for change in changes:
        by_policy = _policy_answer(change, policy, proposal)
        if memory.lets_in(change):
            answers[change] = Answered("evolve", by_policy=False)
        elif by_policy != "hold":
            answers[change] = Answered(by_policy, by_policy=True)
        else:
            answers[change] = Answered(_by_person(change, memory, proposal), by_policy=False)
    return answers


def _policy_answer(change: Change, policy: SchemaPolicy, proposal: Proposal) -> Settled:
    if change.kind == "key_changed":
        return "hold"
    if _is_first_value(change):
        return "evolve"
    chosen: Answer = getattr(policy, change.kind)
    if chosen not in ALLOWED[change.kind]:
        return "hold"
    if chosen == "new_column" and change.column in proposal.current.key + proposal.proposed.key:
        return "hold"  # a row without its key could not be merged
    if chosen == "keep" and change.kind == "narrowed":
        return "refuse"
    return _SETTLED[chosen]


def _is_first_value(change: Change) -> bool:
    """No value had shown the type before, or a part of it: nothing is taken for something else."""
    if change.kind != "widened":
        return False
    new = parse(change.new)
    return filled(parse(change.old), new) == new


def _by_person(change: Change, memory: _Memory, proposal: Proposal) -> Settled:
    if change.kind == "dropped":
        return "keep" if change.column in memory.gone else "hold"
    told = memory.told(change)
    if told == "approved":
        return "evolve"
    if told != "rejected":
        return "hold"
    if change.kind == "key_changed" and not asking.old_key_remains(
        proposal.current, proposal.proposed
    ):
        return "hold"
    return "refuse"


def _changes(decision: Decision) -> tuple[Change, ...]:
    try:
        return tuple(map(meant, load_changes(decision.changes)))
    except msgspec.MsgspecError:
        return ()  # a damaged record answers nothing, and is asked about again


def _said_by(policy: SchemaPolicy, change: Change) -> str:
    if _is_first_value(change):
        return f"{change}: no value had shown its type before"
    return f"{change}: {change.kind} = {getattr(policy, change.kind)!r}"


def policy_decisions(
    proposal: Proposal, answers: Mapping[Change, Answered], policy: SchemaPolicy, now: Micros
) -> tuple[Decision, ...]:
    """The policy's part of the answers as a record; none where it is on record already."""
    asked = [d for d in proposal.decisions if proposal.asked(d)]
    latest = {c: d.why if d.by == POLICY else "" for d in asked for c in _changes(d)}
    known = {c for d in proposal.decisions for c in _changes(d) if c.kind == "dropped"}
    said = {
        c: _said_by(policy, meant(c))
        for c, given in answers.items()
        if given.by_policy and meant(c) not in known
    }
    mine = [c for c, why in said.items() if why not in latest.get(meant(c), "")]
    if not mine:
        return ()
    refused = all(answers[change].settled == "refuse" for change in mine)
    return (
        Decision(
            stream=proposal.stream,
            from_version=proposal.version,
            fingerprint=proposal.fingerprint,
            answer="rejected" if refused else "approved",
            changes=dump_changes(mine),
            by=POLICY,
            why="; ".join(said[change] for change in mine),
            at=now,
        ),
    )
