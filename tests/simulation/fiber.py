"""Blocking code that takes turns with the world: a thread of its own, of which never two run.

``Fiber.go`` lets the code run until it parks or ends; ``park``, called by the code, gives the turn
back. Threads are kept and used again, since a world has thousands of runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ClassVar


class Killed(BaseException):
    """Raised inside a fiber whose process was ended."""


class _Thread:
    """A thread that runs one fiber after the other."""

    _idle: ClassVar[list[_Thread]] = []

    def __init__(self) -> None:
        self.mine, self.theirs = threading.Lock(), threading.Lock()
        self.mine.acquire()
        self.theirs.acquire()
        self.work: Callable[[], None] = lambda: None
        threading.Thread(target=self._serve, name="fiber", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self.mine.acquire()
            self.work()
            self._idle.append(self)
            self.theirs.release()

    @classmethod
    def take(cls) -> _Thread:
        return cls._idle.pop() if cls._idle else cls()


class Fiber:
    """``work`` in turns with who calls ``go``."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._killed = False
        self.over = False
        self.error: BaseException | None = None
        self._thread = _Thread.take()
        self._thread.work = self._run

    def _run(self) -> None:
        try:
            if not self._killed:
                self._work()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.over = True

    def go(self) -> None:
        """Let it run until it parks or ends. Raises what it raised."""
        if self.over:
            return
        self._thread.mine.release()
        self._thread.theirs.acquire()
        if self.error is not None:
            raise self.error

    def park(self) -> None:
        """Give the turn back, from inside; returns at the next ``go``. Raises ``Killed``."""
        self._thread.theirs.release()
        self._thread.mine.acquire()
        if self._killed:
            raise Killed

    def kill(self) -> None:
        """End it where it is parked: what it would do on the way out meets a dead process."""
        self._killed = True
        self.go()
