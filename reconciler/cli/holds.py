"""Held streams: what they wait for, and the commands that answer."""

from __future__ import annotations

from catalog.records import StreamState
from reconciler.cli import output
from reconciler.cli.target import name_of
from reconciler.plan.why import commands


def tell_hold(stream: StreamState) -> None:
    """Say why a stream is held and what to type to end that; nothing when it is not."""
    if stream.hold is None:
        return
    name = str(name_of(stream))
    output.print_line(f"\n{name} is held: {stream.hold.reason}")
    output.print_line("Answer with one of:")
    output.next_step(*commands(name, stream.hold.choices))
