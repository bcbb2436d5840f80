"""Loads the config in a process of its own, so that a daemon keeps only what the config says.

Parsing a large file and the models that check it take many times the memory of the result, and
Python gives little of it back: at 100,000 pipelines 404 MiB against 111 MiB measured. The child is
this same program, and what it sends is read from its pipe alone, which is why pickle may be used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

from reconciler.config import desired, problems
from reconciler.config.desired import Project
from reconciler.config.problems import ConfigError, Place, Problem

_Answer: TypeAlias = Project | tuple[Problem, ...]


def load_apart(path: Path) -> Project:
    """As ``load``, with this process's environment. Blocks for as long as loading takes.

    Raises ``ConfigError`` with every problem at once. A child that is killed (memory runs out), or
    cannot be started (too many processes, an interpreter that is just being replaced), does not
    take its daemon along: the config is loaded here then. A child of another version, installed
    since this process started, is not understood: its records may have other fields, and pickle
    would put values into wrong ones.
    """
    sent = _sent_by_child(path)
    if sent is None:
        from reconciler.config import load

        return load(path)
    pipe = io.BytesIO(sent)
    if pickle.load(pipe) != _layout():  # noqa: S301 - from our own child, as what follows
        text = "cannot be read: another version of this program was installed since it started"
        raise ConfigError([Problem(Place(path), "", text, hint="restart it")])
    answer: _Answer = pickle.load(pipe)  # noqa: S301
    if isinstance(answer, tuple):
        raise ConfigError(answer)
    return answer


def _sent_by_child(path: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "reconciler.config.apart", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=False,
        )
        if done.returncode == 0:
            return done.stdout
    return None


def _layout() -> list[tuple[str, list[str]]]:
    """The fields of all records that may be in an answer, in order."""
    return [
        (name, [field.name for field in dataclasses.fields(found)])
        for module in (desired, problems)
        for name, found in sorted(vars(module).items())
        if isinstance(found, type) and dataclasses.is_dataclass(found)
    ]


def main() -> None:
    """The child: load, and send the project or its problems."""
    from reconciler.config import load

    answer: _Answer
    try:
        answer = load(Path(sys.argv[1]))
    except ConfigError as error:
        answer = error.problems
    # Who asked may have been killed meanwhile: then nobody is to be told.
    with contextlib.suppress(BrokenPipeError), os.fdopen(1, "wb") as pipe:
        pickle.dump(_layout(), pipe, protocol=5)
        pickle.dump(answer, pipe, protocol=5)


if __name__ == "__main__":
    main()
