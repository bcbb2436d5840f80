"""Put before a worker by ``PYTHONPATH``: its runs of some pipelines answer as a broken one would.

The pipeline's name says how. Everything else, and every other process, is as ever.
"""

from __future__ import annotations

import json
import os
import sys
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import quote


def _frame(body: bytes, length: int | None = None) -> bytes:
    return (len(body) if length is None else length).to_bytes(4, "big") + body


def _answers(epoch: int) -> dict[str, bytes]:
    """What is written in place of an answer, by the pipeline's name."""
    from msgspec.msgpack import encode

    from reconciler.run import messages as m

    done: dict[str, Any] = {"type": "done", "streams": [], "published": {}, "epoch": epoch}
    result = {"stream": "orders", "outcome": "succeeded"}
    return {
        "garbage": _frame(b"\xff\xc1 no message"),
        "oversized": _frame(b"", 2**32 - 1),
        "no_text": _frame(b"\x81\xa4type\xa5\xff\xfe\xfd\xfc\xfb"),
        "nested": _frame(b"\x81\xa1a" * 100_000),
        "wrong_types": _frame(encode(done | {"streams": "all"})),
        "endless_wait": _frame(encode(done | {"retry_after": float("nan")})),
        "negative": _frame(encode(done | {"streams": [result | {"rows": -1}]})),
        "ready_again": m.frame(m.Ready()),
        "another_run": m.frame(m.AskCommit(1, (), {}, epoch - 1)),
        "silent": b"",
    }


def _forms(order: Any) -> str:
    """The secrets of its connections, as programs write such things."""
    values = [*order.source.secrets.values(), *order.destination.secrets.values()]
    return " ".join(
        f"{v} {quote(v, safe='')} {quote(v)} {v!r} {json.dumps(v)} {b64encode(v.encode()).decode()}"
        for v in values
    )


def _tell(order: Any) -> Any:
    """A failure whose every text has the secrets in it."""
    from catalog.records import ErrorClass, Hold, HoldKind, Outcome, StreamResult
    from reconciler.run import messages as m

    told = _forms(order)
    hold = Hold(HoldKind.DESTINATION, told, 1, ("retry",), detail=json.dumps(told))
    streams = (
        StreamResult("failing", Outcome.FAILED, told, ErrorClass.TRANSIENT),
        StreamResult("held", Outcome.HELD, told, hold=hold),
    )
    notes = (("failing", told),)
    failure = told if order.pipeline == "confessing" else ""
    return m.Done(streams, {}, notes, failure=failure, epoch=order.epoch)


def _wrap(whole: Callable[..., Any]) -> Callable[..., Any]:
    def execute(order: Any, link: Any, connections: Any) -> Any:
        if order.pipeline == "crashing":
            os.abort()
        if order.pipeline == "cut":
            link._sock.sendall(_frame(b"\x81", 1000))
            os._exit(0)
        if order.pipeline in ("telling", "confessing"):
            sys.stdout.write(f"{_forms(order)} {dict(os.environ)}\n")
            return _tell(order)
        if order.pipeline == "blurting":
            raise ValueError(_forms(order))
        answer = _answers(order.epoch).get(order.pipeline)
        if answer is not None:
            link._sock.sendall(answer)
            link.orders.get()  # until the daemon ends this process
        done = whole(order, link, connections)
        if order.pipeline == "twice":
            link.say(done)
        return done

    return execute


if "reconciler.run.worker" in sys.orig_argv:
    import reconciler.run.execute

    reconciler.run.execute.execute = _wrap(reconciler.run.execute.execute)
