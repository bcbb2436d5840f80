"""``reconciler bench``: measures this installation on this machine, beside the machine's floors."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from reconciler.cli.benchmarks.measure import Measure

PARTS = ("catalog", "runs", "data", "process")


def main(*, json: bool, only: list[str]) -> int:
    """Run the parts named, or all, and print each figure as it is known.

    Returns 0 when all goals were met, 1 when one was missed, 2 for a part that does not exist.
    """
    unknown = [part for part in only if part not in PARTS]
    if unknown:
        print(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)  # noqa: T201
        return 2
    measures = []
    for part in only or PARTS:
        with tempfile.TemporaryDirectory(prefix="reconciler-bench-") as folder:
            for measure in _part(part)(Path(folder)):
                measures.append(measure)
                if not json:
                    print(line(measure), flush=True)  # noqa: T201
    if json:
        import msgspec

        print(msgspec.json.encode([asdict(m) for m in measures]).decode())  # noqa: T201
    return 0 if all(measure.met for measure in measures) else 1


def _part(name: str) -> Callable[[Path], Iterator[Measure]]:
    module = import_module(f"reconciler.cli.benchmarks.{name}")
    found: Callable[[Path], Iterator[Measure]] = module.measure
    return found


def line(measure: Measure) -> str:
    """One figure for a person: met or not, value, floor and goal."""
    text = f"{'met   ' if measure.met else 'missed'}  {measure.name}: {_number(measure.value)} "
    text += f"{measure.unit}; goal: {measure.goal}"
    if measure.floor:
        text += f"; floor: {_number(measure.floor)} {measure.unit} ({measure.floor_is})"
        text += f", {measure.value / measure.floor:.2f}x"
    return text + (f"; {measure.note}" if measure.note else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
