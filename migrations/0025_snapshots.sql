create table devices.snapshots (
    id text primary key,
    seq bigint generated always as identity,
    device_id text not null references devices.devices (id),
    user_id text not null,
    name text not null,
    description text,
    tags text[] not null default '{}',
    status text not null check (status in ('creating', 'ready', 'restoring', 'error', 'deleting')),
    size bigint not null default 0 check (size >= 0),
    error text,
    taken_at timestamptz,
    created_by text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);

create index snapshots_device on devices.snapshots (device_id, created_at desc, seq desc);
create index snapshots_user on devices.snapshots (user_id, created_at desc, seq desc);
create index snapshots_list_all on devices.snapshots (created_at desc, seq desc);
create index snapshots_aged on devices.snapshots (created_at) where status in ('ready', 'error');

comment on table devices.snapshots is
    'What was on a device at a moment. The row is there before the image and goes after it: an image without a row is nobody''s.';
comment on column devices.snapshots.user_id is 'The owner of the device, whose limits it counts against; created_by may be an admin.';
comment on column devices.snapshots.size is 'Bytes that it takes on its node; 0 until it is ready.';
comment on column devices.snapshots.taken_at is 'Since when there is something to restore; null where it was never taken.';

alter table devices.devices add column restored_from text references devices.snapshots (id) on delete set null;

comment on column devices.devices.restored_from is
    'The snapshot that its container was last made of; null where it was made of the image of the node.';

create index devices_restored_from on devices.devices (restored_from) where restored_from is not null;

alter table devices.operations
    add column snapshot_id text,
    drop constraint operations_kind_known,
    add constraint operations_kind_known
        check (kind in ('create', 'start', 'stop', 'restart', 'delete', 'repair', 'snapshot', 'restore', 'forget')),
    add constraint operations_snapshot check ((kind in ('snapshot', 'restore', 'forget')) = (snapshot_id is not null));

comment on column devices.operations.snapshot_id is
    'The snapshot to be taken, restored or forgotten; it may be gone by the time the operation is done.';

create table devices.stub_contents (
    device_id text primary key references devices.devices (id),
    contents jsonb not null,
    updated_at timestamptz not null default clock_timestamp()
);

comment on table devices.stub_contents is
    'What is on a simulated device, written by its host: it outlives the host as the disk of a container does.';

create table devices.stub_snapshots (
    snapshot_id text primary key references devices.snapshots (id) on delete cascade,
    contents jsonb not null
);

comment on table devices.stub_snapshots is 'What snapshots of simulated devices keep, in the place of an image.';

alter table devices.hosts
    add column save_asked bigint not null default 0,
    add column saved bigint not null default 0;

comment on column devices.hosts.save_asked is
    'Counts the wishes that the host write what is on the device; they are fulfilled up to `saved`.';
