"""Verbs of the state: cursor get|set|adopt|rewind and schema [diff]."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import typer

from catalog.port import Catalog
from catalog.records import (
    Adopt,
    Cursor,
    Decision,
    HoldKind,
    SchemaVersion,
    SetCursor,
    StreamState,
)
from reconciler.cli import desk, grammar, options, output
from reconciler.cli.desk import Place
from reconciler.cli.editing import How, Plan, edit
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.grammar import verb
from reconciler.cli.history import must_know_stream
from reconciler.cli.target import Target, parse, parse_stream

_PANEL = "State"
grammar.app.add_typer(grammar.cursor, name="cursor", rich_help_panel=_PANEL)
_DOUBLES = "Rows beyond it are read again: with mode append they would be there twice."


@verb("get", _PANEL, "cursor get shop.public.orders", under=grammar.cursor)
def cursor_get(
    target: options.AnyTarget, config: options.Config = None, json: options.Json = False
) -> int:
    """Show where a stream's cursor is, or those of all streams of a pipeline."""
    place = desk.find(config)
    wanted = parse(target)

    async def read(catalog: Catalog) -> tuple[StreamState, ...]:
        if wanted.stream:
            return (await must_know_stream(place, catalog, wanted),)
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
                (s.stream, s.seq, s.cursor.position.text, s.cursor.kind, s.cursor.definition)
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
        stream = await _stream(place, catalog, target)
        if stream.cursor is None:
            raise Failure(
                f"{_name(stream)} has no cursor yet, so it is not known what kind of value "
                "it takes.",
                Exit.FAILED,
                f"Run it once first: reconciler run {_name(stream)}",
            )
        return _moved(stream, _cursor_at(stream.cursor, value))

    return edit(How(config, json, dry_run, why), prepare)


def _cursor_at(cursor: Cursor, value: str) -> Cursor:
    from catalog.position import BadPosition, encode

    try:
        position = encode(cursor.position.tag, value)
    except BadPosition as error:
        raise Failure(f"{value} cannot be a position of this cursor: {error}", Exit.USAGE) from None
    return Cursor(cursor.kind, cursor.definition, position)


def _moved(stream: StreamState, cursor: Cursor | None) -> Plan:
    name = _name(stream)
    at = cursor.position.text if cursor else "the beginning"
    was = stream.cursor.position.text if stream.cursor else "none"
    return Plan(
        (SetCursor(stream.pipeline, stream.stream, cursor),),
        f"The cursor of {name} is at {at} now (it was {was}).",
        (f"reconciler run {name}",),
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
    """Accept the destination as it is: the next run sets its marker to what the catalog says."""

    async def prepare(place: Place, catalog: Catalog) -> Plan:
        stream = await _stream(place, catalog, target)
        done = f"The next run of {_name(stream)} takes its table over as it is."
        action = Adopt(stream.pipeline, stream.stream)
        return Plan((action,), done, (f"reconciler run {_name(stream)}",))

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
        stream = await _stream(place, catalog, target)
        if to_batch is None:
            return _to_destination(stream)
        commits = await catalog.commits(stream.pipeline, stream.stream, limit=10_000)
        found = next((c.cursor for c in commits if c.seq == to_batch and c.cursor), None)
        if found is None:
            raise Failure(
                f"The catalog has no batch {to_batch} of {_name(stream)} with a cursor.",
                Exit.NOTHING,
                f"See its batches: reconciler show {_name(stream)}",
            )
        return _moved(stream, found)

    return edit(How(config, json, dry_run, why), prepare)


class _MarkerDetail(NamedTuple):
    seq: int
    cursor: Cursor | None


def _to_destination(stream: StreamState) -> Plan:
    hold = stream.hold
    if hold is None or hold.kind is not HoldKind.DESTINATION:
        raise Failure(
            f"{_name(stream)} is not held because of its destination: the two agree, or no run "
            "has looked yet.",
            Exit.NOTHING,
            f"Look: reconciler run {_name(stream)}",
        )
    marker = _marker(hold.detail)
    if marker is None:
        raise Failure(
            f"The destination has no marker of this stream to rewind to: {hold.reason}",
            Exit.HELD,
            f"Its answers: reconciler show {_name(stream)}",
        )
    at = marker.cursor.position.text if marker.cursor else "the beginning"
    action = SetCursor(
        stream.pipeline, stream.stream, marker.cursor, seq_at_least=marker.seq, adopt=True
    )
    done = f"The cursor of {_name(stream)} is at {at}, as the destination has it."
    return Plan((action,), done, (f"reconciler run {_name(stream)}",))


def _marker(detail: str) -> _MarkerDetail | None:
    import msgspec

    try:
        found = msgspec.json.decode(detail or "{}", type=dict[str, Any])
        if "seq" not in found:
            return None
        cursor = msgspec.convert(msgspec.json.decode(detail)["cursor"], type=Cursor | None)
    except (msgspec.MsgspecError, KeyError):
        return None
    return _MarkerDetail(int(found["seq"]), cursor)


# -- schema --------------------------------------------------------------------------------------


@verb("schema", _PANEL, "schema diff shop.public.orders")
def schema(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[diff] PIPELINE.STREAM",
            help="A stream; with diff: what changed last, or what is proposed.",
            show_default=False,
        ),
    ],
    config: options.Config = None,
    json: options.Json = False,
) -> int:
    """Show a stream's schema and its versions, or with diff the last or proposed change."""
    diff = words[0] == "diff"
    if len(words) != 1 + diff:
        raise Failure(
            "schema takes one PIPELINE.STREAM.", Exit.USAGE, "reconciler schema diff shop.orders"
        )
    place = desk.find(config)
    story = desk.with_catalog(place, lambda catalog: _read_schemas(place, catalog, words[-1]))
    if not story.versions and not (diff and story.stream.hold):
        raise Failure(f"{_name(story.stream)} has no schema yet.", Exit.NOTHING)
    return (_diff if diff else _versions)(story, as_json=json)


