create sequence notifications.fencing_tokens;

create table notifications.deliveries (
    seq bigint generated always as identity,
    id text primary key,
    notification_id text not null references notifications.notifications (id) on delete cascade,
    user_id text not null,
    channel text not null check (channel in ('email', 'sms', 'webhook')),
    state text not null check (state in ('queued', 'running', 'sent', 'failed')),
    leaves_at timestamptz not null,
    bundle text,
    due_at timestamptz not null default clock_timestamp(),
    first_tried_at timestamptz,
    attempts integer not null default 0,
    lease_until timestamptz,
    fencing_token bigint,
    error text,
    created_at timestamptz not null,
    finished_at timestamptz,
    constraint deliveries_channel_key unique (notification_id, channel),
    constraint deliveries_lease check ((state = 'running') = (lease_until is not null))
);
create index deliveries_due_idx on notifications.deliveries (due_at) where state = 'queued';
create index deliveries_lease_idx on notifications.deliveries (lease_until) where state = 'running';
create index deliveries_open_idx on notifications.deliveries (user_id, channel, seq) where state in ('queued', 'running');
create index deliveries_bundle_idx on notifications.deliveries (bundle, seq) where bundle is not null and state in ('queued', 'running');
create index deliveries_list_idx on notifications.deliveries (created_at desc, seq desc);
comment on table notifications.deliveries is
    'What leaves the platform: one row for each channel of a notification, written with it. Any replica carries it out; its id is told to the receiver, who may get it twice.';
comment on column notifications.deliveries.leaves_at is
    'Not before this, by the wish of the user; due_at is when it is tried next, by the clock of the database.';
comment on column notifications.deliveries.bundle is
    'Those of one digest share it, and one message carries them.';
comment on column notifications.deliveries.first_tried_at is
    'From here on its age is counted, after which it has failed.';
comment on column notifications.deliveries.fencing_token is
    'Whoever holds it may write the outcome; a worker whose lease ended and was given away changes nothing.';

create table notifications.webhooks (
    user_id text primary key,
    url text not null,
    secret bytea not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);
comment on table notifications.webhooks is
    'Where users want to be called, and the secret that signs the calls. It is shown to its user once.';
