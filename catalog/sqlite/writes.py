"""What goes through the writer's queue, and comes back to the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, TypeVar

from catalog.errors import CatalogError
from catalog.sqlite.committing import Request
from catalog.sqlite.operations import Operations


class Stage(Enum):
    """How far an operation has come."""

    QUEUED = 0
    BEGUN = 1
    WITHDRAWN = 2
    SETTLED = 3
    """It has its answer or its error, also when its caller's future was cancelled meanwhile."""


T = TypeVar("T")
Verb: TypeAlias = Callable[[Operations], tuple[T, bytes]]
"""Carries out one operation: its answer, and the answer encoded. A commit is its ``Request``."""


class Write:
    """One operation on its way through the writer."""

    __slots__ = ("answer", "carry_out", "done", "error", "grows", "op", "stage", "verb")

    def __init__(
        self,
        op: str,
        verb: str,
        carry_out: Verb[Any] | Request,
        done: asyncio.Future[Any],
        *,
        grows: bool,
    ) -> None:
        self.op, self.verb, self.carry_out, self.done, self.grows = op, verb, carry_out, done, grows
        self.stage = Stage.QUEUED
        self.answer: Any = None
        self.error: BaseException | None = None


@dataclass(slots=True, eq=False)
class Ask:
    """A look at other processes' changes, on the write connection."""

    done: asyncio.Future[int]


@dataclass(frozen=True, slots=True)
class Doubt:
    """The checkpointer found that the file cannot be trusted."""


@dataclass(slots=True)
class Counters:
    """For ``stats``; written by the writer's thread alone."""

    writes: int = 0
    groups: int = 0
    last_error: str = ""


def fail(group: Sequence[Write], kind: type[CatalogError], why: str) -> None:
    """Give each an error of its own."""
    for write in group:
        write.error = kind(why)


def settle(group: Sequence[Write], looks: Sequence[tuple[Ask, int]]) -> None:
    """Wake all who wait; on the loop."""
    for write in group:
        write.stage = Stage.SETTLED
        done = write.done
        if done.done():
            continue
        if write.error is None:
            done.set_result(write.answer)
        else:
            done.set_exception(write.error)
    for ask, change in looks:
        if not ask.done.done():
            ask.done.set_result(change)
