-- Pipelines and their streams.

-- name: pipeline
select * from pipelines where name = ?;

-- name: pipelines_named
-- ?1: a JSON list of names.
select * from pipelines where name in (select value from json_each(?1));

-- name: pipelines_changed
select * from pipelines where change > ? order by change limit ?;

-- name: pipelines_held_by
select * from pipelines where holder = ? and holder <> '';

-- name: pipelines_leased
select * from pipelines where holder <> '' order by change;

-- name: pipelines_that_saw
-- ?1: a name in JSON's quotes.
select * from pipelines where instr(after_seen, ?1) order by name;

-- name: add_pipeline
insert into pipelines
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0);

-- name: set_pipeline
-- What the run committed so far is counted anew with another run.
update pipelines set
    version = ?2, change = ?3, epoch = ?4, holder = ?5, paused = ?6, parked = ?7, request = ?8,
    cancel = ?9, tick = ?10, failures = ?11, retry_at = ?12, retry_streams = ?13, news = ?14,
    after_seen = ?15, held = ?16, last_outcome = ?17, last_reason = ?18, last_epoch = ?19,
    last_started_at = ?20, last_finished_at = ?21, last_success_at = ?22, data_at = ?23,
    rows = ?24, rejected = ?25, origin = ?26,
    run_rows = iif(epoch = ?4, run_rows, 0), run_bytes = iif(epoch = ?4, run_bytes, 0),
    run_rejected = iif(epoch = ?4, run_rejected, 0)
where name = ?1;

-- name: drop_pipeline
delete from pipelines where name = ?;

-- name: count_committed
-- ?2 commits on the pipeline and its open run; the fence was checked.
update pipelines set
    version = version + ?2, change = ?3, rows = rows + ?4, rejected = rejected + ?6,
    data_at = max(coalesce(data_at, ?7), coalesce(?7, data_at)),
    run_rows = run_rows + ?4, run_bytes = run_bytes + ?5, run_rejected = run_rejected + ?6
where name = ?1;

-- name: cursor
select cursor_kind, cursor_definition, cursor_tag, cursor_data, cursor_text
from streams where pipeline = ? and stream = ?;

-- name: standing
-- What a commit is judged by: the lease, the stream, the stream's last schema.
select p.name, ?2, p.epoch, p.holder, v.fingerprint, v.body, s.*
from pipelines p
left join streams s on s.pipeline = p.name and s.stream = ?2
left join schemas v on v.pipeline = p.name and v.stream = ?2 and v.version = s.schema_version
where p.name = ?1;

-- name: stream
select * from streams where pipeline = ? and stream = ?;

-- name: streams
select * from streams where pipeline = ? order by stream;

-- name: streams_of
-- ?1: a JSON list of pipelines' names.
select * from streams
where pipeline in (select value from json_each(?1)) order by pipeline, stream;

-- name: drop_streams
delete from streams where pipeline = ?;

-- name: hand_over_streams
update streams set pipeline = ?2 where pipeline = ?1;

-- name: put_stream
replace into streams values (
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
);

-- name: set_stream
-- Its last commit stays.
insert into streams values (
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?, ?, ?, ?, ?, null
)
on conflict (pipeline, stream) do update set
    seq = ?3, published = ?4, cursor_kind = ?5, cursor_definition = ?6, cursor_tag = ?7,
    cursor_data = ?8, cursor_text = ?9, schema_version = ?10, hold = ?11, directive = ?12,
    seen = ?13, ledger_from = ?14, committed_by = ?15, published_by = ?16, data_at = ?17,
    rows = ?18, last_outcome = ?19, last_reason = ?20;
