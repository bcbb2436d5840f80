"""What a person is asked when a destination is not where the catalog says that it is (B4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from catalog.records import CursorKind, FileEntry, HoldKind, StreamState
from reconciler.config.desired import Mode
from reconciler.connectors.ports import Marker, NeedsAnswer

REFRESH, ADOPT, RETRY = "refresh", "cursor adopt", "retry"
REWIND = "cursor rewind --to-destination"
AGREES = "agrees"
"""What was seen of a destination that held nothing up: it is adopted if it fits the catalog."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Words and choices for one table. No choice that is offered doubles a row, but those whose
    reason says so; `cursor adopt` leaves out what the table lacks, as that command says."""

    table: str
    mode: Mode
    state: StreamState
    marker: Marker | None
    """As the destination has it now."""
    waiting: int
    """How many committed batches wait to be published. They fit no other place, and bar every
    edit but ``refresh`` (B5)."""
    ledger: Callable[[], Sequence[FileEntry]] = tuple
    """Of the stream's files."""

    def gone(self) -> NeedsAnswer:
        return self._moved(
            f"table {self.table!r} has no marker, but the catalog published up to batch "
            f"{self.state.published}: the destination is new, was emptied or is not mounted"
        )

    def behind(self) -> NeedsAnswer:
        return self._moved(
            f"table {self.table!r} is at batch {self._seq}, but the catalog published up to "
            f"{self.state.published}: the destination was emptied or restored"
        )

    def ahead(self) -> NeedsAnswer:
        reason = (
            f"table {self.table!r} is at batch {self._seq}, but the catalog knows only "
            f"{self.state.seq}: the catalog is new or was restored"
        )
        if self._appends_files:
            reason += (
                "; which files its later batches brought is not known here: `refresh` reads all "
                "files again, or move those away and `cursor adopt` goes on with the others"
            )
        return self._moved(reason, has_more=True)

    def another(self, by: int) -> NeedsAnswer:
        """At the batch where the catalog is, but not at the one that run ``by`` committed."""
        assert self.marker is not None
        return self._moved(
            f"table {self.table!r} is at batch {self._seq} of run {self.marker.epoch}, but the "
            f"catalog's batch {self._seq} is of run {by}: one of the two was restored, and they "
            "went different ways since",
            has_more=True,
        )

    def changed_since(self) -> NeedsAnswer:
        """A person's answer was to a marker that is another one now."""
        now = f"it is at batch {self._seq} now" if self.marker else "it has no marker now"
        return self._moved(
            f"table {self.table!r} changed since a person said what is to become of it: {now}",
            has_more=self.marker is not None,
        )

    def fits_again(self) -> NeedsAnswer:
        """Held because of its destination, which was mended since: restored, mounted again."""
        return self._asks(
            f"table {self.table!r} fits the catalog again, at batch {self._seq}: `retry` goes on",
            (RETRY, REFRESH),
        )

    def foreign(self) -> NeedsAnswer:
        """Its marker says that it belongs to another stream. First comes what harms nobody."""
        assert self.marker is not None
        owner = self.marker.owner
        answer = REFRESH if self.waiting else RETRY
        whose = (
            f"table {self.table!r} belongs to pipeline {owner.pipeline!r}, stream "
            f"{owner.stream!r} of catalog {owner.catalog}; another name in `table`, and then "
            f"'{answer}', leaves it alone"
        )
        if self.waiting:  # for a table that was ours, or that we meant to make
            return self._asks(whose, (answer,))
        adopt = "'cursor adopt' takes it over and reads on from here"
        if self.mode is Mode.APPEND:
            adopt += ", also what is there, which is there twice then"
        if self._appends_files or self._has_read_files:
            return self._asks(f"{whose}, {adopt}", (RETRY, ADOPT))
        rewind = f"'{REWIND}' takes it over and goes on where it stands"
        return self._asks(f"{whose}, {rewind}, {adopt}", (RETRY, REWIND, ADOPT))

    @property
    def _seq(self) -> int:
        return self.marker.seq if self.marker else 0

    @property
    def _appends_files(self) -> bool:
        """What was read is in the ledger, which is the catalog's alone, and nothing merges rows
        that are read again (C6)."""
        cursor = self.state.cursor or (self.marker.cursor if self.marker else None)
        by_ledger = cursor is not None and cursor.kind is CursorKind.SNAPSHOT_ID
        return by_ledger and self.mode is Mode.APPEND

    @property
    def _has_read_files(self) -> bool:
        return bool(self.ledger())

    def _is_told_by_the_ledger(self) -> bool:
        """Whether the table's last batch is one that the ledger knows, and not another one by the
        same number: a catalog that was restored numbers anew what it reads."""
        if self.marker is None:
            return True
        last = self.marker.seq, self.marker.epoch
        return any((entry.seq, entry.epoch) == last for entry in self.ledger())

    def _moved(self, reason: str, *, has_more: bool = False) -> NeedsAnswer:
        """``has_more``: the table may have rows that the catalog does not know to be there."""
        if self.waiting:
            reason += (
                f"; {self.waiting} committed batches wait to be published and do not fit it: "
                "`refresh` reads all again"
            )
        return self._asks(reason, self._choices(has_more=has_more))

    def _choices(self, *, has_more: bool) -> tuple[str, ...]:
        """First comes what keeps the rows that are there: a source may have them no more."""
        if self.waiting or (has_more and self._appends_files):
            return (REFRESH,)
        if has_more and self.mode is Mode.APPEND:
            return (REWIND, REFRESH)  # to adopt would read again what is there
        if self._appends_files and self._seq < self.state.ledger_from:
            return (REFRESH, ADOPT)  # which files it has is not known any more
        if self._appends_files and not self._is_told_by_the_ledger():
            return (REFRESH,)  # it may have files that the ledger lacks
        if has_more and self.mode is Mode.REPLACE and self._has_read_files:
            return (REFRESH, ADOPT)  # the files may be as the ledger says, and the table is not
        return (REWIND, REFRESH, ADOPT)

    def _asks(self, reason: str, choices: tuple[str, ...]) -> NeedsAnswer:
        return NeedsAnswer(HoldKind.DESTINATION, reason, choices, marker_detail(self.marker))


def marker_detail(marker: Marker | None) -> str:
    """What a hold says of the destination, for its answers: they are void for another marker."""
    detail = {
        "seq": marker.seq if marker else 0,
        "epoch": marker.epoch if marker else 0,
        "cursor": marker.cursor if marker else None,
        "owner": marker.owner if marker else None,
    }
    return msgspec.json.encode(detail).decode()
