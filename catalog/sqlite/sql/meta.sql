-- The catalog itself, its holders, and the answers it gave.

-- name: catalog_id
select id from meta;

-- name: last_epoch
select epoch from meta;

-- name: set_epoch
update meta set epoch = ?;

-- name: last_change
-- Pipelines are never deleted, so their highest change is the catalog's.
select coalesce(max(change), 0) from pipelines;

-- name: holders
select id, host, pid, boot_id, expires_ns, expires_at from holders order by id;

-- name: holder
select id, host, pid, boot_id, expires_ns, expires_at from holders where id = ?;

-- name: put_holder
replace into holders values (?, ?, ?, ?, ?, ?);

-- name: drop_holder
delete from holders where id = ?;

-- name: drop_holders
delete from holders;

-- name: lease_counts
select holder, count(*) from pipelines where holder <> '' group by holder;

-- name: operation
select verb, answer from operations where id = ?;

-- name: add_operation
-- Fails when the id was used before: that is how a second sending is noticed.
insert into operations values (?, ?, ?, ?);

-- name: drop_old_operations
-- Among the oldest only: when all of those are younger, so are the others, but for a clock that
-- was put back.
delete from operations where id in (
    select id from (select id, at from operations order by id limit 1000)
    where at < ? limit ?);

-- name: counts
select (select count(*) from pipelines), (select count(*) from runs where outcome is null);
