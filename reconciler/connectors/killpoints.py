"""Named points between durable steps, at which a test may have the process killed.

A test seam and nothing else. ``RECONCILER_TEST_KILL_AT="name:nth"`` in the environment of a
worker makes the process send itself SIGKILL when it passes the point ``name`` for the nth time
(counted from 1; ``:nth`` may be left out). Nothing is flushed, closed or unwound: what is on disk
is what a crash at that place leaves. Without the variable a point costs one comparison.

``RECONCILER_TEST_PAUSE_AT`` stops it instead, as SIGSTOP or a debugger would, once for the name.
"""

from __future__ import annotations

import os
import signal
import threading

VARIABLE = "RECONCILER_TEST_KILL_AT"
PAUSE_VARIABLE = "RECONCILER_TEST_PAUSE_AT"

_kill, _, _nth = os.environ.get(VARIABLE, "").partition(":")
_pause = os.environ.get(PAUSE_VARIABLE, "")
_lock = threading.Lock()
_left = int(_nth or 1)


def point(name: str) -> None:
    """Die or stop here if a test asked for it. ``name`` is dotted: ``parquet.publish.renamed``."""
    if name == _kill and _reached():
        os.kill(os.getpid(), signal.SIGKILL)
    if name == _pause and _reached():
        os.kill(os.getpid(), signal.SIGSTOP)


def _reached() -> bool:
    """This is the pass that was asked for: the nth, and no other."""
    global _left  # noqa: PLW0603 - one count for the one process that is to die
    with _lock:
        _left -= 1
        return _left == 0
