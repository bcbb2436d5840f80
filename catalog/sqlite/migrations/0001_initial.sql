-- The catalog's tables. A record's searchable parts are columns, the whole record is JSON in `body`.

create table meta (
    one integer primary key check (one = 1),
    id text not null,
    epoch integer not null,      -- the one counter (A1)
    change integer not null,
    created_at integer not null
) strict;

create table holders (
    id text primary key,
    host text not null,
    pid integer not null,
    boot_id text not null,
    expires_ns integer not null, -- CLOCK_BOOTTIME of that boot
    expires_at integer not null  -- for display
) strict, without rowid;

create table pipelines (
    name text primary key,
    change integer not null,
    holder text not null,
    epoch integer not null,
    body text not null
) strict, without rowid;
create unique index pipelines_by_change on pipelines (change);
create index pipelines_held on pipelines (holder) where holder <> '';

create table streams (
    pipeline text not null,
    stream text not null,
    cursor_kind text,
    cursor_definition text,
    cursor_tag text,
    cursor_data blob,
    cursor_text text,
    body text not null,
    primary key (pipeline, stream)
) strict, without rowid;

create table runs (
    epoch integer primary key,
    pipeline text not null,
    outcome text,                -- null while it is open
    finished_at integer,
    body text not null
) strict;
create index runs_by_pipeline on runs (pipeline, epoch);
create index runs_open on runs (epoch) where outcome is null;
create index runs_by_end on runs (finished_at) where outcome is not null;

create table commits (
    pipeline text not null,
    stream text not null,
    seq integer not null,
    epoch integer not null,
    committed_at integer not null,
    body text not null,
    primary key (pipeline, stream, seq)
) strict, without rowid;
create index commits_by_epoch on commits (epoch);

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
    primary key (pipeline, stream, path)
) strict, without rowid;

create table schemas (
    pipeline text not null,
    stream text not null,
    version integer not null,
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
    pipeline text not null,
    body text not null
) strict;
create index edits_by_pipeline on edits (pipeline, id);
create index edits_by_time on edits (at);

create table operations (
    id text primary key,         -- sorts by time
    verb text not null,
    at integer not null,
    answer text not null
) strict, without rowid;
create index operations_by_time on operations (at);
