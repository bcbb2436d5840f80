"""The bound of a read from PostgreSQL, found before its snapshot (C1, C2).

A transaction stamps its rows with the time it began and shows them when it commits. So a row may
appear below any clock reading that is later than the start of a transaction still open: the bound
stays below the start of the oldest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from catalog.records import ErrorClass
from reconciler.connectors.ports import ConnectorError, Stopped
from reconciler.connectors.sources import moments, postgres_columns
from reconciler.connectors.sources.relation import (
    QUERY,
    Bound,
    Relation,
    Wanted,
    quote,
    quote_text,
)
from reconciler.connectors.sources.session import Session

BY_CLOCK = frozenset({"timestamp", "naive_timestamp", "date"})
"""Tags read half-open, below a clock's reading."""
SETTLE = 1.0
SETTLE_BY_CLOCK_ALONE = 10.0
"""Where open transactions cannot be looked at or do not matter: C1."""
_POLL_SECONDS = 0.02
_IDLE_PRIMARY_SPEAKS = 45.0
"""Seconds; and some more than the half minute that PostgreSQL sets."""
# Not the clock as it was when the bound was found: rows are stamped until the snapshot is taken.
_PRESENT = "statement_timestamp()"
_CLOCK = """
WITH zone (name) AS (
  SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'
  UNION
  SELECT substr(setting, 10) FROM pg_db_role_setting s
  CROSS JOIN LATERAL unnest(s.setconfig) AS setting
  WHERE setting ~* '^TimeZone=[a-z<]' AND setting !~ '[ '']'
    AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
), east (name, micros) AS (
  SELECT name, (round(extract(epoch FROM (clock_timestamp() AT TIME ZONE name)
                                       - (clock_timestamp() AT TIME ZONE 'UTC'))) * 1000000)::int8
  FROM zone
)
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8, pg_is_in_recovery(),
       pg_has_role('pg_read_all_stats', 'USAGE'),
       EXISTS (SELECT FROM pg_subscription_rel),
       string_agg(name, ', ' ORDER BY micros) FILTER (
         WHERE micros <> 0 OR upper(name) NOT IN ('UTC', 'ETC/UTC', 'GMT')),
       least(min(micros), 0), greatest(max(micros), 0)
FROM east
"""
"""The zones are the server's, and those set for databases and roles: who writes has one of them."""
_SHOWN = """
SELECT (extract(epoch FROM CASE
  WHEN line.latest_end_lsn <= pg_last_wal_replay_lsn() THEN line.last_msg_send_time
  WHEN line.pid IS NOT NULL AND line.latest_end_lsn IS NULL
       AND pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN NULL
  ELSE coalesce(pg_last_xact_replay_timestamp(),
                (SELECT checkpoint_time FROM pg_control_checkpoint()))
END) * 1000000)::int8
FROM (SELECT) AS one LEFT JOIN pg_stat_wal_receiver AS line ON true
"""
"""Up to when a replica shows all. Once it has replayed what its primary has: when that last said
something, as an idle one does every half minute; NULL for a role that may not see it. Before, or
where it receives nothing now: when the newest that it shows was committed."""
_ORIGINS = """
WITH RECURSIVE below (oid, relkind) AS (
  SELECT oid, relkind FROM pg_class WHERE oid = {table}::regclass
  UNION
  SELECT c.oid, c.relkind FROM below b
  CROSS JOIN LATERAL (
    SELECT inhrelid FROM pg_inherits WHERE inhparent = b.oid
    UNION ALL
    SELECT d.refobjid FROM pg_rewrite r
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                    AND d.refclassid = 'pg_class'::regclass
    WHERE r.ev_class = b.oid AND r.ev_type = '1'
  ) AS part (oid)
  JOIN pg_class c ON c.oid = part.oid
  WHERE b.relkind <> 'm'
)
SELECT coalesce(bool_or(relkind = 'f'), false), coalesce(bool_or(relkind = 'm'), false) FROM below
"""
"""Whether rows come out of foreign tables or materialized views, also below views or partitions."""
READER = "reconciler, read only"
"""What our sessions are called in a read: no program that writes goes by it, as one may by
"reconciler"."""
_OURS = f"(application_name = '{READER}' AND usename = current_user) IS TRUE"
"""Reads of this role by this program, which write nothing however long they take."""
_OPEN = f"""
SELECT pid::int8, (extract(epoch FROM xact_start) * 1000000)::int8, coalesce(state, ''),
       backend_xid IS NOT NULL, coalesce(usename::text, '')
FROM pg_stat_activity
WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()
  AND datid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND backend_type NOT IN ('autovacuum worker', 'walsender') AND NOT {_OURS}
ORDER BY xact_start
"""
_PREPARED = """
SELECT gid::text, (extract(epoch FROM prepared) * 1000000)::int8
FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared
"""
_VIRTUAL = f"""
SELECT l.virtualtransaction::text, l.pid::int8
FROM pg_locks l
WHERE l.locktype = 'virtualxid' AND l.granted AND l.pid <> pg_backend_pid()
  AND EXISTS (SELECT 1 FROM pg_stat_activity a WHERE a.pid = l.pid
              AND a.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
              AND a.usesysid IS NOT NULL AND NOT {_OURS})
"""
"""An autovacuum, which is nobody's and takes hours, is seen as one without a user."""
_UNTOLD = _VIRTUAL.replace("a.pid = l.pid", "a.pid = l.pid AND a.state = 'disabled'")
"""Those of sessions with ``track_activities`` off: when they began stands nowhere."""


