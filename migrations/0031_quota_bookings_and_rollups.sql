-- What others run is counted from the bookings themselves; the counters are what services deduct and restore, and nothing else.
update devices.quotas q set
    extra_devices = greatest(0, q.extra_devices - b.devices),
    extra_cpu_cores = greatest(0, q.extra_cpu_cores - b.cpu_cores),
    extra_memory_mb = greatest(0, q.extra_memory_mb - b.memory_mb),
    extra_storage_mb = greatest(0, q.extra_storage_mb - b.storage_mb)
from (
    select user_id, count(*) as devices, sum(cpu_cores) as cpu_cores, sum(memory_mb) as memory_mb, sum(storage_mb) as storage_mb
    from devices.quota_bookings where returned_at is null group by user_id) b
where b.user_id = q.user_id;

comment on column devices.quotas.extra_devices is
    'Deducted by services and admins, besides the devices that there are and those that are booked one by one.';

create index quota_bookings_open on devices.quota_bookings (user_id) include (cpu_cores, memory_mb, storage_mb)
    where returned_at is null;

comment on table devices.quota_bookings is
    'Devices that others run and book here: each is counted once and given back once, however often it is said. One that is given back before it is booked is never counted.';

create table devices.rolled_up (
    step smallint primary key check (step in (60, 900)),
    until timestamptz not null
);

comment on table devices.rolled_up is
    'Up to when measurements are put together into each step: whoever goes on from there locks the row.';

delete from devices.readings r using devices.devices d where d.id = r.device_id and d.status = 'deleted';

create unique index quotas_seq on devices.quotas (seq);
