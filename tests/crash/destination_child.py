"""The process that is killed: loads batch 2 of the kit's table, told where and how."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pyarrow as pa

from reconciler.config.desired import Mode
from reconciler.connectors.destinations import rows
from reconciler.connectors.ports import RejectedRow
from reconciler.connectors.registry import open_destination
from tests.destination_kit import batch, cursor, orders, request


def main() -> None:
    kind, path, mode = sys.argv[1], Path(sys.argv[2]), Mode(sys.argv[3])
    rows.GROUP_ROWS = rows.PART_BYTES = 1  # each row a file: there is a middle to be killed in
    destination = open_destination("target", kind, {"path": str(path)})
    wanted = request(2, mode=mode, key=("id",))
    stage = destination.stage(wanted)
    for order in orders(3, 4):
        block: pa.RecordBatch = batch(wanted, [order])
        stage.write(block)
    stage.reject([RejectedRow("a.csv:7", "no number", "x;y")])
    receipt = stage.seal(cursor(2))
    path.with_name("receipt.json").write_bytes(msgspec.json.encode(receipt))
    destination.publish([receipt])


if __name__ == "__main__":
    main()
