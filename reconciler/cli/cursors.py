"""Verbs of the state: cursor get|set|adopt|rewind."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
import typer
from msgspec import Struct

from catalog.port import Catalog
from catalog.records import (
    Adopt,
    Cursor,
    CursorKind,
    Hold,
    HoldKind,
    SetCursor,
    StreamState,
)
from reconciler.cli import desk, grammar, options, output
from reconciler.cli.desk import Place
from reconciler.cli.editing import How, Plan, edit
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.grammar import verb
from reconciler.cli.target import name_of, parse

_PANEL = "State"
grammar.app.add_typer(grammar.cursor, name="cursor", rich_help_panel=_PANEL)
_DOUBLES = "Rows beyond it are read again: with mode append they would be there twice."
_AS_IT_IS = (
    "Rows up to the catalog's cursor that the table lacks are not read again; rows beyond it are, "
    "and with mode append those that it has would be there twice."
)


@verb("get", _PANEL, "cursor get shop.public.orders", under=grammar.cursor)
def cursor_get(
    target: options.AnyTarget, config: options.Config = None, json: options.Json = False
) -> int:
    """Show where a stream's cursor is, or those of all streams of a pipeline."""
    place = desk.find(config)
    wanted = parse(target)

    async def read(catalog: Catalog) -> tuple[StreamState, ...]:
        if wanted.stream:
            return (await desk.must_know_stream(place, catalog, wanted),)
        await desk.must_know(place, catalog, wanted)
        return await catalog.streams(wanted.pipeline)

    streams = desk.with_catalog(place, read)
    if json:
        keep = ("pipeline", "stream", "seq", "published", "cursor", "data_at", "directive")
        output.emit([{key: output.plain(s)[key] for key in keep} for s in streams])
    elif streams:
        output.table(
            ("stream", "batch", "cursor", "kind", "of"),
            [
                (
                    s.stream,
                    s.seq,
                    s.cursor.position.text,
                    s.cursor.kind,
                    output.cursor_of(s.cursor.definition),
                )
                if s.cursor
                else (s.stream, s.seq, "none", "-", "-")
                for s in streams
            ],
        )
    else:
        output.note(f"{wanted} has read nothing yet.")
    return Exit.GOOD if streams else Exit.NOTHING


