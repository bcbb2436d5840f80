"""What happened, judged by rules that know nothing of the code: only records, rows and the clock.

``History.after`` is told of each catalog transaction and compares the rows before with those after.
Every rule that is broken raises ``Wrong`` at the moment when it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NoReturn

import msgspec
from msgspec.structs import replace

from catalog.clock import Clock
from catalog.memory import MemoryStore
from catalog.position import decode
from catalog.records import (
    PIPELINE_SCOPE,
    Adopt,
    Commit,
    HoldKind,
    Outcome,
    PipelineState,
    Refresh,
    Rename,
    Run,
    SetCursor,
    StreamState,
    TriggerKind,
)
from reconciler.config.desired import Mode, Project
from reconciler.connectors.ports import BatchName, Owner, Receipt
from tests.simulation.destination import Content, Warehouse
from tests.simulation.folder import Folder
from tests.simulation.source import Database, Row
from tests.simulation.vtime import START_US, World
from tests.simulation.wrong import Rule, Wrong

_OF_DESTINATION = (HoldKind.DESTINATION, HoldKind.LOST_BATCH)
_PUT_BACK = 50 * 10**6
"""Microseconds by which clocks of daemons do not differ unless one was set."""
_UNCONSUMED = (Outcome.INTERRUPTED, Outcome.FENCED)


@dataclass(slots=True)
class Seen:
    """A run as the history saw it."""

    run: Run
    began: float
    """The world's time."""
    ended: float | None = None
    outcome: Outcome | None = None


