"""Says what becomes of runs: to the log and the metrics in the daemon, to nobody elsewhere."""

from __future__ import annotations

from typing import Protocol

from catalog.records import Claimed, Finish, Lease, Outcome, Run, TriggerKind
from reconciler.config.hiding import Hiding
from reconciler.run.messages import Done


class Teller(Protocol):
    """Hears of runs as they begin and end."""

    def began(self, claimed: Claimed, delay: float | None) -> None:
        """A lease was taken, ``delay`` seconds after the run was due."""
        ...

    def ended(self, claimed: Claimed, run: Run | None, finish: Finish, done: Done) -> None:
        """A run ended; ``run`` is None when the catalog did not take its end."""
        ...

    def lost(self, lease: Lease) -> None:
        """Another holder took a lease over."""
        ...

    def fenced(self, lease: Lease) -> None:
        """The catalog refused a write of a stale epoch."""
        ...

    def secret(self, value: str) -> None:
        """This value must never be said."""
        ...

    def redact(self, text: str) -> str:
        """The text without any of those values."""
        ...


class Quiet:
    """Tells nobody, and keeps secrets out of text all the same."""

    def __init__(self) -> None:
        self._hiding = Hiding()

    def began(self, claimed: Claimed, delay: float | None) -> None:
        """Nobody listens."""

    def ended(self, claimed: Claimed, run: Run | None, finish: Finish, done: Done) -> None:
        """Nobody listens."""

    def lost(self, lease: Lease) -> None:
        """Nobody listens."""

    def fenced(self, lease: Lease) -> None:
        """Nobody listens."""

    def secret(self, value: str) -> None:
        self._hiding.add(value)

    def redact(self, text: str) -> str:
        return self._hiding.redact(text)


def is_quiet(claimed: Claimed, run: Run) -> bool:
    """A scheduled run that found nothing new is no news."""
    asked = claimed.run.trigger.kind is TriggerKind.REQUEST
    return run.outcome is Outcome.NOTHING_NEW and not asked
