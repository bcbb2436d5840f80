"""Worlds of one simulated day each; a seed that goes wrong is named with how to see it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def worlds(*args: str) -> str:
    """What went wrong in the worlds that ``args`` name; nothing if all is well."""
    command = [sys.executable, "-m", "tests.simulation", "--jobs", "2", "--keep-going", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_in_no_world_of_the_first_three_hundred_goes_anything_wrong() -> None:
    assert worlds("--seeds", "0-299") == ""


@pytest.mark.slow
def test_in_no_world_of_ten_thousand_goes_anything_wrong() -> None:
    assert worlds("--seeds", os.environ.get("RECONCILER_TEST_SEEDS", "0-9999")) == ""


def test_a_seed_gives_the_same_story_again() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seed", "56", "--verbose"]
    first, again = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert first.splitlines()[:-2] == again.splitlines()[:-2]
    assert len(first.splitlines()) > 100
