-- Rules between the rows: each statement finds what breaks one, with a sentence for a person.

-- name: lease_without_open_run
select printf('pipeline ''%s'': held under epoch %d, but that run is not open', name, epoch)
from pipelines p where holder <> ''
and not exists (select 1 from runs r where r.epoch = p.epoch and r.outcome is null
                and r.pipeline = p.name and r.holder = p.holder);

-- name: open_run_without_lease
select printf('run %d of pipeline ''%s'' is open, but its lease is gone', r.epoch, r.pipeline)
from runs r where r.outcome is null
and not exists (select 1 from pipelines p where p.name = r.pipeline and p.epoch = r.epoch
                and p.holder = r.holder);

-- name: lease_without_heartbeat
select printf('pipeline ''%s'': its holder %s has no heartbeat', name, holder)
from pipelines p where holder <> '' and not exists (select 1 from holders h where h.id = p.holder);

-- name: epoch_never_issued
select printf('pipeline ''%s'': epoch %d was never issued, the last one is %d',
              name, pipelines.epoch, meta.epoch)
from pipelines, meta where pipelines.epoch > meta.epoch
union all
select printf('run %d was never issued, the last epoch is %d', runs.epoch, meta.epoch)
from runs, meta where runs.epoch > meta.epoch;

-- name: seq_of_stream
select printf('%s.%s: its last batch is %d, but batch %d is recorded',
              s.pipeline, s.stream, s.seq, c.seq)
from streams s join commits c on c.id = s.last_commit where c.seq > s.seq;

-- name: published_past_the_last
select printf('%s.%s: published up to %d, but its last batch is %d',
              pipeline, stream, published, seq)
from streams where published > seq;

-- name: unpublished_not_recorded
with recursive line (pipeline, stream, published, id) as (
    select pipeline, stream, published, last_commit from streams where published < seq
    union all
    select line.pipeline, line.stream, line.published, c.previous
    from line join commits c on c.id = line.id where c.seq > line.published
)
select printf('%s.%s: of %d unpublished batches only %d are recorded',
              s.pipeline, s.stream, s.seq - s.published, count(c.id))
from streams s join line on line.pipeline = s.pipeline and line.stream = s.stream
left join commits c on c.id = line.id and c.seq > s.published
group by s.pipeline, s.stream having count(c.id) <> s.seq - s.published;

-- name: commit_out_of_line
select printf('%s.%s: batch %d is recorded, but no later one leads to it',
              c.pipeline, c.stream, c.seq)
from commits c
where not exists (select 1 from streams s where s.pipeline = c.pipeline
                  and s.stream = c.stream and s.last_commit = c.id)
and c.id not in (select previous from commits where previous is not null);

-- name: holds_of_pipeline
select printf('pipeline ''%s'': held is %s, its streams say %s', p.name,
              coalesce(p.held, '[]'), coalesce(h.streams, '[]'))
from pipelines p left join (
    select pipeline, json_group_array(stream order by stream) as streams
    from streams where hold is not null group by pipeline
) h on h.pipeline = p.name
where coalesce(p.held, '[]') <> coalesce(h.streams, '[]');

-- name: commit_without_stream
select printf('%s.%s: batch %d is recorded, but the stream is not', c.pipeline, c.stream, c.seq)
from commits c where not exists (select 1 from streams s
                                 where s.pipeline = c.pipeline and s.stream = c.stream);

-- name: schema_of_stream
select printf('%s.%s: schema version %d is in use, but not recorded',
              pipeline, stream, schema_version)
from streams s where schema_version > 0
and not exists (select 1 from schemas v where v.pipeline = s.pipeline
                and v.stream = s.stream and v.version = s.schema_version);
