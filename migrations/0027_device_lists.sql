-- Lists are filtered by status or group most of all; each of these has the order of the list, so that a page reads a page.
create index devices_list_status on devices.devices (user_id, status, created_at desc, seq desc) where deleted_at is null;
create index devices_list_status_all on devices.devices (status, created_at desc, seq desc) where deleted_at is null;
create index devices_list_group on devices.devices (user_id, group_name, created_at desc, seq desc)
    where deleted_at is null and group_name is not null;

-- What is over is asked for by its saga for a while, and then deleted, the oldest first.
create index operations_finished on devices.operations (finished_at) where finished_at is not null;

create table devices.usage (
    device_id text not null references devices.devices (id),
    began_at timestamptz not null,
    user_id text not null,
    minutes integer not null check (minutes between 0 and 60),
    primary key (device_id, began_at)
);

create index usage_began on devices.usage (began_at);

comment on table devices.usage is
    'Minutes that devices ran in each hour, told once to whoever bills them: a row is written in the transaction of its event.';

create table devices.readings (
    device_id text primary key references devices.devices (id),
    slot timestamptz not null,
    taken_at timestamptz,
    cpu_usage real not null default 0,
    memory_mb real not null default 0,
    storage_mb real not null default 0,
    network_rx bigint not null default 0,
    network_tx bigint not null default 0,
    counted_cpu bigint not null default 0,
    counted_rx bigint not null default 0,
    counted_tx bigint not null default 0
);

comment on table devices.readings is
    'What was last measured on each device. Whoever raises the slot measures: a device is measured once a slot, whichever replica it is.';
comment on column devices.readings.counted_cpu is
    'Nanoseconds and bytes as the runtime counts them since the device last started; rates are their differences.';

create table devices.metrics (
    step smallint not null check (step in (0, 60, 900)),
    device_id text not null,
    at timestamptz not null,
    cpu_usage real not null,
    memory_usage real not null,
    storage_usage real not null,
    network_in bigint not null,
    network_out bigint not null,
    primary key (step, device_id, at)
);

create index metrics_at on devices.metrics (step, at);

comment on table devices.metrics is
    'What was measured on devices. Step 0 is a measurement, kept for hours; 60 and 900 are the means over as many seconds, kept for a day and for a week. Usages are percent; network is bytes since the measurement before, or in the whole step.';
