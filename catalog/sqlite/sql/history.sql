-- Runs, commits, schemas, decisions, the ledger of files, the audit of edits.

-- name: run
select * from runs_seen where epoch = ?;

-- name: previous_run
select * from runs_seen where pipeline = ? and epoch < ? order by epoch desc limit 1;

-- name: open_connections
-- Where open runs are at work, for the connections' limits.
select holder, connections, count(*) from runs
where outcome is null and connections is not null group by 1, 2;

-- name: add_run
insert into runs values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: end_run
update runs set
    reason = ?2, finished_at = ?3, outcome = ?4, error = ?5, rows = ?6, bytes = ?7, rejected = ?8,
    streams = ?9, count = ?10, first_started_at = ?11
where epoch = ?1;

-- name: hand_over_runs
update runs set pipeline = ?2 where pipeline = ?1;

-- name: hand_over_commits
-- Walks all of them: it is rare, and an index would be paid by every commit.
update commits set pipeline = ?2 where pipeline = ?1;

-- name: hand_over_schemas
update schemas set pipeline = ?2 where pipeline = ?1;

-- name: hand_over_decisions
update decisions set pipeline = ?2 where pipeline = ?1;

-- name: hand_over_files
update files set pipeline = ?2 where pipeline = ?1;

-- name: drop_run
delete from runs where epoch = ?;

-- name: old_runs
-- Finished before ?1, and not their pipeline's last finished one; for retention to delete, also
-- later: what is not the last never is again.
select r.epoch from runs r
where r.outcome is not null and r.finished_at < ?1
  and exists (select 1 from runs n
              where n.pipeline = r.pipeline and n.epoch > r.epoch and n.outcome is not null)
order by r.epoch limit ?2;

-- name: last_commit
select coalesce(max(id), 0) from commits;

-- name: add_commit
insert into commits values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: commit
select * from commits where id = ?;

-- name: commits
-- Newest first, in an order that no clock decides; from each stream's last one backwards.
with recursive line (id, place) as (
    select last_commit, 1 from streams where pipeline = ?1 and (?2 = '' or stream = ?2)
    union all
    select c.previous, place + 1 from line join commits c on c.id = line.id where place < ?3
)
select c.* from line join commits c on c.id = line.id
order by c.epoch desc, c.seq desc, c.stream limit ?3;

-- name: commits_above
with recursive line (id) as (
    select last_commit from streams where pipeline = ?1 and stream = ?2
    union all
    select c.previous from line join commits c on c.id = line.id where c.seq > ?3
)
select c.* from line join commits c on c.id = line.id where c.seq > ?3 order by c.seq limit ?4;

-- name: old_commits
-- Of runs that are gone or among ?4 (JSON), which go before them, published, not their stream's last,
-- and not the answer of an operation that is kept by ?3; before the first that is younger, so that
-- those are not looked at.
select c.id from commits c
join streams s on s.pipeline = c.pipeline and s.stream = c.stream
where c.id < coalesce((select id from commits where committed_at >= min(?1, ?3)
                       order by id limit 1), 9e18)
  and c.seq <= s.published and c.id <> s.last_commit
  and (not exists (select 1 from runs where runs.epoch = c.epoch)
       or c.epoch in (select value from json_each(?4)))
order by c.id limit ?2;

-- name: drop_old_commit
-- Commits are never unpublished, a later one stays, and no run comes back: only that it is the first
-- of its stream is to be asked after again.
delete from commits where id = ?
and not exists (select 1 from commits p where p.id = commits.previous);

-- name: add_schema
insert into schemas values (?, ?, ?, ?, ?, ?, ?);

-- name: schemas
select version, fingerprint, body, created_at, epoch from schemas
where pipeline = ? and stream = ? order by version;

-- name: add_decision
insert into decisions (pipeline, stream, body) values (?, ?, ?);

-- name: decisions
select body from decisions where pipeline = ? and stream = ? order by id;

-- name: clear_files
delete from files where pipeline = ? and stream = ?;

-- name: forget_files
delete from files where pipeline = ? and stream = ? and (seq > ? or epoch > ?);

-- name: drop_file
delete from files where pipeline = ? and stream = ? and path = ?;

-- name: put_file
replace into files values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: files
select path, inode, size, mtime_ns, ctime_ns, hash, seq, epoch from files
where pipeline = ? and stream = ? and path > ? order by path limit ?;

-- name: add_edit
insert into edits (at, "by", why, action, pipeline, stream, old, new)
values (?, ?, ?, ?, ?, ?, ?, ?) returning id;

-- name: edits
select * from edits order by id desc limit ?;

-- name: edits_of
select * from edits where pipeline = ? order by id desc limit ?;

-- name: drop_old_edits
delete from edits where id in (select id from edits where at < ? order by at limit ?);
