"""The process whose calls about DuckDB's own file fail in turn (``disk_faults.c``).

In each trial two batches are published while the disk is bad, and again, with one more, when it is
well. Prints each trial, so that a process that ends in the midst of one has told which, and what
went wrong in it.
"""

from __future__ import annotations

import ctypes
import errno
import shutil
import sys
from pathlib import Path
from unittest import mock

import duckdb

from catalog.records import ErrorClass
from reconciler.config.desired import Mode
from reconciler.connectors.destinations import duckdb_file
from reconciler.connectors.destinations.duckdb import DuckdbDestination
from reconciler.connectors.ports import ConnectorError, Receipt
from tests.destination_kit import TABLE, leftovers, load, orders, request, seal

LIBC = ctypes.CDLL(None)
LIBC.fault_kinds.restype = ctypes.c_char_p
KEY = ("id",)
STATES = {1: "n1 n2", 2: "n1 b2 b3", 3: "n1 c2 b3"}


def first(path: Path) -> tuple[DuckdbDestination, list[Receipt]]:
    """A database with one batch, and two that are sealed."""
    path.parent.mkdir(parents=True)
    destination = DuckdbDestination(path, wait=0.0)
    load(destination, request(1, mode=Mode.MERGE, key=KEY), orders(1, 2))
    two = seal(destination, request(2, mode=Mode.MERGE, key=KEY), orders(2, 3, name="b"))
    three = seal(destination, request(3, mode=Mode.MERGE, key=KEY), orders(2, name="c"))
    return destination, [two, three]


def rows(path: Path) -> str:
    with duckdb.connect(str(path), read_only=True, config={"threads": 1}) as db:
        return " ".join(n for (n,) in db.execute("SELECT name FROM orders ORDER BY id").fetchall())


def attempt(path: Path, call: int, fault: int, *, lasting: bool) -> None:
    """``fault``: an errno, or 0 for half a write."""
    destination, receipts = first(path)
    LIBC.fault_arm(call, fault or errno.ENOSPC, int(not fault), int(lasting))
    failure = None
    try:
        destination.publish(receipts)
    except ConnectorError as error:
        failure = error
    finally:
        struck = LIBC.fault_heal()
    if failure:
        assert struck, failure
        assert failure.error is ErrorClass.TRANSIENT, failure
        assert not failure.busy, failure
    marker = destination.marker(TABLE)
    assert marker is not None
    assert marker.seq == 3 or failure, "acknowledged, and not there"
    assert rows(path) == STATES[marker.seq], (marker.seq, rows(path))
    destination.publish(receipts)
    assert rows(path) == STATES[3], rows(path)
    load(destination, request(4, mode=Mode.MERGE, key=KEY), orders(4))
    assert rows(path) == f"{STATES[3]} n4", rows(path)
    assert leftovers(path.parent) == []


def trials(path: Path) -> list[tuple[int, int, bool]]:
    """Each call, each fault that it can meet, once and for good."""
    destination, receipts = first(path)
    LIBC.fault_arm(0, 0, 0, 0)
    destination.publish(receipts)
    LIBC.fault_heal()
    found = []
    for call, kind in enumerate(LIBC.fault_kinds().decode(), start=1):
        faults = {"w": (errno.EIO, errno.ENOSPC, 0), "t": (errno.EIO,), "u": (errno.EIO,)}
        for fault in faults.get(kind, (errno.EIO, errno.ENOSPC)):
            for lasting in (False, True):
                found.append((call, fault, lasting))
    return found


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(folder: Path, long_log: str) -> None:
    """``long_log``: when DuckDB makes a checkpoint by itself."""
    with mock.patch.object(duckdb_file, "LONG_LOG", long_log):
        for number, (call, fault, lasting) in enumerate(trials(folder / "good" / "shop.duckdb")):
            kind = errno.errorcode.get(fault, "half a write")
            tell(f"call {call}, {kind}, {'for good' if lasting else 'once'}")
            place = folder / str(number)
            try:
                attempt(place / "shop.duckdb", call, fault, lasting=lasting)
            except Exception as error:
                tell(f"wrong: {error!r}")
            else:
                shutil.rmtree(place)
    tell("to the end")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
