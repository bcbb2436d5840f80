"""``python -m tests.walks --seeds 0-99``: walks, one after the other; what is wrong is told."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.memory import MEMORY
from tests.servers import PostgresServer, private_postgres
from tests.walks.sources import Folder, Postgres, Source, Sqlite
from tests.walks.stage import Stage
from tests.walks.walk import Walk, Wrong


def _any_source(server: PostgresServer | None) -> Callable[[random.Random, Path], Source]:
    def one(chance: random.Random, folder: Path) -> Source:
        kind = chance.choice(("sqlite", "csv", "jsonl", "parquet", "postgres", "postgres"))
        by_time = chance.random() < 0.5
        if kind == "postgres" and server is not None:
            return Postgres(server, f"walk{os.getpid()}", by_time=by_time)
        if kind in ("sqlite", "postgres"):
            return Sqlite(folder, by_time=by_time)
        return Folder(folder, kind)

    return one


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.walks")
    parser.add_argument("--seeds", default="0-99", help="one, or the first and the last")
    parser.add_argument("--steps", type=int, default=30, help="of each walk")
    parser.add_argument("--postgres", action="store_true", help="a server of our own too")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    wrong = 0
    with ExitStack() as stack:
        stage = stack.enter_context(Stage())
        source = _any_source(stack.enter_context(private_postgres()) if options.postgres else None)
        for seed in range(int(first), int(last or first) + 1):
            with tempfile.TemporaryDirectory(prefix="reconciler-walk-", dir=MEMORY) as folder:
                print(seed, end=" ", flush=True, file=sys.stderr)
                try:
                    Walk(seed, Path(folder), stage, source).go(options.steps)
                except Wrong as error:
                    wrong += 1
                    print(error, flush=True)
    print(f"{options.seeds}: {wrong} walks went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
