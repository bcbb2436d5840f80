"""The rules that histories are judged by, and what is raised when one is broken."""

from __future__ import annotations

from enum import StrEnum


class Rule(StrEnum):
    """What holds in every world, whatever befalls it."""

    ONE_WRITER = "one writer per epoch, and no epoch twice"
    SEQUENCE = "each batch follows the one before it"
    CURSOR = "no cursor goes back by itself"
    COMMIT_POINT = "sealed, then committed, then published"
    DISCARD = "what is committed is not discarded before it is published"
    AHEAD = "no cursor is ahead of durable data"
    ONCE = "each row once at the destination"
    TRIGGER = "a trigger is taken by the run that answered it, and by no other"
    ASIDE = "what is put aside or held is left alone"
    HOLD = "nothing is held without a cause"
    LIMITS = "no more runs at once than the limits allow"
    IN_TIME = "what is due runs within its bound"
    SETTLED = "nothing waits for ever"
    ALIVE = "no process ends by itself, and nothing turns for ever"


class Wrong(Exception):
    """The simulation saw what must not be."""

    def __init__(self, rule: Rule, text: str) -> None:
        super().__init__(f"{text}\n  rule: {rule}")
        self.rule = rule
