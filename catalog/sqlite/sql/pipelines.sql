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

-- name: add_pipeline
insert into pipelines
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: set_pipeline
update pipelines set
    version = ?2, change = ?3, epoch = ?4, holder = ?5, paused = ?6, parked = ?7, request = ?8,
    cancel = ?9, tick = ?10, failures = ?11, retry_at = ?12, retry_streams = ?13, news = ?14,
    after_seen = ?15, held = ?16, last_outcome = ?17, last_reason = ?18, last_epoch = ?19,
    last_started_at = ?20, last_finished_at = ?21, last_success_at = ?22, data_at = ?23,
    rows = ?24, rejected = ?25
where name = ?1;

-- name: count_committed
-- The fence and the count of a commit in one: no row changes unless the lease is current.
update pipelines set
    version = version + 1, change = ?4, rows = rows + ?5, rejected = rejected + ?6,
    data_at = max(coalesce(data_at, ?7), coalesce(?7, data_at))
where name = ?1 and epoch = ?2 and holder = ?3 and holder <> '';

-- name: cursor
select cursor_kind, cursor_definition, cursor_tag, cursor_data, cursor_text
from streams where pipeline = ? and stream = ?;

-- name: stream
select * from streams where pipeline = ? and stream = ?;

-- name: streams
select * from streams where pipeline = ? order by stream;

-- name: streams_of
-- ?1: a JSON list of pipelines' names.
select * from streams
where pipeline in (select value from json_each(?1)) order by pipeline, stream;

-- name: put_stream
replace into streams values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);
