"""Named points between durable steps, at which a test may have the process killed.

A test seam and nothing else. ``RECONCILER_TEST_KILL_AT="name:nth"`` in the environment of a
worker makes the process send itself SIGKILL when it passes the point ``name`` for the nth time
(counted from 1; ``:nth`` may be left out). Nothing is flushed, closed or unwound: what is on disk
is what a crash at that place leaves. Without the variable a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
import threading

VARIABLE = "RECONCILER_TEST_KILL_AT"

_name, _, _nth = os.environ.get(VARIABLE, "").partition(":")
_lock = threading.Lock()
_left = int(_nth or 1)


def point(name: str) -> None:
    """Die here if a test asked for it. ``name`` is dotted: ``parquet.publish.renamed``."""
    if name != _name:
        return
    global _left  # noqa: PLW0603 - one count for the one process that is to die
    with _lock:
        _left -= 1
        if _left > 0:
            return
    os.kill(os.getpid(), signal.SIGKILL)
