create schema devices;

comment on schema devices is
    'Devices, their ports, the queue of operations on them, and the nodes they run on. Owned by the crate of that name.';

create table devices.nodes (
    name text primary key,
    address text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);

comment on table devices.nodes is
    'Machines that devices run on. Each has a port space of its own, so that a port is one only together with its node.';

create table devices.devices (
    id text primary key,
    seq bigint generated always as identity,
    user_id text not null,
    tenant_id text,
    name text not null,
    description text,
    type text not null check (type in ('phone', 'tablet')),
    provider_type text not null,
    runtime text not null check (runtime in ('docker', 'simulated')),
    status text not null check (
        status in ('creating', 'starting', 'running', 'stopping', 'stopped', 'rebooting', 'error', 'deleting', 'deleted')
    ),
    wanted text not null check (wanted in ('running', 'stopped')),
    error text,
    cpu_cores integer not null,
    memory_mb integer not null,
    storage_mb integer not null,
    resolution text not null,
    dpi integer not null,
    android_version text not null,
    group_name text,
    tags text[] not null default '{}',
    metadata jsonb not null default '{}',
    node text not null references devices.nodes (name),
    adb_port integer not null,
    webrtc_port integer not null,
    scrcpy_port integer not null,
    last_started_at timestamptz,
    last_stopped_at timestamptz,
    expires_at timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    deleted_at timestamptz,
    released_at timestamptz,
    constraint devices_deleted check (
        (deleted_at is not null) = (status in ('deleting', 'deleted')) and (released_at is not null) = (status = 'deleted')
    )
);

-- These, not the leases in Redis, keep a port from being given out twice.
create unique index devices_adb_port_key on devices.devices (node, adb_port) where released_at is null;
create unique index devices_webrtc_port_key on devices.devices (node, webrtc_port) where released_at is null;
create unique index devices_scrcpy_port_key on devices.devices (node, scrcpy_port) where released_at is null;
create index devices_list on devices.devices (user_id, created_at desc, seq desc) where deleted_at is null;
create index devices_list_all on devices.devices (created_at desc, seq desc) where deleted_at is null;
create index devices_held on devices.devices (node, id) where released_at is null;
create index devices_released on devices.devices (node, released_at) where released_at is not null;
create index devices_simulated on devices.devices (id) where runtime = 'simulated' and status = 'running';

comment on table devices.devices is 'Every device there is or was; what is deleted stays as a row without ports.';
comment on column devices.devices.wanted is 'Where a creation under way shall end: with the device running or stopped.';
comment on column devices.devices.deleted_at is 'When its owner deleted it: since then nobody sees it, and its ports are still held.';
comment on column devices.devices.released_at is 'When its deletion was complete; for a while after that its ports rest.';

create sequence devices.fencing_tokens;

create table devices.operations (
    id bigint generated always as identity primary key,
    saga_id text not null constraint operations_saga_key unique,
    device_id text not null references devices.devices (id),
    kind text not null check (kind in ('create', 'start', 'stop', 'restart', 'delete')),
    state text not null check (state in ('queued', 'running', 'done', 'failed', 'cancelled')),
    begun boolean not null,
    step text not null,
    fencing_token bigint not null default 0,
    lease_until timestamptz,
    attempts integer not null default 0,
    due_at timestamptz not null default clock_timestamp(),
    error text,
    created_at timestamptz not null,
    finished_at timestamptz
);

create unique index operations_one_at_a_time on devices.operations (device_id) where state = 'running';
create index operations_open on devices.operations (device_id, id) where state in ('queued', 'running');
create index operations_queued on devices.operations (due_at) where state = 'queued';
create index operations_leased on devices.operations (lease_until) where state = 'running';

comment on table devices.operations is
    'The work queue: what is to be done with devices. A worker holds a row for the time of its lease; each of its writes names its fencing token, so that one who was frozen changes nothing.';
comment on column devices.operations.saga_id is 'The name by which clients ask how it goes.';
comment on column devices.operations.begun is 'Whether the status of the device tells of it; until then its sender may take it back.';

create table devices.hosts (
    device_id text primary key references devices.devices (id),
    host text not null,
    until timestamptz not null,
    stop_asked boolean not null default false
);

create index hosts_host on devices.hosts (host);

comment on table devices.hosts is
    'Which replica listens on the ports of a simulated device, leased: another one takes over when it falls silent.';
