"""The entry of the command ``reconciler``: dispatch, and what becomes of errors.

Nothing heavy is imported here. ``run`` in its plain form goes straight to its work, without the
argument parser: it is the command that is typed most, and a new shell is its starting point.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextvars import copy_context
from pathlib import Path
from typing import NamedTuple

from reconciler.cli.failure import Exit, Failure, describe, tame

INTERRUPTED = 130
"""After Ctrl-C, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command line (None: this process's) and return its exit code.

    Never raises and never shows a traceback, unless ``RECONCILER_DEBUG=1`` asks for it.
    """
    if argv is None:
        _have_names_in_utf8()
    args = list(sys.argv[1:] if argv is None else argv)
    _open_what_is_closed()
    context = copy_context()
    try:
        code = context.run(_dispatch, args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.GOOD
    except BaseException as error:
        if isinstance(error, GeneratorExit | SystemExit):
            raise
        return context.run(_failed, error)
    return code


def _have_names_in_utf8() -> None:
    """Start anew where the locale has files' names in another encoding, as Python does by itself
    from 3.15 on: SQLite and DuckDB know UTF-8 alone, and would not find what Python makes."""
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"  # for workers too
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - itself


def _open_what_is_closed() -> None:
    """Standard streams that whoever started this left closed. Else the next file that is opened
    gets the number of one, and has what is printed in it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does by itself
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _refuse_no_text(args: list[str]) -> None:
    """Names and values go into the catalog and onto the screen, which hold text."""
    for number, arg in enumerate(args, 1):
        try:
            arg.encode()
        except UnicodeEncodeError:
            shown = arg.encode("utf-8", "backslashreplace").decode()
            raise Failure(f'Word {number}, "{shown}", is no UTF-8 text.', Exit.USAGE) from None


def _dispatch(args: list[str]) -> int:
    _refuse_no_text(args)
    if not args:
        from reconciler.cli.start import welcome

        return welcome()
    plain = plain_run(args)
    if plain is not None:
        from reconciler.cli.running import run_target

        return run_target(plain.target, plain.config, as_json=plain.json)
    from reconciler.cli.app import invoke

    return invoke(args)


class PlainRun(NamedTuple):
    """``run TARGET`` with no other options than ``--config`` and ``--json``."""

    target: str
    config: Path | None
    json: bool


def plain_run(args: Sequence[str]) -> PlainRun | None:
    """The command line read as a plain ``run``; None: it is something for the parser."""
    words: list[str] = []
    config: Path | None = None
    as_json = False
    rest = iter(args)
    for arg in rest:
        if arg == "--config":
            path = next(rest, None)
            if path is None:
                return None
            config = Path(path)
        elif arg.startswith("--config="):
            config = Path(arg.partition("=")[2])
        elif arg == "--json" and words:
            as_json = True
        elif arg.startswith("-"):
            return None
        else:
            words.append(arg)
    if len(words) != 2 or words[0] != "run":
        return None
    return PlainRun(words[1], config, as_json)


def _failed(error: BaseException) -> int:
    if os.environ.get("RECONCILER_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    failure = describe(error) or Failure(
        f"Something went wrong that nobody foresaw: {type(error).__name__}: {error}",
        hint="Type it again with RECONCILER_DEBUG=1 in front to see where.",
    )
    sys.stderr.write(f"reconciler: {tame(str(failure))}\n")
    if failure.hint:
        sys.stderr.write(f"{tame(_as_typed(failure.hint))}\n")
    return failure.code


def _as_typed(hint: str) -> str:
    """What is to be typed, after a colon, is for the config that this command was about."""
    said, colon, commands = hint.partition(": reconciler ")
    if not colon:
        return hint
    from reconciler.cli.output import as_typed

    return f"{said}: " + "; ".join(map(as_typed, f"reconciler {commands}".split("; ")))
