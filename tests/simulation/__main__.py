"""``python -m tests.simulation``: worlds by seed."""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
import sys
import time

import structlog

from tests.simulation.plants import PLANTS, planted
from tests.simulation.play import Problem, play

_WORLDS = 50
"""So many in one process: each leaves a megabyte behind, which is quicker lost than collected."""


def main() -> int:
    """Run what the command line names; the exit code is 1 when a world went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one world")
    parser.add_argument("--seeds", default="0-99", help="worlds A-B")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--days", type=float, default=1.0, help="simulated days of each world")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="a fault, which is to be found")
    parser.add_argument("--verbose", action="store_true", help="tell the story")
    parser.add_argument(
        "--keep-going", action="store_true", help="on after a world that went wrong"
    )
    args = parser.parse_args()
    _quiet()
    with planted(args.plant) if args.plant else contextlib.nullcontext():
        return _many(args) if args.seed is None else _one(args)


def _one(args: argparse.Namespace) -> int:
    problem = play(args.seed, args.days, print if args.verbose else None)
    print(problem or f"seed {args.seed}: all is well")
    return int(problem is not None)


def _many(args: argparse.Namespace) -> int:
    first, _, last = args.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    began, bad = time.monotonic(), 0
    work = [(seed, args.days) for seed in seeds]
    fork = multiprocessing.get_context("fork")
    with fork.Pool(args.jobs, gc.disable, maxtasksperchild=_WORLDS) as pool:
        for problem in pool.imap_unordered(_play, work, chunksize=1):
            if problem is None:
                continue
            bad += 1
            print(problem, flush=True)
            if not args.keep_going:
                pool.terminate()
                return 1
    seconds = time.monotonic() - began
    print(f"{len(seeds)} worlds of {args.days:g} days in {seconds:.0f} s, {bad} went wrong")
    return int(bad > 0)


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def _play(work: tuple[int, float]) -> Problem | None:
    return play(*work)


if __name__ == "__main__":
    sys.exit(main())