@dataclass(slots=True)
class History:
    """All that was seen, and the rules."""

    world: World
    store: MemoryStore
    database: Database
    warehouse: Warehouse
    project: Callable[[], Project]
    is_dead: Callable[[str], bool]
    clock: Callable[[], Clock]
    pipelines: dict[str, PipelineState] = field(default_factory=dict)
    streams: dict[tuple[str, str], StreamState] = field(default_factory=dict)
    runs: dict[int, Seen] = field(default_factory=dict)
    last: dict[str, Seen] = field(default_factory=dict)
    """By pipeline: its newest run."""
    commits: dict[tuple[str, str, int], Commit] = field(default_factory=dict)
    batches: set[BatchName] = field(default_factory=set)
    """Every batch ever committed."""
    replaced: dict[Owner, int] = field(default_factory=dict)
    """The last batch that replaced all before it."""
    discarded: set[BatchName] = field(default_factory=set)
    waived: dict[str, set[int]] = field(default_factory=dict)
    """By table: versions that may be missing, since a person said so or a backup lacks them."""
    answered: dict[str, list[float]] = field(default_factory=dict)
    """By pipeline: when runs that consumed their trigger began."""
    news: dict[str, list[float]] = field(default_factory=dict)
    """By pipeline: when its runs brought something new."""
    shaken: set[str] = field(default_factory=set)
    """Tables that were emptied or restored since data was last checked."""
    last_epoch: int = 0

    # -- after each transaction -----------------------------------------------------------------

    def after(self, who: str, verb: str, args: tuple[Any, ...], answer: Any) -> None:
        """Judge what a transaction changed, and what was done at the destination before it."""
        self._publishes()
        self._discards()
        if verb == "edit" and isinstance(args[3], Rename):
            self._renamed(args[3].was, args[3].pipeline)
        changed = [
            new for new in self.store.pipelines.values() if self.pipelines.get(new.name) is not new
        ]
        for new in sorted(changed, key=lambda state: state.change):
            self._pipeline(who, verb, self.pipelines.get(new.name) or PipelineState(new.name), new)
            self.pipelines[new.name] = new
        for key, stream in self.store.streams.items():
            before = self.streams.get(key)
            if stream is not before:
                self._stream(verb, args, before or StreamState(*key), stream)
                self.streams[key] = stream
        if verb == "commit":
            for commit in answer:
                self._commit(args[1], commit)
        if verb == "edit" and isinstance(args[3], Adopt):
            self._adopted(args[3])
        if verb == "edit" and isinstance(args[3], SetCursor) and args[3].adopt:
            self._rewound(args[3])

    def _renamed(self, was: str, name: str) -> None:
        """What was seen by one name is of another from now on."""
        for by_name in (self.pipelines, self.last, self.answered, self.news):
            if was in by_name:
                by_name[name] = by_name.pop(was)
        for key in [key for key in self.streams if key[0] == was]:
            self.streams[name, key[1]] = self.streams.pop(key)
        for key in [key for key in self.commits if key[0] == was]:
            self.commits[name, *key[1:]] = replace(self.commits.pop(key), pipeline=name)

    def restored(self) -> None:
        """The catalog is an older one: what was seen since is not in it. Epochs still only rise."""
        self.pipelines, self.streams = dict(self.store.pipelines), dict(self.store.streams)
        self.commits = dict(self.store.commits)
        self.last.clear()
        self.news.clear()
        self.replaced.clear()
        self.shaken.update(self.database.tables)

    def _wrong(self, rule: Rule, text: str) -> NoReturn:
        self.world.fault = Wrong(rule, f"at {self.world.now:.3f}: {text}")
        raise self.world.fault

    def _pipeline(self, who: str, verb: str, old: PipelineState, new: PipelineState) -> None:
        name = new.name
        if new.version <= old.version:
            self._wrong(Rule.ONE_WRITER, f"{name}: version {old.version} became {new.version}")
        if old.holder and (new.holder, new.epoch) != (old.holder, old.epoch):
            self._closed(verb, old, new)
        if new.epoch != old.epoch:
            if verb != "claim":
                self._wrong(Rule.ONE_WRITER, f"{name}: a {verb} changed its epoch")
            self._claimed(who, old, new)
        if new.news > old.news:
            self.news.setdefault(name, []).append(self.world.now)
        if new.news < old.news or new.rows < old.rows:
            self._wrong(Rule.ONE_WRITER, f"{name}: what it brought became less")

    def _claimed(self, who: str, old: PipelineState, new: PipelineState) -> None:
        name, run = new.name, self.store.runs[new.epoch]
        if new.epoch <= self.last_epoch:
            self._wrong(
                Rule.ONE_WRITER, f"{name}: epoch {new.epoch} was issued after {self.last_epoch}"
            )
        self.last_epoch = new.epoch
        if old.paused or old.parked:
            self._wrong(Rule.ASIDE, f"{name}: run {new.epoch} began while it was put aside")
        if old.holder and old.holder != new.holder and not self._may_be_taken(old.holder):
            self._wrong(
                Rule.ONE_WRITER, f"{name}: {who} took the lease of {old.holder}, which lives"
            )
        self._not_restarted(name, run)
        self._within_limits(run)
        self.runs[run.epoch] = self.last[name] = Seen(run, self.world.now)
        self.world.say(f"{who} began run {run.epoch} of {name}: {run.trigger.kind}: {run.reason}")

    def _may_be_taken(self, holder: str) -> bool:
        beat = self.store.holders.get(holder)
        clock = self.clock()
        if beat is None or beat.boot_id != clock.boot_id or beat.expires_ns <= clock.boot_ns():
            return True
        return self.is_dead(holder)

    def _within_limits(self, new: Run) -> None:
        """Runs of the living on its connections, the new one included."""
        open_runs = [
            state
            for state in self.store.pipelines.values()
            if state.holder and not self._may_be_taken(state.holder)
        ]
        for name in new.connections:
            of = [s for s in open_runs if name in self.store.runs[s.epoch].connections]
            limit = self.project().connections[name].max_runs
            if limit is not None and len(of) > limit:
                self._wrong(Rule.LIMITS, f"connection {name} has {len(of)} runs at once")

    def _not_restarted(self, name: str, run: Run) -> None:
        """A cancelled run does not begin again by itself, unless its hour comes again: the clock
        was put back."""
        last = self.last.get(name)
        if last is None or last.outcome is not Outcome.CANCELLED:
            return
        if run.started_at < last.run.started_at - _PUT_BACK:
            return
        old, new = last.run.trigger, run.trigger
        again = new.kind is TriggerKind.RETRY or (
            new.kind is old.kind
            and new.kind is not TriggerKind.AFTER
            and (new.tick, new.request) == (old.tick, old.request)
        )
        if again:
            self._wrong(
                Rule.TRIGGER,
                f"{name}: run {last.run.epoch} was cancelled and began again: {run.reason}",
            )

    def _closed(self, verb: str, old: PipelineState, new: PipelineState) -> None:
        name, run = new.name, self.store.runs.get(old.epoch)
        if run is None or run.outcome is None or run.finished_at is None:
            self._wrong(
                Rule.ONE_WRITER, f"{name}: its lease was released and run {old.epoch} is still open"
            )
            return
        seen = self.runs[old.epoch]
        seen.ended, seen.outcome, trigger = self.world.now, run.outcome, run.trigger
        self.world.say(f"run {run.epoch} of {name} ended {run.outcome}: {run.reason}")
        if "fault of its own" in run.reason:
            self._wrong(Rule.ALIVE, f"run {run.epoch} of {name}: {run.reason}")
        if run.outcome in _UNCONSUMED:
            request = old.request if verb == "edit" else new.request
            kept = (new.tick, new.after_seen, request)
            if kept != (old.tick, old.after_seen, old.request):
                self._wrong(
                    Rule.TRIGGER,
                    f"{name}: run {run.epoch} ended {run.outcome} and took its trigger",
                )
            return
        self.answered.setdefault(name, []).append(seen.began)
        if trigger.tick is not None and (new.tick or 0) < trigger.tick:
            self._wrong(Rule.TRIGGER, f"{name}: run {run.epoch} did not consume its tick")
        if trigger.request and new.request and new.request.id == trigger.request:
            self._wrong(Rule.TRIGGER, f"{name}: run {run.epoch} did not consume its request")

    def _stream(self, verb: str, args: tuple[Any, ...], old: StreamState, new: StreamState) -> None:
        where = f"{new.pipeline}.{new.stream}"
        edited = verb == "edit"
        if new.seq < old.seq or new.published < old.published or new.published > new.seq:
            self._wrong(
                Rule.SEQUENCE,
                f"{where}: seq {old.seq} -> {new.seq}, {old.published} -> {new.published}",
            )
        if new.seq != old.seq and verb not in ("commit", "edit"):
            self._wrong(Rule.SEQUENCE, f"{where}: a {verb} changed its seq")
        if old.hold is not None and new.seq != old.seq and not edited:
            self._wrong(Rule.ASIDE, f"{where}: is held and got a batch: {old.hold.reason}")
        if new.cursor != old.cursor and not edited:
            replaces = verb == "commit" and any(b.replaces for b in args[2])
            if verb != "commit":
                self._wrong(Rule.CURSOR, f"{where}: a {verb} moved its cursor")
            moved = old.cursor is not None and new.cursor is not None and not replaces
            if moved and new.cursor.position.data < old.cursor.position.data:
                self._wrong(Rule.CURSOR, f"{where}: its cursor went back")
        if new.hold is not None and new.hold != old.hold:
            self.world.say(f"{where} is held: {new.hold.kind}: {new.hold.reason}")
            # Who has not heard yet of a new name looks for its table by the old one, and is held.
            is_ours = new.pipeline in self.project().pipelines
            if is_ours and new.hold.kind in _OF_DESTINATION and new.stream not in self.shaken:
                text = f"{where} is held, and nobody touched its table: {new.hold.reason}"
                self._wrong(Rule.HOLD, text)
        if edited and isinstance(args[3], SetCursor | Refresh):
            self.world.say(f"{where}: {args[3]}")

    def _commit(self, lease: Any, commit: Commit) -> None:
        key = (commit.pipeline, commit.stream, commit.seq)
        if key in self.commits:
            if self.commits[key] != commit:
                self._wrong(Rule.ONE_WRITER, f"{key} was committed twice")
            return
        self.commits[key] = commit
        newest = self.pipelines[commit.pipeline]
        if (commit.epoch, lease.holder) != (newest.epoch, newest.holder):
            self._wrong(
                Rule.ONE_WRITER,
                f"{key} was committed by epoch {commit.epoch}, {newest.epoch} is current",
            )
        receipt = msgspec.json.decode(commit.receipt, type=Receipt)
        self.batches.add(receipt.name)
        if receipt.mode is Mode.REPLACE:
            self.replaced[receipt.name.owner] = commit.seq
        there = self.warehouse.holds(receipt.name, receipt.table)
        if commit.stream not in self.shaken and (receipt.name in self.discarded or not there):
            self._wrong(Rule.COMMIT_POINT, f"{key} is committed and not durable at the destination")
        if receipt.name.seq != commit.seq or receipt.name.epoch != commit.epoch:
            self._wrong(Rule.SEQUENCE, f"{key}: its receipt is of {receipt.name}")
        self.world.say(
            f"committed {commit.pipeline}.{commit.stream} seq {commit.seq} epoch {commit.epoch}: "
            f"{commit.rows} rows up to {commit.cursor.position.text if commit.cursor else None}"
        )
        self._nothing_passed(commit.pipeline, commit.stream)

    def _publishes(self) -> None:
        """Only what is committed becomes visible."""
        for table, name in self.warehouse.on_publish:
            if name not in self.batches:
                self._wrong(Rule.COMMIT_POINT, f"{table}: {name} was published, not committed")
        self.warehouse.on_publish.clear()

    def _discards(self) -> None:
        """A committed batch is discarded only once it is published."""
        for name in self.warehouse.on_discard:
            self.discarded.add(name)
            shaken = name.owner.stream in self.shaken
            void = self.replaced.get(name.owner, 0) > name.seq
            if name in self.batches and not (shaken or void or self._is_published(name)):
                self._wrong(Rule.DISCARD, f"{name} is committed, not published, and was discarded")
        self.warehouse.on_discard.clear()

    def _is_published(self, name: BatchName) -> bool:
        content = self.warehouse.durable.get(name.owner.stream, Content())
        return content.marker is not None and content.marker.seq >= name.seq

    # -- data -----------------------------------------------------------------------------------

    def durable(self, pipeline: str, stream: str) -> tuple[set[int], set[int]]:
        """Versions that are written at the destination, or sealed, committed and still to be
        published; and set aside."""
        origin = self.store.pipelines[pipeline].origin or pipeline
        row = self.store.streams.get((pipeline, stream))
        published = row.published if row else 0
        content = self.warehouse.durable.get(stream, Content())
        written, aside = set(content.versions()), set(content.rejected)
        for name, staged in self.warehouse.staged.items():
            mine = (name.owner.pipeline, name.owner.stream) == (origin, stream)
            waits = name in self.batches and name.seq > published
            if mine and staged.receipt is not None and waits:
                written |= {v for _, v in staged.rows}
                aside |= staged.rejected
        return written, aside

    def _nothing_passed(self, pipeline: str, stream: str) -> None:
        """Each row below the cursor is durable at the destination."""
        table = self.database.tables[stream]
        if isinstance(table, Folder):
            if stream not in self.shaken and (lost := self._lost(pipeline, table)):
                text = f"{pipeline}.{stream}: the ledger has rows {lost[:5]}, which are not durable"
                self._wrong(Rule.AHEAD, text)
            return
        cursor = self.store.streams[(pipeline, stream)].cursor
        if cursor is None or cursor.position.tag != "timestamp" or stream in self.shaken:
            return
        limit = decode(cursor.position)
        assert isinstance(limit, int)
        written, aside = self.durable(pipeline, stream)
        known = written | aside | self.waived.get(stream, set())
        for row in self.database.tables[stream].rows.values():
            if row.at < limit and row.v not in known:
                text = f"{pipeline}.{stream}: the cursor passed row {row}, which is not durable"
                self._wrong(Rule.AHEAD, text)

    def _read(self, pipeline: str, folder: Folder) -> Iterator[Row]:
        """The rows of all that the ledger says was read."""
        for entry in self.store.files.get((pipeline, folder.name), {}).values():
            yield from folder.contents[entry.hash]

    def _lost(self, pipeline: str, folder: Folder) -> list[Row]:
        """Rows that were read, and neither they nor, if they are merged, later ones are durable."""
        written, aside = self.durable(pipeline, folder.name)
        known = written | aside | self.waived.get(folder.name, set())
        lost = [row for row in self._read(pipeline, folder) if row.v not in known]
        if not lost or folder.mode is not Mode.MERGE:
            return lost
        return [row for row in lost if not any(v > row.v for v in folder.of[row.id] & written)]

    def _adopted(self, edit: Adopt) -> None:
        """A person accepted the destination as it is: what it lacks so far may be missing."""
        self.waive(edit.pipeline, edit.stream)

    def _rewound(self, edit: SetCursor) -> None:
        """A destination that a lost catalog refreshed lacks the files that had gone away by then,
        which this one read: as after any refresh, nobody can bring their rows."""
        folder = self.database.tables[edit.stream]
        if isinstance(folder, Folder):
            lying = {row.v for file in folder.files.values() for row in file.rows}
            lost = {row.v for row in self._lost(edit.pipeline, folder)}
            self.waived.setdefault(edit.stream, set()).update(lost - lying)

    def waive(self, pipeline: str, stream: str) -> None:
        """What the destination lacks of the rows that were visible so far may stay missing."""
        if stream == PIPELINE_SCOPE:
            return
        written, aside = self.durable(pipeline, stream)
        table = self.database.tables[stream]
        rows = self._read(pipeline, table) if isinstance(table, Folder) else table.log
        there = {row.v for row in rows}
        waived = self.waived.setdefault(stream, set())
        waived.update(there - written - aside)
        if isinstance(table, Folder) and table.mode is Mode.REPLACE:
            waived.update(written)  # and what it has may stay, whatever the files have by now

    def check_data(self) -> None:
        """After a quiet time: every row of every stream is there, exactly once."""
        for pipeline in self.project().pipelines.values():
            for stream, settings in pipeline.streams.items():
                table = self.database.tables[stream]
                if isinstance(table, Folder):
                    self._check_folder(pipeline.name, table)
                else:
                    self._check_table(pipeline.name, stream, settings.mode)
        self.shaken.clear()

    def _check_folder(self, pipeline: str, folder: Folder) -> None:
        """Each row of each content that lies there, and of all that the ledger says was read, is
        there once; if rows are merged, it or a later one of its id."""
        content = self.warehouse.tables.get(folder.name, Content())
        where = f"{pipeline}.{folder.name} (files, {folder.mode})"
        there = self._no_doubles(where, content)
        lying = {row for file in folder.files.values() for row in file.rows}
        may_miss = self.waived.get(folder.name, set()) | content.rejected
        missing = [row for row in lying if row.v not in there and row.v not in may_miss]
        if folder.mode is Mode.MERGE:
            missing = [row for row in missing if content.by_key.get(row.id, 0) < row.v]
        if missing := missing or self._lost(pipeline, folder):
            rows = sorted(missing, key=lambda row: row.v)[:5]
            self._wrong(Rule.ONCE, f"{where}: rows missing at the destination: {rows}")
        has = lying if folder.mode is Mode.REPLACE else chain(*folder.contents.values())
        if strange := there - {row.v for row in has} - may_miss:
            self._wrong(Rule.ONCE, f"{where}: rows that no file has: {sorted(strange)[:5]}")

    def _no_doubles(self, where: str, content: Content) -> set[int]:
        there = content.versions()
        if len(set(there)) != len(there):
            doubles = sorted(v for v, count in Counter(there).items() if count > 1)
            self._wrong(Rule.ONCE, f"{where}: rows twice at the destination: {doubles[:5]}")
        return set(there)

    def _check_table(self, pipeline: str, stream: str, mode: Mode) -> None:
        table, content = self.database.tables[stream], self.warehouse.tables.get(stream, Content())
        where = f"{pipeline}.{stream} ({mode})"
        there = self._no_doubles(where, content)
        wanted = (
            {r.v for r in table.log} if mode is Mode.APPEND else {r.v for r in table.rows.values()}
        )
        may_miss = self.waived.get(stream, set()) | content.rejected
        if missing := wanted - there - may_miss:
            self._wrong(
                Rule.ONCE, f"{where}: rows missing at the destination: {sorted(missing)[:5]}"
            )
        if mode is not Mode.MERGE and (strange := there - wanted):
            self._wrong(Rule.ONCE, f"{where}: rows that the source has not: {sorted(strange)[:5]}")
        if mode is Mode.MERGE:
            newest = {r.id: r.v for r in table.rows.values()}
            for id_, v in content.by_key.items():
                if v != newest[id_] and newest[id_] not in may_miss:
                    self._wrong(
                        Rule.ONCE, f"{where}: row {id_} is at {v}, the source has {newest[id_]}"
                    )

    # -- liveness -------------------------------------------------------------------------------

    def just_began(self) -> bool:
        """A run is under way that began a moment ago."""
        recent = list(self.runs.values())[-5:]
        return any(seen.ended is None and seen.began > self.world.now - 60 for seen in recent)

    def check_settled(self, since: float) -> None:
        """After a quiet time since ``since``: nothing waits, nothing is open, nothing is held."""
        for name in self.project().pipelines:
            state = self.store.pipelines.get(name) or PipelineState(name)
            if state.request is not None:
                self._wrong(
                    Rule.SETTLED, f"{name}: the request of {state.request.by} was never answered"
                )
            if state.holder:
                self._wrong(
                    Rule.SETTLED,
                    f"{name}: run {state.epoch} by {state.holder} is open and never ends",
                )
            if state.held or state.paused or state.parked:
                self._wrong(Rule.SETTLED, f"{name}: is still put aside: {state}")
            if state.last_outcome not in (Outcome.SUCCEEDED, Outcome.NOTHING_NEW):
                self._wrong(
                    Rule.SETTLED,
                    f"{name}: its last run ended {state.last_outcome}: {state.last_reason}",
                )
            if not any(began >= since for began in self.answered.get(name, ())):
                self._wrong(Rule.SETTLED, f"{name}: did not run since {since:.0f}")
            for stream in self.project().pipelines[name].streams:
                row = self.store.streams.get((name, stream)) or StreamState(name, stream)
                if row.published != row.seq:
                    self._wrong(
                        Rule.SETTLED,
                        f"{name}.{stream}: {row.seq} batches, {row.published} published",
                    )

    def check_answered(self, name: str, tick_us: int, bound: float) -> None:
        """A tick was answered by a run that began in time."""
        at = (tick_us - START_US) / 1e6
        if not any(at - 1 <= began <= at + bound for began in self.answered.get(name, ())):
            self._wrong(
                Rule.IN_TIME, f"{name}: nothing ran for its tick at {at:.0f} within {bound:.0f} s"
            )

    def check_followed(self, upstream: str, name: str, since: float, bound: float) -> None:
        """Whatever ``upstream`` brought since then was followed by a run in time."""
        for at in self.news.get(upstream, ()):
            followed = any(at <= began <= at + bound for began in self.answered.get(name, ()))
            if since <= at <= self.world.now - bound and not followed:
                self._wrong(
                    Rule.IN_TIME, f"{name}: nothing ran within {bound:.0f} s of {upstream}'s news"
                )

    def check_open_runs(self) -> None:
        """Every open run is its pipeline's current one, held by somebody."""
        for run in self.store.runs.values():
            state = self.store.pipelines[run.pipeline]
            if run.outcome is None and (state.epoch != run.epoch or not state.holder):
                self._wrong(Rule.SETTLED, f"run {run.epoch} of {run.pipeline} is open for ever")