class _Schemas(NamedTuple):
    stream: StreamState
    versions: tuple[SchemaVersion, ...]
    decisions: tuple[Decision, ...]


async def _read_schemas(place: Place, catalog: Catalog, text: str) -> _Schemas:
    stream = await _stream(place, catalog, text)
    return _Schemas(
        stream,
        await catalog.schemas(stream.pipeline, stream.stream),
        await catalog.decisions(stream.pipeline, stream.stream),
    )


def _versions(story: _Schemas, *, as_json: bool) -> int:
    from reconciler.schema.model import load

    newest = load(story.versions[-1].body)
    if as_json:
        versions = [{**output.plain(v), "body": output.plain(load(v.body))} for v in story.versions]
        output.emit(
            {
                "pipeline": story.stream.pipeline,
                "stream": story.stream.stream,
                "versions": versions,
                "decisions": output.plain(story.decisions),
            }
        )
        return Exit.GOOD
    output.print_line(f"{_name(story.stream)}, version {story.versions[-1].version}\n")
    output.table(
        ("column", "type", "key", "null"),
        [
            (f.name, f.type, "key" if f.name in newest.key else "", "yes" if f.nullable else "no")
            for f in newest.fields
        ],
    )
    output.print_line()
    output.table(
        ("version", "fingerprint", "since", "run"),
        [(v.version, v.fingerprint, output.iso(v.created_at), v.epoch) for v in story.versions],
    )
    if story.decisions:
        output.print_line()
        output.table(
            ("decided", "answer", "by", "to", "why"),
            [(output.iso(d.at), d.answer, d.by, d.fingerprint, d.why) for d in story.decisions],
        )
    return Exit.GOOD


def _diff(story: _Schemas, *, as_json: bool) -> int:
    """The held proposal against the version it starts from; else the last two versions."""
    old, new, title = _two(story)
    from reconciler.schema.changes import compare

    changes = compare(old, new)
    if as_json:
        hold = story.stream.hold
        proposed = hold.fingerprint if hold and hold.kind is HoldKind.SCHEMA else ""
        output.emit(
            {
                "pipeline": story.stream.pipeline,
                "stream": story.stream.stream,
                "fingerprint": proposed,
                "changes": output.plain(changes),
            }
        )
        return Exit.GOOD
    output.print_line(title)
    for change in changes:
        output.next_step(str(change))
    if not changes:
        output.next_step("no change")
    return Exit.GOOD


def _two(story: _Schemas) -> tuple[Any, Any, str]:
    import msgspec

    from reconciler.schema.model import Schema, load

    name, hold = _name(story.stream), story.stream.hold
    bodies = {v.version: load(v.body) for v in story.versions}
    if hold is not None and hold.kind is HoldKind.SCHEMA:
        proposed = msgspec.convert(msgspec.json.decode(hold.detail)["schema"], type=Schema)
        old = bodies.get(hold.from_version, Schema(()))
        return old, proposed, f"{name}: version {hold.from_version} to {hold.fingerprint}, held"
    if len(story.versions) < 2:
        raise Failure(f"{name} has had one schema only; nothing changed.", Exit.NOTHING)
    before, last = story.versions[-2].version, story.versions[-1].version
    return bodies[before], bodies[last], f"{name}: version {before} to {last}"


async def _stream(place: Place, catalog: Catalog, text: str) -> StreamState:
    target = parse(text)
    if not target.stream:
        await desk.must_know(place, catalog, target)
        parse_stream(text, [s.stream for s in await catalog.streams(target.pipeline)])
    return await must_know_stream(place, catalog, target)


def _name(stream: StreamState) -> str:
    return str(Target(stream.pipeline, stream.stream))
