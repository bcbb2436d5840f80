"""``python -m tests.soak``: live through a month, print what is seen, judge it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.memory import MEMORY
from tests.soak import samples, served
from tests.soak.month import PLANTS, Plan, play


def main() -> int:
    """The exit code is 1 when something grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--days", type=float, default=30.0, help="of the wall clock")
    parser.add_argument("--speed", type=float, default=20.0, help="of the wall clock; 1: all runs")
    parser.add_argument("--pipelines", type=int, default=200, help="each due once a minute")
    parser.add_argument("--keep-days", type=float, default=10.0, help="[retention] runs")
    parser.add_argument("--plant", default="", choices=["", *PLANTS], help="a leak to be found")
    parser.add_argument("--folder", default=MEMORY, help="what lies elsewhere waits for its disk")
    parser.add_argument("--serve", type=float, help="a real daemon instead, for so many seconds")
    args = parser.parse_args()
    if args.serve is not None:
        return _serve(args.serve, args.folder)
    plan = Plan(args.pipelines, args.days, args.speed, args.keep_days, plant=args.plant)
    began = time.monotonic()
    print(samples.head(samples.Sample), flush=True)
    with tempfile.TemporaryDirectory(prefix="reconciler-soak-", dir=args.folder) as folder:
        seen = play(plan, Path(folder), lambda s: print(samples.line(s), flush=True))
    problems = samples.judge(seen, args.keep_days)
    print(f"{time.monotonic() - began:.0f} s;", "; ".join(problems) or "all is flat")
    return int(bool(problems))


def _serve(seconds: float, where: str | None) -> int:
    print(samples.head(served.Look), flush=True)
    with tempfile.TemporaryDirectory(prefix="reconciler-soak-", dir=where) as folder:
        looks, problems = served.serve(
            Path(folder), seconds, lambda look: print(samples.line(look), flush=True)
        )
    problems += served.judge(looks)
    print("; ".join(problems) or "all is flat")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
