create schema notifications;

create table notifications.inboxes (
    user_id text primary key,
    last_seq bigint not null,
    unread bigint not null,
    updated_at timestamptz not null,
    constraint inboxes_unread check (unread >= 0 and last_seq >= unread)
);
create index inboxes_updated_idx on notifications.inboxes (updated_at);
comment on table notifications.inboxes is
    'One row for each user that ever had a notification. Its lock orders the user''s notifications: numbers are given out, and commit, one after the other.';
comment on column notifications.inboxes.last_seq is
    'The number of the newest notification. Numbers grow by one; one that is missing in notifications.notifications was deleted by its user.';

create table notifications.notifications (
    id text primary key,
    user_id text not null references notifications.inboxes (user_id),
    seq bigint not null check (seq > 0),
    kind text not null check (kind in ('system', 'billing', 'device', 'promotion', 'security')),
    event text,
    title text not null,
    message text not null,
    priority text not null check (priority in ('low', 'normal', 'high', 'urgent')),
    status text not null check (status in ('unread', 'read')),
    delivery_status text not null check (delivery_status in ('pending', 'sent', 'failed')),
    channels jsonb not null,
    data jsonb,
    pushes jsonb not null default '[]',
    event_id text,
    created_at timestamptz not null,
    read_at timestamptz,
    expires_at timestamptz,
    constraint notifications_seq_key unique (user_id, seq),
    constraint notifications_event_key unique (event_id)
);
create index notifications_list_idx on notifications.notifications (user_id, created_at desc, seq desc);
comment on table notifications.notifications is
    'What users were told. Written before it is sent; sockets are fed from here, in the order of seq.';
comment on column notifications.notifications.pushes is
    'Frames that follow the notification on live sockets, such as payment-success: an array of {event, data}.';
comment on column notifications.notifications.event_id is
    'The domain event it was made for; the unique index keeps one event from being told twice.';