@dataclass(frozen=True, slots=True)
class _Clock:
    now: int
    replica: bool
    sees_others: bool
    subscribes: bool
    """Rows come from another database by logical replication, with the times it gave them."""
    zones: str | None
    """Other than UTC, that sessions have unless they set another."""
    behind: int
    ahead: int
    """How far UTC and those zones lie apart from UTC, in microseconds."""


def find(session: Session, wanted: Wanted) -> Bound:
    """Where a read by this column may end. Raises ``ConnectorError`` or ``Stopped`` if it waits."""
    if wanted.column.tag in BY_CLOCK:
        return _by_time(session, wanted)
    return _by_greatest(session, wanted)


def _by_greatest(session: Session, wanted: Wanted) -> Bound:
    """The greatest value there is: exact only if rows become visible in its order (C2)."""
    column, settings = wanted.column, wanted.settings
    if column.tag == "text":
        _refuse_other_order(session, column.name)
    operand, far = postgres_columns.operand(column), ""
    where = f"{quote(column.name)} IS NOT NULL"
    if column.tag == "decimal":
        version = int(session.value("SELECT current_setting('server_version_num')"))
        top = "'Infinity'" if version >= 140_000 else "'NaN'"
        where = f"{quote(column.name)} < {top}::numeric"
        far = f"{quote(column.name)} >= {top}::numeric"
    text = session.value(
        # The output has a name of its own: ORDER BY would take it, a text, for the column.
        f"SELECT {quote(column.name)}::text AS reconciler_greatest "
        f"FROM {wanted.relation.source} WHERE {where} "
        f"ORDER BY {operand} DESC LIMIT 1"
    )
    value = None if text is None else postgres_columns.parse_value(column.tag, text)
    goes_back = column.tag in ("int", "decimal") or postgres_columns.has_time(value)
    if settings.lookback and not goes_back and value is not None:
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"{wanted.relation.identity}: lookback knows no way back from the value of "
            f"{column.name!r}, which is neither a number, a time nor a UUID of version 7: take it "
            "away, or name another cursor",
        )
    notes: tuple[str, ...] = ()
    if not settings.lookback:
        notes = (
            f"cursor {column.name!r} is exact only if rows become visible in its order: a "
            "transaction that takes a value early and commits late is passed over"
            + ("; `lookback` with mode merge reads such rows again" if goes_back else ""),
        )
    return Bound(value, far=far, notes=notes)


def _refuse_other_order(session: Session, name: str) -> None:
    """Positions are compared by code points, and the database compares the bytes that it stores."""
    encoding = session.value("SELECT getdatabaseencoding()::text")
    if encoding not in ("UTF8", "SQL_ASCII", "LATIN1"):
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"connection {session.name!r}: {name!r} cannot be a cursor: texts of a database in "
            f"{encoding} have another order than Unicode; name another cursor",
        )


def _by_time(session: Session, wanted: Wanted) -> Bound:
    settings = wanted.settings
    clock = _Clock(*session.rows(_CLOCK)[0])
    foreign, materialized = _origins(session, wanted.relation)
    alone = clock.replica or settings.stamped_by == "application"
    late = alone or clock.subscribes or foreign
    settle = settings.settle
    if settle is None:
        settle = SETTLE_BY_CLOCK_ALONE if late else SETTLE
    if alone:
        micros, notes, stuck = *_shown(session, clock), ""
    else:
        micros, notes, stuck = _below_open(session, clock, wanted)
    if late:
        why = _why_late(clock, foreign=foreign)
        notes.append(f"{why}: rows that appear more than {settle:g} s late are passed over")
    micros -= round(settle * moments.SECOND)
    value, far, zone_note = _in_column(wanted.column.tag, micros, clock)
    name = quote(wanted.column.name)
    notes += zone_note
    if materialized:
        newest = _past_newest(session, wanted, far)
        value = None if newest is None else min(value, newest)
        notes.append(
            "a materialized view shows rows when it is refreshed, and is read up to its newest: "
            "rows of transactions that were open then are passed over"
        )
    now = _in_column(wanted.column.tag, clock.now, clock)[0]
    return Bound(value, far=f"{name} > {far}", notes=tuple(notes), stuck=stuck, clock=now)


def _shown(session: Session, clock: _Clock) -> tuple[int, list[str]]:
    """The clock, or what a replica has come to where it lags: its replay is paused, delayed or kept
    waiting by a query, or its line is cut or silent. By the clock alone, rows that are still on
    their way for longer than ``settle`` would be passed.
    """
    if not clock.replica:
        return clock.now, []
    try:
        micros = session.value(_SHOWN)
    except ConnectorError as error:
        if error.error is ErrorClass.TRANSIENT:
            raise
        return clock.now, [f"how far the replica lags is not told: {error}"]  # Aurora has no WAL
    if micros is None or micros >= clock.now:
        return clock.now, []
    age = (clock.now - micros) / moments.SECOND
    notes = [f"held back by the replica: it shows what was committed until {moments.iso(micros)}Z"]
    return micros, notes if age > _IDLE_PRIMARY_SPEAKS else []


