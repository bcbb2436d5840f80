"""The whole command line: the verbs of every module, and the parser run over it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Each of these declares its verbs when it is imported.
from reconciler.cli import (  # noqa: F401
    backups,
    cursors,
    grammar,
    history,
    look,
    planning,
    schemas,
    serving,
    start,
    steer,
    upkeep,
)
from reconciler.cli.failure import Exit, tame

grammar.in_order(
    (
        *("init", "discover", "check", "run", "serve"),
        *("status", "why", "plan", "runs", "show", "logs", "leases"),
        *("pause", "resume", "cancel", "retry", "approve", "reject", "refresh"),
        *("schema", "bench"),
    )
)


def invoke(args: Sequence[str]) -> int:
    """Parse and carry out; a usage error is a sentence, the usage line, and code 2."""
    try:
        code = grammar.app(list(args), prog_name="reconciler", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _usage(error)
    return code if isinstance(code, int) else Exit.GOOD


def _usage(error: Exception) -> int:
    context = getattr(error, "ctx", None)
    sys.stderr.write(f"reconciler: {tame(error.format_message())}\n")  # type: ignore[attr-defined]
    if context is not None:
        sys.stderr.write(f"{context.get_usage()}\nTry: {context.command_path} --help\n")
    return Exit.USAGE
