create table notifications.broadcasts (
    seq bigint generated always as identity,
    id text primary key,
    kind text not null check (kind in ('system', 'billing', 'device', 'promotion', 'security')),
    title text not null,
    message text not null,
    priority text not null check (priority in ('low', 'normal', 'high', 'urgent')),
    channels jsonb,
    data jsonb,
    role text,
    user_ids jsonb,
    upto bigint not null,
    recipients bigint not null,
    cursor bigint not null default 0,
    told bigint not null default 0,
    unwanted bigint not null default 0,
    state text not null check (state in ('queued', 'running', 'done', 'cancelled')),
    due_at timestamptz not null default clock_timestamp(),
    lease_until timestamptz,
    fencing_token bigint,
    created_by text not null,
    created_at timestamptz not null,
    finished_at timestamptz,
    constraint broadcasts_audience check (role is null or user_ids is null),
    constraint broadcasts_lease check ((state = 'running') = (lease_until is not null))
);
create index broadcasts_open_idx on notifications.broadcasts (seq) where state in ('queued', 'running');
create index broadcasts_list_idx on notifications.broadcasts (created_at desc, seq desc);
comment on table notifications.broadcasts is
    'What many users are told. Any replica takes the next batch of users, and moves the cursor in the transaction that stores their notifications.';
comment on column notifications.broadcasts.cursor is
    'How far it has come: the number of the last account that was told, or how many of user_ids were.';
comment on column notifications.broadcasts.upto is
    'The number of the newest account when it was made, or how many user_ids there are.';
comment on column notifications.broadcasts.unwanted is 'Users who switched off notifications of its type.';

create table notifications.broadcast_receipts (
    broadcast_id text not null references notifications.broadcasts (id) on delete cascade,
    user_id text not null,
    primary key (broadcast_id, user_id)
);
comment on table notifications.broadcast_receipts is
    'Who was reached by a broadcast: each user once, also after the notification was deleted.';

alter table notifications.notifications add column broadcast_id text;
comment on column notifications.notifications.broadcast_id is 'The broadcast that it is a part of.';
