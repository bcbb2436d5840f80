"""Whether a batch may be published now: owner, number and run against the marker (B4, B5)."""

from __future__ import annotations

from catalog.records import ErrorClass, HoldKind
from reconciler.config.desired import Mode
from reconciler.connectors.ports import ConnectorError, NeedsAnswer, Owner, Receipt


def follows(receipt: Receipt, marker: tuple[Owner, int, int] | None) -> bool:
    """True: the batch is the next one. False: it is published already.

    ``marker``: owner, high-water seq, and the run of the batch published last; None: the table has
    no marker. A replacement is all there is, so it follows whatever an earlier run left. Raises
    ``NeedsAnswer`` for another's table, for a number that was given twice, for a table that is at
    another batch of the number before and for one that lost its rows since the run looked at it,
    ``ConnectorError`` (permanent) for a gap.
    """
    name = receipt.name
    if marker is None:
        return receipt.mode is Mode.REPLACE or _in_order(receipt, 0)
    owner, seq, epoch = marker
    if owner != name.owner:
        raise NeedsAnswer(
            HoldKind.DESTINATION,
            f"table {receipt.table!r} belongs to pipeline {owner.pipeline!r}, stream "
            f"{owner.stream!r} of catalog {owner.catalog}; another name in `table`, and then "
            "'refresh', leaves it alone",
            ("refresh",),  # what is committed bars an edit of the cursor (B5)
        )
    is_later = name.epoch > epoch
    if receipt.mode is Mode.REPLACE:
        return name.seq > seq or is_later
    if name.seq > seq:
        return _in_order(receipt, seq) and _continues(receipt, seq, epoch)
    if is_later:
        raise NeedsAnswer(
            HoldKind.DESTINATION,
            f"table {receipt.table!r} is at batch {seq} of run {epoch}, and run {name.epoch} "
            f"brings a batch {name.seq} that is not among them: the catalog was restored",
            ("refresh",),  # it is committed, and bars every edit of the cursor until then (B5)
        )
    return False


def _in_order(receipt: Receipt, seq: int) -> bool:
    if receipt.name.seq == seq + 1:
        return True
    if seq == 0:
        raise NeedsAnswer(
            HoldKind.DESTINATION,
            f"table {receipt.table!r} has no rows of ours, and batch {receipt.name.seq} "
            "comes after others: it was emptied, dropped or renamed while a run was under way; "
            "`refresh` reads all again",
            ("refresh",),  # it is committed, and bars every edit of the cursor until then (B5)
        )
    raise ConnectorError(
        ErrorClass.PERMANENT,
        f"table {receipt.table!r} is at batch {seq}; batch {receipt.name.seq} does not follow it "
        "and is not published before those between",
    )


def _continues(receipt: Receipt, seq: int, epoch: int) -> bool:
    """The table may have been put back, from another past, since the run looked at its marker."""
    if receipt.after in (0, epoch) or epoch == 0:
        return True
    raise NeedsAnswer(
        HoldKind.DESTINATION,
        f"table {receipt.table!r} is at batch {seq} of run {epoch}, but batch {receipt.name.seq} "
        f"comes after batch {seq} of run {receipt.after}: one of the two was restored, and they "
        "went different ways since",
        ("refresh",),
    )


def elsewhere(receipt: Receipt, here: str) -> NeedsAnswer:
    """The words for a batch that was sealed at another destination."""
    name = receipt.name
    return NeedsAnswer(
        HoldKind.DESTINATION,
        f"batch {name.seq} of stream {name.owner.stream!r} is sealed at {receipt.destination}, and "
        f"the destination is {here} now: name the old one again until it is published, or "
        "`refresh` the stream to read all into the new one",
        ("refresh", "retry"),
    )
