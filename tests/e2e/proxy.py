"""A TCP line that a test can stall, cut, slow down and mend, between a daemon and its source."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress


class Proxy:
    """Forwards to a port of this host. Serves on a thread of its own until ``close``."""

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self._target, self._host = target, host
        self._lines: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False
        self._pause_s = 0.0
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,))
        self._thread.start()
        ready.wait()

    # -- what a test does ------------------------------------------------------------------------

    def stall(self) -> None:
        """Nothing moves any more, and nobody is told."""
        self._call(self._flows.clear)

    def cut(self) -> None:
        """Every line is reset, and new ones are refused."""
        self._refuses = True
        self._call(self._reset)

    def slow(self, pause_s: float) -> None:
        """From the target one byte at a time, with pauses."""
        self._pause_s = pause_s

    def mend(self) -> None:
        """All is well again; what had been held back goes on."""
        self._refuses, self._pause_s = False, 0.0
        self._call(self._flows.set)

    def close(self) -> None:
        """End it; lines are reset."""
        self.mend()
        self._call(self._reset)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, what: Callable[[], None]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (what(), done.set()))
        done.wait(10)

    # -- on the thread ---------------------------------------------------------------------------

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._line, self._host, 0, limit=1 << 16)
        )
        self.port = int(server.sockets[0].getsockname()[1])
        ready.set()
        self._loop.run_forever()
        server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    def _reset(self) -> None:
        for line in tuple(self._lines):
            for end in line:
                _abort(end)

    async def _line(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        if self._refuses:
            _abort(back)
            return
        try:
            far, forth = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _abort(back)
            return
        line = (back, forth)
        self._lines.add(line)
        with suppress(asyncio.CancelledError):  # the proxy is closed; asyncio would log it
            await asyncio.gather(self._pump(near, forth), self._pump(far, back, slowly=True))
        self._lines.discard(line)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, slowly: bool = False
    ) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                await self._flows.wait()
                while slowly and self._pause_s and data and not sink.is_closing():
                    sink.write(data[:1])
                    data = data[1:]
                    await asyncio.sleep(self._pause_s)
                    await self._flows.wait()
                if sink.is_closing():
                    break
                sink.write(data)
                await sink.drain()
        sink.close()


def _abort(end: asyncio.StreamWriter) -> None:
    sock = end.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.transport.abort()