def _origins(session: Session, relation: Relation) -> tuple[bool, bool]:
    """Whether foreign tables, and whether materialized views, are read; of a query nobody knows."""
    if relation.identity == QUERY:
        return False, False
    foreign, materialized = session.rows(_ORIGINS.format(table=quote_text(relation.source)))[0]
    return foreign, materialized


def _past_newest(session: Session, wanted: Wanted, present: str) -> Any:
    """The place behind the newest row: what was stamped since the view was refreshed is not in it
    yet, whatever the clock says. None: there is no row. Of dates the newest, whose day goes on.
    """
    name = quote(wanted.column.name)
    day = wanted.column.tag == "date"
    newest = f"max({name})::text" if day else f"(extract(epoch FROM max({name})) * 1000000)::int8"
    found = session.value(
        f"SELECT {newest} FROM {wanted.relation.source} "
        f"WHERE {name} >= '0001-01-01' AND {name} <= {present}"
    )
    if found is None:
        return None
    return postgres_columns.parse_value("date", found) if day else found + 1


def _why_late(clock: _Clock, *, foreign: bool) -> str:
    if clock.replica:
        return "this is a replica"
    if clock.subscribes:
        return "this database takes rows from another one, which stamps them"
    if foreign:
        return "another server stamps the rows of a foreign table"
    return "the application stamps the rows"


def _in_column(tag: str, micros: int, clock: _Clock) -> tuple[Any, str, list[str]]:
    """The bound as a value of the column, how far the clock is when rows are counted, notes."""
    if tag == "timestamp":
        return micros, _PRESENT, []
    # Whichever is behind of UTC and the zones of those who write, so that no reading is passed.
    notes = []
    if clock.zones:
        notes.append(
            "the column has no zone: its bound is the earliest of UTC and the zones set for the "
            f"server, the database and its roles ({clock.zones}); where clocks go back an hour, "
            "rows of that hour may be passed over"
        )
    else:
        notes.append("the column has no zone: it is compared with the clock in UTC")
    local = micros + clock.behind
    present = f"({_PRESENT} AT TIME ZONE 'UTC' + interval '{clock.ahead} microseconds')"
    if tag == "naive_timestamp":
        return local, present, notes
    notes.append("a date is read once its day is over")
    return moments.day(local), f"({present})::date", notes


def _below_open(session: Session, clock: _Clock, wanted: Wanted) -> tuple[int, list[str], str]:
    """The clock, or the start of the oldest open transaction if that is earlier."""
    max_wait = round(wanted.settings.max_wait * moments.SECOND)
    micros, notes, stuck = clock.now, [], ""
    if clock.sees_others:
        for pid, start, state, wrote, user in session.rows(_OPEN):
            age = clock.now - start
            who = f"pid {pid} ({user}, {state}, transaction open for {age / 1e6:.0f} s)"
            if age > max_wait and not wrote:
                notes.append(
                    f"{who} has written nothing for longer than max_wait: the read goes on "
                    "without it; rows that it still writes with its start as their time are lost"
                )
                continue
            if start < micros:
                micros = start
                notes += [f"held back by {who}"] if age > moments.SECOND else []
                stuck = who if age > max_wait else ""
            break
        _wait_for(_UNTOLD, session, wanted, "set track_activities = on for them")
    else:
        _wait_for(_VIRTUAL, session, wanted, "grant pg_read_all_stats to this role")
    for gid, prepared in session.rows(_PREPARED)[:1]:
        # Postgres does not say when a prepared transaction began.
        micros = min(micros, prepared - max_wait)
        age = (clock.now - prepared) / 1e6
        who = f"prepared transaction {gid!r} (prepared {age:.0f} s ago)"
        notes.append(f"held back by {who}, taken to have begun max_wait before that")
        stuck = stuck or (who if age > wanted.settings.max_wait else "")
    return micros, notes, stuck


def _wait_for(those: str, session: Session, wanted: Wanted, otherwise: str) -> None:
    """Wait till none is left of the transactions that were open when the clock was read, and of
    which it cannot be seen when they began: any role sees that they are there.
    """
    waiting = dict(session.rows(those))
    deadline = time.monotonic() + wanted.settings.max_wait
    while waiting:
        if wanted.stopped():
            raise Stopped
        if time.monotonic() > deadline:
            pids = ", ".join(str(pid) for pid in sorted(set(waiting.values())))
            raise ConnectorError(
                ErrorClass.TRANSIENT,
                f"connection {session.name!r}: held back for {wanted.settings.max_wait:g} s by "
                f"open transactions of pid {pids}: end them, or {otherwise} so that rows older "
                "than those transactions can be read meanwhile",
            )
        time.sleep(_POLL_SECONDS)
        still = dict(session.rows(those))
        waiting = {v: pid for v, pid in waiting.items() if v in still}
