create table devices.quotas (
    user_id text primary key,
    seq bigint generated always as identity,
    id text not null constraint quotas_id_key unique,
    overrides jsonb not null default '{}' check (jsonb_typeof(overrides) = 'object'),
    suspended boolean not null default false,
    valid_until timestamptz,
    auto_renew boolean not null default false,
    extra_devices bigint not null default 0 check (extra_devices >= 0),
    extra_cpu_cores bigint not null default 0 check (extra_cpu_cores >= 0),
    extra_memory_mb bigint not null default 0 check (extra_memory_mb >= 0),
    extra_storage_mb bigint not null default 0 check (extra_storage_mb >= 0),
    created_at timestamptz not null,
    updated_at timestamptz not null
);

create index quotas_list on devices.quotas (created_at desc, seq desc);

comment on table devices.quotas is
    'One row a user. Whoever charges a quota locks it and then counts the devices: what is used stands in the devices themselves, so that it cannot drift from them.';
comment on column devices.quotas.overrides is
    'Limits that an admin set, by name; the others are those of the settings or of what was paid, whichever allows more. -1 is no limit.';
comment on column devices.quotas.valid_until is 'Until when the overrides hold; null: for good.';
comment on column devices.quotas.extra_devices is 'Used besides the devices that there are, as booked by services and admins.';

create table devices.quota_grants (
    order_id text primary key,
    user_id text not null,
    plan_id text,
    plan_name text,
    limits jsonb check (jsonb_typeof(limits) = 'object'),
    valid_from timestamptz,
    lasts interval,
    valid_until timestamptz check (valid_until > valid_from),
    revoked_at timestamptz,
    constraint quota_grants_whole
        check (revoked_at is not null or num_nulls(plan_id, plan_name, limits, valid_from, lasts, valid_until) = 0)
);

create index quota_grants_user on devices.quota_grants (user_id, valid_until) where revoked_at is null;

comment on table devices.quota_grants is
    'What paid orders grant, one row an order: an event that comes twice finds its row. They end by themselves. A refund that is heard of before its payment leaves a revoked row without a plan.';
comment on column devices.quota_grants.lasts is
    'The time that the order itself paid for, the last part before valid_until: a further order of the same plan begins where the last one ends.';

create table devices.quota_bookings (
    user_id text not null references devices.quotas (user_id),
    device_id text not null,
    cpu_cores bigint not null,
    memory_mb bigint not null,
    storage_mb bigint not null,
    booked_at timestamptz not null,
    returned_at timestamptz,
    primary key (user_id, device_id)
);

comment on table devices.quota_bookings is
    'Devices that others run and book here: each is counted once and given back once, however often it is said.';

create index devices_charged on devices.devices (user_id) include (cpu_cores, memory_mb, storage_mb, status, wanted)
    where deleted_at is null;

create table devices.runs (
    device_id text not null references devices.devices (id),
    user_id text not null,
    began_at timestamptz not null,
    ended_at timestamptz check (ended_at >= began_at),
    primary key (device_id, began_at)
);

create unique index runs_open on devices.runs (device_id) where ended_at is null;
create index runs_user on devices.runs (user_id, ended_at);
create index runs_ended on devices.runs (ended_at);

comment on table devices.runs is
    'From when to when devices ran; written by a trigger on their status. What users run by hours, and are billed for, is counted from these.';

insert into devices.runs (device_id, user_id, began_at)
select id, user_id, coalesce(last_started_at, updated_at) from devices.devices where status = 'running';

create function devices.write_run() returns trigger language plpgsql as $$
begin
    if new.status = 'running' then
        insert into devices.runs (device_id, user_id, began_at) values (new.id, new.user_id, new.updated_at) on conflict do nothing;
    else
        update devices.runs set ended_at = greatest(began_at, new.updated_at) where device_id = new.id and ended_at is null;
    end if;
    return null;
end
$$;

create trigger devices_run after update of status on devices.devices
    for each row when (old.status is distinct from new.status) execute function devices.write_run();

create table devices.traffic (
    user_id text not null,
    month date not null,
    bytes bigint not null check (bytes >= 0),
    primary key (user_id, month)
);

comment on table devices.traffic is 'Bytes that the devices of a user sent and received in a calendar month, as their nodes counted them.';
