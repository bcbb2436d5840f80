"""Every way to be wrong has a file, and the message that a person gets for it.

``tests/config_bad/NAME.toml`` is wrong in the way its name says; ``NAME.expected`` is all that is
said about it. Neither message nor problem may show what a secret holds.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.config import ConfigError, load

BAD = Path(__file__).parent.parent / "config_bad"
ENV = {"SHOP_DB_PASSWORD": "hunter2", "EMPTY": ""}


def complaint(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, ENV)
    return caught.value


@pytest.mark.parametrize("path", sorted(BAD.glob("*.toml")), ids=lambda p: p.stem)
def test_a_wrong_file_gets_its_message(path: Path) -> None:
    error = complaint(path)
    assert str(error).replace(f"{BAD}/", "") + "\n" == path.with_suffix(".expected").read_text()


@pytest.mark.parametrize("path", sorted(BAD.glob("*.toml")), ids=lambda p: p.stem)
def test_a_problem_names_file_and_line_and_no_secret(path: Path) -> None:
    error = complaint(path)
    for problem in error.problems:
        assert problem.file == path
        assert 1 <= problem.line <= len(path.read_text().splitlines()) + 1
    assert "hunter" not in f"{error}{error!r}{error.problems}"
    assert error.__cause__ is None


def test_every_message_belongs_to_a_file() -> None:
    assert {p.stem for p in BAD.glob("*.expected")} == {p.stem for p in BAD.glob("*.toml")}
