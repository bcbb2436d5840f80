"""Verbs that look at now: status, why, plan, leases. They change nothing."""

from __future__ import annotations

import shlex

from catalog.port import Catalog
from catalog.records import HolderState, PipelineState, StreamState
from reconciler.cli import desk, options, output
from reconciler.cli.desk import Place
from reconciler.cli.failure import Exit
from reconciler.cli.grammar import verb
from reconciler.cli.holds import tell_hold
from reconciler.cli.standing import Standing, standings
from reconciler.cli.target import Target, parse

_PANEL = "Look"


@verb("status", _PANEL, "status shop")
def status(
    target: options.AnyTarget = "", config: options.Config = None, json: options.Json = False
) -> int:
    """Show how the pipelines stand, or one of them with its streams."""
    place = desk.find(config)
    if target:
        return _status_of(place, parse(target), as_json=json)
    found = desk.with_catalog(place, lambda catalog: standings(place, catalog))
    up = place.daemon_up()
    if json:
        pipelines = [standing.record() for standing in found]
        output.emit({"project": place.project, "daemon_up": up, "pipelines": pipelines})
        return Exit.GOOD
    output.print_line(f"project {place.project}, daemon {'up' if up else 'down'}\n")
    if not found:
        output.print_line("No pipelines yet. Write one into the config, then check it:")
        output.next_step(f"$EDITOR {shlex.quote(str(place.config))}", "reconciler check")
        return Exit.GOOD
    _standing_table(found)
    return Exit.GOOD


def _standing_table(found: list[Standing]) -> None:
    now = desk.now_us()
    rejected = any(s.state.rejected for s in found)
    output.table(
        (
            *("pipeline", "state", "last run", "when", "rows"),
            *(("rejected",) if rejected else ()),
            *("next", "reason"),
        ),
        [
            (
                s.state.name,
                s.word,
                s.state.last_outcome or "-",
                output.ago(s.state.last_finished_at, now),
                f"{s.state.rows:,}",
                *((f"{s.state.rejected:,}",) if rejected else ()),
                output.ago(s.next_at, now),
                s.reason,
            )
            for s in found
        ],
    )


def _status_of(place: Place, target: Target, *, as_json: bool) -> int:
    async def read(catalog: Catalog) -> tuple[Standing, tuple[StreamState, ...]]:
        await desk.must_know(place, catalog, target)
        (standing,) = await standings(place, catalog, target.pipeline)
        if target.stream:
            return standing, (await desk.must_know_stream(place, catalog, target),)
        return standing, await catalog.streams(target.pipeline)

    standing, streams = desk.with_catalog(place, read)
    if as_json:
        records = [{**output.plain(s), "orphaned": standing.orphaned(s.stream)} for s in streams]
        output.emit({**standing.record(), "streams": records})
        return Exit.GOOD
    _standing_table([standing])
    if streams:
        output.print_line()
        _stream_table(standing, streams)
    for stream in streams:
        tell_hold(stream)
    return Exit.GOOD


def _stream_table(standing: Standing, streams: tuple[StreamState, ...]) -> None:
    now = desk.now_us()
    output.table(
        ("stream", "last run", "rows", "cursor", "data", "batch", "schema", "note"),
        [
            (
                s.stream,
                "held" if s.hold else s.last_outcome or "-",
                f"{s.rows:,}",
                s.cursor.position.text if s.cursor else "-",
                output.ago(s.data_at, now),
                s.seq if s.seq == s.published else f"{s.seq} ({s.published} published)",
                s.schema_version or "-",
                "orphaned: the config names it no more"
                if standing.orphaned(s.stream)
                else s.directive or s.last_reason,
            )
            for s in streams
        ],
    )


@verb("leases", _PANEL, "leases")
def leases(config: options.Config = None, json: options.Json = False) -> int:
    """Show who holds which pipeline now, and the processes that may."""
    place = desk.find(config)

    async def read(catalog: Catalog) -> tuple[list[PipelineState], tuple[HolderState, ...]]:
        states = await desk.all_states(catalog)
        return [s for s in states.values() if s.holder], await catalog.holders()

    held, holders = desk.with_catalog(place, read)
    if json:
        names = ("name", "epoch", "holder", "lease_expires_at", "lapsed")
        records = [{n: output.plain(s)[n] for n in names} for s in held]
        for record in records:
            record["pipeline"] = record.pop("name")
        output.emit({"leases": records, "holders": output.plain(holders)})
        return Exit.GOOD
    now = desk.now_us()
    if held:
        output.table(
            ("pipeline", "run", "holder", "expires"),
            [
                (
                    s.name,
                    s.epoch,
                    s.holder,
                    "lapsed" if s.lapsed else output.ago(s.lease_expires_at, now),
                )
                for s in held
            ],
        )
    else:
        output.print_line("No pipeline is held: nothing runs now.")
    alive = tuple(h for h in holders if h.leases or not h.lapsed)
    if alive:
        output.print_line()
        _holder_table(alive, now)
    return Exit.GOOD


def _holder_table(holders: tuple[HolderState, ...], now: int) -> None:
    output.table(
        ("holder", "host", "pid", "leases", "expires"),
        [
            (
                h.holder.id,
                h.holder.host,
                h.holder.pid,
                h.leases,
                "lapsed" if h.lapsed else output.ago(h.expires_at, now),
            )
            for h in holders
        ],
    )
