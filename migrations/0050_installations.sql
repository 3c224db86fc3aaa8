create table devices.installation_batches (
    id text primary key,
    user_id text not null,
    app_id text not null,
    total integer not null,
    told integer not null default 0,
    created_at timestamptz not null
);

comment on table devices.installation_batches is 'Requests to install an app on one or many devices.';
comment on column devices.installation_batches.total is 'How many devices were queued; what was refused at once is not among them.';
comment on column devices.installation_batches.told is
    'How many were over when its user was last told. Its row is locked while they are counted, so that each step is told once.';

create table devices.installations (
    id bigint generated always as identity primary key,
    saga_id text not null constraint installations_saga_key unique,
    batch_id text not null references devices.installation_batches (id) on delete cascade,
    device_id text not null references devices.devices (id),
    app_id text not null,
    user_id text not null,
    sees_all boolean not null,
    state text not null default 'queued' check (state in ('queued', 'running', 'done', 'failed', 'cancelled')),
    error text,
    fencing_token bigint,
    lease_until timestamptz,
    attempts integer not null default 0,
    due_at timestamptz not null default clock_timestamp(),
    created_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    constraint installations_leased check ((state = 'running') = (lease_until is not null)),
    constraint installations_over check ((state in ('done', 'failed', 'cancelled')) = (finished_at is not null))
);

create index installations_batch on devices.installations (batch_id);
create index installations_device on devices.installations (device_id, id) where state in ('queued', 'running');
create index installations_open on devices.installations (id) where state in ('queued', 'running');

comment on table devices.installations is
    'The queue of installations of apps on devices, one at a time on each. It is apart from the operations: a device may be started, stopped, moved and lost meanwhile, and the app comes when the device runs again.';
comment on column devices.installations.user_id is 'Who asked: the app must be one that this user may see when the package is fetched.';
comment on column devices.installations.sees_all is 'Whether an administrator asked, who may see every app.';