@verb("set", _PANEL, "cursor set shop.public.orders 2026-11-01T00:00:00Z", under=grammar.cursor)
def cursor_set(
    target: options.StreamName,
    value: Annotated[
        str,
        typer.Argument(
            metavar="VALUE", help="As 'cursor get' shows it: a time, a number.", show_default=False
        ),
    ],
    why: options.Why = "",
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Put a stream's cursor somewhere else; the next run reads what lies beyond it."""

    async def prepare(place: Place, catalog: Catalog) -> Plan:
        stream = await desk.one_stream(place, catalog, target)
        name = name_of(stream)
        if stream.cursor is None:
            raise Failure(
                f"{name} has no cursor yet, so it is not known what kind of value it takes.",
                Exit.FAILED,
                "It is held; first answer that: reconciler why " + name.typed
                if stream.hold
                else f"Run it once first: reconciler run {name.typed}",
            )
        if _taken(stream.cursor, stream.hold)[0] is CursorKind.SNAPSHOT_ID:
            raise Failure(
                f"{name} reads what it has not read yet, or everything: its cursor counts reads, "
                "and is no place among the rows.",
                Exit.USAGE,
                "Files that later batches brought are read again by: reconciler cursor rewind "
                f"{name.typed} --to-batch N",
            )
        return _moved(stream, _cursor_at(stream.cursor, stream.hold, value))

    return edit(How(config, json, dry_run, why), prepare)


def _taken(cursor: Cursor, hold: Hold | None) -> tuple[CursorKind, str, str]:
    """Kind, definition and tag of what a stream's cursor is set to: those that it has; or the new
    ones, where the stream is held because its cursor's definition changed.
    """
    if hold is None or hold.kind is not HoldKind.DEFINITION or "cursor set" not in hold.choices:
        return cursor.kind, cursor.definition, cursor.position.tag
    new = msgspec.json.decode(hold.detail, type=dict[str, str])
    return CursorKind(new["kind"]), new["definition"], new["tag"]


def _cursor_at(cursor: Cursor, hold: Hold | None, text: str) -> Cursor:
    """The stream's cursor at the position that a person wrote."""
    from catalog import position

    kind, definition, tag = _taken(cursor, hold)
    what = output.cursor_of(definition)
    at = f"It is at {cursor.position.text} now."
    try:
        found = position.parse(tag, text)
    except position.BadPosition as error:
        raise Failure(f"This cursor, {what}, cannot be set so: {error}", Exit.USAGE, at) from error
    if tag == cursor.position.tag == "text" and what == output.cursor_of(cursor.definition):
        _must_sort_with(cursor.position.text, text, what, at)
    return Cursor(kind, definition, found)


def _must_sort_with(old: str, new: str, what: str, at: str) -> None:
    """Times kept as text are compared as text: one written in another way would pass rows over."""
    form, wanted = (re.sub(r"\d", "0", text) for text in (new, old))
    if wanted.startswith("0000-00-00") and not (form.startswith(wanted) or wanted.startswith(form)):
        raise Failure(
            f"This cursor, {what}, is text and is compared as text, so a time must be written as "
            f"the source writes it, not {new!r}.",
            Exit.USAGE,
            at,
        )


def _moved(stream: StreamState, cursor: Cursor | None, batch: int | None = None) -> Plan:
    name = name_of(stream)
    at = cursor.position.text if cursor else "the beginning"
    was = stream.cursor.position.text if stream.cursor else "none"
    return Plan(
        (SetCursor(stream.pipeline, stream.stream, cursor, forget_after=batch),),
        f"The cursor of {name} is at {at} now (it was {was}).",
        (f"reconciler run {name.typed}",),
        _DOUBLES,
    )


@verb("adopt", _PANEL, "cursor adopt shop.public.orders", under=grammar.cursor)
def cursor_adopt(
    target: options.StreamName,
    why: options.Why = "",
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Accept the destination as it is: the next run sets its marker to what the catalog says.

    A stream that is not held may be told so too, as where files were removed from a Parquet table.
    """

    async def prepare(place: Place, catalog: Catalog) -> Plan:
        from reconciler.run.mismatch import AGREES

        stream = await desk.one_stream(place, catalog, target)
        seen = AGREES if stream.hold is None else _must_be_held(stream).detail
        done = f"The next run of {name_of(stream)} takes its table over as it is."
        action = Adopt(stream.pipeline, stream.stream, seen)
        return Plan((action,), done, (f"reconciler run {name_of(stream).typed}",), _AS_IT_IS)

    return edit(How(config, json, dry_run, why), prepare)


@verb(
    "rewind",
    _PANEL,
    "cursor rewind shop.public.orders --to-destination",
    under=grammar.cursor,
)
def cursor_rewind(
    target: options.StreamName,
    to_destination: Annotated[
        bool, typer.Option("--to-destination", help="To where the destination's marker is.")
    ] = False,
    to_batch: Annotated[
        int | None,
        typer.Option("--to-batch", metavar="N", min=1, help="To where it was after batch N."),
    ] = None,
    why: options.Why = "",
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Put a stream's cursor back to where the destination is, or to an earlier batch."""
    if to_destination == (to_batch is not None):
        raise Failure(
            "Say where to rewind to, in one way.",
            Exit.USAGE,
            "Either --to-destination or --to-batch N; 'refresh' reads all again.",
        )

    async def prepare(place: Place, catalog: Catalog) -> Plan:
        stream = await desk.one_stream(place, catalog, target)
        if to_batch is None:
            return _to_destination(stream)
        back = max(stream.seq - to_batch + 1, 1)
        commits = await catalog.commits(stream.pipeline, stream.stream, limit=back)
        found = next((c.cursor for c in commits if c.seq == to_batch and c.cursor), None)
        if found is None:
            raise Failure(
                f"The catalog has no batch {to_batch} of {name_of(stream)} with a cursor.",
                Exit.NOTHING,
                f"See its batches: reconciler show {name_of(stream).typed}",
            )
        if found.kind is CursorKind.SNAPSHOT_ID and to_batch < stream.ledger_from:
            raise Failure(
                f"What {name_of(stream)} had read up to batch {to_batch} is not known any more: "
                f"at batch {stream.ledger_from} its reading began anew.",
                Exit.NOTHING,
                f"Read all again: reconciler refresh {name_of(stream).typed}",
            )
        return _moved(stream, found, to_batch)

    return edit(How(config, json, dry_run, why), prepare)


class _Marker(Struct):
    """What a hold keeps of the marker that the run saw, as ``run.mismatch.marker_detail`` says."""

    seq: int
    epoch: int
    cursor: Cursor | None


def _to_destination(stream: StreamState) -> Plan:
    from reconciler.run.mismatch import REWIND

    hold = _must_be_held(stream)
    marker = _marker(hold)
    if marker is None or REWIND not in hold.choices:
        raise Failure(
            f"There is nothing at the destination to rewind {name_of(stream)} to: {hold.reason}",
            Exit.HELD,
            f"Its answers: reconciler show {name_of(stream).typed}",
        )
    at = marker.cursor.position.text if marker.cursor else "the beginning"
    action = SetCursor(
        stream.pipeline,
        stream.stream,
        marker.cursor,
        seq_at_least=marker.seq,
        adopt=True,
        seen=hold.detail,
        forget_after=marker.seq,
        forget_later=marker.epoch,
    )
    done = f"The cursor of {name_of(stream)} is at {at}, as the destination has it."
    return Plan((action,), done, (f"reconciler run {name_of(stream).typed}",))


def _must_be_held(stream: StreamState) -> Hold:
    """What the last run saw of the destination: an answer is for that, and no other."""
    hold = stream.hold
    if hold is None or hold.kind is not HoldKind.DESTINATION:
        raise Failure(
            f"{name_of(stream)} is not held because of its destination: the two agree, or no run "
            "has looked yet.",
            Exit.NOTHING,
            f"Look: reconciler run {name_of(stream).typed}",
        )
    return hold


def _marker(hold: Hold) -> _Marker | None:
    try:
        return msgspec.json.decode(hold.detail, type=_Marker)
    except msgspec.MsgspecError:
        return None
