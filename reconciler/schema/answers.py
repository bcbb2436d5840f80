"""Who answers a schema change, and how: the config's policy, or a person. Pure.

Each change gets its answer from the policy. Where that is ``hold`` a person's recorded decision
counts: the one about exactly this proposal from exactly this version, else the latest about the
very same change (column, old and new type), so that nothing is asked twice. A column that is gone
is asked about once, and a type that a person let into a column is let in for good. The key is never
changed without a person.
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
from reconciler.schema.changes import Change, ChangeKind, dump_changes, load_changes
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
        asked = [(d, changes) for d, changes in persons if proposal.asked(d)]
        # To what was asked there, not to what the policy answered then and asks about now.
        self.exact = {c: d.answer for d, changes in asked for c in changes}
        self.whole = asked[-1][0].answer if asked and not asked[-1][1] else ""
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

    def lets_in(self, change: Change) -> bool:
        """A person approved this type for the column, whose own type has held it since."""
        return (
            change.kind in ("narrowed", "retyped")
            and (change.column, change.new) in self.let_in
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
    told = memory.exact.get(change) or memory.whole or memory.same.get(change)
    if change.kind == "dropped":
        return "keep" if told or change.column in memory.gone else "hold"
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
        return load_changes(decision.changes)
    except msgspec.MsgspecError:
        return ()  # a record of another kind still answers all of its exact proposal


def _said_by(policy: SchemaPolicy, change: Change) -> str:
    if _is_first_value(change):
        return "no value had shown its type before"
    return f"{change.kind} = {getattr(policy, change.kind)!r}"


def policy_decisions(
    proposal: Proposal, answers: Mapping[Change, Answered], policy: SchemaPolicy, now: Micros
) -> tuple[Decision, ...]:
    """The policy's part of the answers as a record; none where it is on record already."""
    known = {c for d in proposal.decisions for c in _changes(d) if c.kind == "dropped"}
    mine = [c for c, given in answers.items() if given.by_policy and c not in known]
    if not mine:
        return ()
    refused = all(answers[change].settled == "refuse" for change in mine)
    made = Decision(
        stream=proposal.stream,
        from_version=proposal.version,
        fingerprint=proposal.fingerprint,
        answer="rejected" if refused else "approved",
        changes=dump_changes(mine),
        by=POLICY,
        why="; ".join(f"{change}: {_said_by(policy, change)}" for change in mine),
        at=now,
    )
    asked = (d for d in reversed(proposal.decisions) if d.by == POLICY and proposal.asked(d))
    last = next(asked, None)
    known_as = (last.answer, last.why) if last else None
    return () if known_as == (made.answer, made.why) else (made,)  # the config may say else by now
