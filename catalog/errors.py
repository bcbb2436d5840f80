"""What a catalog says when it does not do as asked.

Three families, and the family tells the caller what happens next:

- ``Refused``: nothing was changed, and sending the same request again is refused again until
  something else changes. Each subclass is one reason.
- ``Unknown``: the request may or may not have been carried out. Send the *same operation id*
  again, or read back; never act as if it had failed (A5, D2).
- ``Unavailable``: nothing was changed and the request itself is fine; try again later.
"""

from __future__ import annotations


class CatalogError(Exception):
    """Root of everything a catalog raises on purpose. ``str()`` is a sentence for a person."""

    code = "catalog_error"


class Unknown(CatalogError):
    """It may have happened and it may not have. Resend the same operation id, or read back."""

    code = "unknown"


class Unavailable(CatalogError):
    """It did not happen; the catalog cannot be written (or read) now. Try again."""

    code = "unavailable"


class CannotOpen(CatalogError):
    """The location is not a catalog this program can serve: not SQLite, newer, damaged, remote."""

    code = "cannot_open"


class Refused(CatalogError):
    """It did not happen, and will not until something else changes."""

    code = "refused"


class Fenced(Refused):
    """The epoch shown is not the pipeline's current one: another holder took over (rule 1)."""

    code = "fenced"

    def __init__(self, pipeline: str, epoch: int, current: int | None) -> None:
        now = "no epoch is current" if current is None else f"epoch {current} is current"
        super().__init__(
            f"pipeline {pipeline!r}: the write showed epoch {epoch}, but {now}: "
            "another holder took over, or the lease was released"
        )
        self.pipeline = pipeline
        self.epoch = epoch
        self.current = current


class Conflict(Refused):
    """A commit does not follow the stream's last batch (B1)."""

    code = "conflict"


class WentBack(Refused):
    """A monotonic cursor would have moved backwards (rule 4)."""

    code = "went_back"


class DefinitionChanged(Refused):
    """The cursor's definition (columns, types, source) or tag is not the stored one (C4)."""

    code = "definition_changed"


class SchemaConflict(Refused):
    """A schema version does not follow the stream's last, or an older one has another body."""

    code = "schema_conflict"


class StreamHeld(Refused):
    """The stream waits for a person's answer; nothing is committed to it until then."""

    code = "stream_held"


class Unpublished(Refused):
    """Not while a committed batch is not yet published (B5), or more than eight wait (B6)."""

    code = "unpublished"


class Leased(Refused):
    """An operator's edit would race with a run that is under way; cancel it or wait."""

    code = "leased"


class Full(Refused):
    """The catalog reached its size ceiling; what it holds is safe, growing it is refused (D1)."""

    code = "full"


class NotFound(Refused):
    """The pipeline, stream, run or proposal named does not exist."""

    code = "not_found"


class Stale(Refused):
    """The answer names something that has moved on, such as a schema proposal now replaced."""

    code = "stale"


class BadRequest(Refused):
    """The request contradicts itself; a fault of the caller."""

    code = "bad_request"
