-- The catalog's tables. Scalars of a record are columns, its nested parts JSON (null: none).
-- Times are microseconds since 1970-01-01 UTC unless said otherwise.

create table meta (
    one integer primary key check (one = 1),
    id text not null,
    epoch integer not null,           -- the one counter; only ever raised (A1)
    created_at integer not null,
    made_by text not null             -- SHA-256 of the migrations that made these tables
) strict;

create table holders (
    id text primary key,
    host text not null,
    pid integer not null,
    boot_id text not null,
    expires_ns integer not null,      -- CLOCK_BOOTTIME of that boot, nanoseconds (A6)
    expires_at integer not null       -- for display
) strict, without rowid;

create table pipelines (
    name text primary key,
    version integer not null,
    change integer not null,          -- place in the order of changes; the highest is the newest
    epoch integer not null,
    holder text not null,             -- '': nobody
    paused text,
    parked text,
    request text,
    cancel integer not null,
    tick integer,
    failures integer not null,
    retry_at integer,
    retry_streams text,
    news integer not null,
    after_seen text,
    held text,
    last_outcome text,
    last_reason text not null,
    last_epoch integer not null,
    last_started_at integer,
    last_finished_at integer,
    last_success_at integer,
    data_at integer,
    rows integer not null,
    rejected integer not null,
    origin text not null,             -- '': its own name is the one that destinations know
    -- What the open run committed so far, beside what each commit writes anyway.
    run_rows integer not null,
    run_bytes integer not null,
    run_rejected integer not null
) strict, without rowid;
create unique index pipelines_by_change on pipelines (change);
create index pipelines_held on pipelines (holder) where holder <> '';

create table streams (
    pipeline text not null,
    stream text not null,
    seq integer not null,
    published integer not null,
    cursor_kind text,                 -- null: no cursor
    cursor_definition text,
    cursor_tag text,
    cursor_data blob,
    cursor_text text,
    schema_version integer not null,
    hold text,
    directive text not null,
    seen text not null,
    ledger_from integer not null,
    committed_by integer not null,
    published_by integer not null,
    data_at integer,
    rows integer not null,
    last_outcome text,
    last_reason text not null,
    last_commit integer,              -- the number of its last batch's row in commits
    primary key (pipeline, stream)
) strict, without rowid;

create table runs (
    epoch integer primary key,
    pipeline text not null,
    holder text not null,
    trigger text not null,
    reason text not null,
    started_at integer not null,
    connections text,
    finished_at integer,
    outcome text,                     -- null while it is open
    error text,
    rows integer not null,            -- these three: once it is closed
    bytes integer not null,
    rejected integer not null,
    streams text,
    count integer not null,
    first_started_at integer
) strict;
create index runs_by_pipeline on runs (pipeline, epoch);
create index runs_open on runs (epoch) where outcome is null;
create index runs_by_end on runs (finished_at) where outcome is not null;

create view runs_seen as
select epoch, pipeline, holder, trigger, reason, started_at, connections, finished_at, outcome, error,
    case when outcome is null
         then (select run_rows from pipelines where name = runs.pipeline) else rows end as rows,
    case when outcome is null
         then (select run_bytes from pipelines where name = runs.pipeline) else bytes end as bytes,
    case when outcome is null
         then (select run_rejected from pipelines where name = runs.pipeline) else rejected end
         as rejected,
    streams, count, first_started_at
from runs;

-- By number each row goes to the end, where those of a group share pages and flushes. An index by
-- stream would have a page of its own written for each; instead a stream knows its last row, and
-- each row the one before it. Retention takes them away from the far end.
create table commits (
    id integer primary key,
    previous integer,                 -- null, or a row that is gone: it is the first
    pipeline text not null,
    stream text not null,
    seq integer not null,
    epoch integer not null,
    committed_at integer not null,
    rows integer not null,
    bytes integer not null,
    rejected integer not null,
    schema_version integer not null,
    cursor_kind text,                 -- null: it left the cursor as it was
    cursor_definition text,
    cursor_tag text,
    cursor_data blob,
    cursor_text text,
    receipt text not null             -- JSON, opaque; '': the pipeline's cursor moved alone
) strict;

create table files (
    pipeline text not null,
    stream text not null,
    path text not null,
    inode integer not null,
    size integer not null,
    mtime_ns integer not null,
    ctime_ns integer not null,
    hash text not null,
    seq integer not null,
    epoch integer not null,
    primary key (pipeline, stream, path)
) strict, without rowid;

create table schemas (
    pipeline text not null,
    stream text not null,
    version integer not null,
    fingerprint text not null,
    created_at integer not null,
    epoch integer not null,
    body text not null,
    primary key (pipeline, stream, version)
) strict, without rowid;

create table decisions (
    id integer primary key,
    pipeline text not null,
    stream text not null,
    body text not null
) strict;
create index decisions_by_stream on decisions (pipeline, stream, id);

create table edits (
    id integer primary key autoincrement,
    at integer not null,
    "by" text not null,
    why text not null,
    action text not null,
    pipeline text not null,
    stream text not null,
    old text not null,
    new text not null
) strict;
create index edits_by_pipeline on edits (pipeline, id);
create index edits_by_time on edits (at);

create table operations (
    id text primary key,              -- sorts by time: new ones share pages, old ones go first
    verb text not null,
    at integer not null,
    answer blob not null              -- MessagePack: what it takes to give it again (A5)
) strict, without rowid;
