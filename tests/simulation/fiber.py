"""Blocking code that takes turns with the world, as a greenlet.

``Fiber.go`` lets the code run until it parks or ends; ``park``, called by the code, gives the turn
back.
"""

from __future__ import annotations

from collections.abc import Callable

import greenlet


class Killed(BaseException):
    """Raised inside a fiber whose process was ended."""


class Fiber:
    """``work`` in turns with who calls ``go``."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._killed = False
        self.over = False
        self.error: BaseException | None = None
        self._greenlet = greenlet.greenlet(self._run, _outermost())
        self._caller = self._greenlet

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
            self._greenlet.parent = self._caller  # where a greenlet goes that ends

    def go(self) -> None:
        """Let it run until it parks or ends. Raises what it raised."""
        if self.over:
            return
        self._caller = greenlet.getcurrent()
        self._greenlet.switch()
        if self.error is not None:
            raise self.error

    def park(self) -> None:
        """Give the turn back, from inside; returns at the next ``go``. Raises ``Killed``."""
        self._caller.switch()
        if self._killed:
            raise Killed

    def kill(self) -> None:
        """End it where it is parked: what it would do on the way out meets a dead process."""
        self._killed = True
        self.go()


def _outermost() -> greenlet.greenlet:
    """A fiber may end the one that began it: none is below another for longer than its end."""
    here = greenlet.getcurrent()
    while here.parent is not None:
        here = here.parent
    return here
