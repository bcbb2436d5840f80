"""The container file keeps to what it promises: no root, nothing fetched but packages."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "deploy/container/Containerfile"


def lines() -> list[str]:
    text = FILE.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_it_ends_as_an_ordinary_user() -> None:
    users = [line for line in lines() if line.startswith("USER ")]
    assert len(users) == 1
    assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", users[0])
    after = lines()[lines().index(users[0]) :]
    assert not [line for line in after if line.startswith(("RUN", "COPY", "ADD"))]


def test_it_has_a_health_check_and_a_base_that_can_be_replaced() -> None:
    assert [line for line in lines() if line.startswith("HEALTHCHECK")]
    assert lines()[0].startswith("ARG BASE=")
    assert [line for line in lines() if line.startswith("FROM")] == [
        "FROM ${BASE} AS build",
        "FROM ${BASE}",
    ]


def test_all_that_it_copies_is_there() -> None:
    for line in lines():
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (FILE.parents[2] / name).exists()


def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([program, str(FILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
