"""``python -m tests.fuzz TARGET --seconds N``: a target under Atheris, guided by coverage.

Atheris is no dependency of this project: ``pip install atheris`` first, into an environment that
has it. What it finds is printed and written to a file by it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> int:
    """Run one target for so long; the exit code is that of the fuzzer."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a name out of tests/fuzz/targets.py, or 'list'")
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.stderr.write("Atheris is not installed here: pip install atheris\n")
        return 2
    with atheris.instrument_imports(include=["catalog", "reconciler"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    if args.target not in TARGETS:
        sys.stderr.write(f"The targets are {', '.join(TARGETS)}.\n")
        return 2
    corpus = Path(tempfile.mkdtemp(prefix="reconciler-fuzz-"))
    for number, seed in enumerate(SEEDS[args.target]):
        (corpus / f"seed{number}").write_bytes(seed)
    options = [
        f"-max_total_time={args.seconds}",
        f"-artifact_prefix={corpus}/",
        "-timeout=20",
        "-rss_limit_mb=4096",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[args.target])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
