create schema platform;

create table platform.generated_secrets (
    name text primary key,
    value text not null
);
comment on table platform.generated_secrets is
    'Secrets that a development cluster made for itself; production configures its own and leaves this empty.';

create table platform.sessions (
    id text primary key,
    user_id text not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    ended_at timestamptz
);
create index sessions_user_idx on platform.sessions (user_id) where ended_at is null;
create index sessions_expiry_idx on platform.sessions (expires_at);
comment on table platform.sessions is
    'Sign-ins. The last word on whether a token is believed; Redis only remembers it for a moment.';

create table platform.outbox (
    id text primary key,
    kind text not null,
    event jsonb not null,
    attempts integer not null default 0,
    due_at timestamptz not null,
    settled_at timestamptz
);
create index outbox_due_idx on platform.outbox (due_at) where settled_at is null;
create index outbox_settled_idx on platform.outbox (settled_at) where settled_at is not null;
comment on table platform.outbox is
    'Events, written in the transaction of their effect, published until every subscriber has handled them.';
comment on column platform.outbox.due_at is 'When it is published, again if need be.';
comment on column platform.outbox.settled_at is 'When every subscriber was found to have handled it.';

create table platform.subscriptions (
    consumer text not null,
    kind text not null,
    primary key (consumer, kind)
);
comment on table platform.subscriptions is 'Which consumer handles which kind of event.';

create table platform.consumed_events (
    consumer text not null,
    event_id text not null references platform.outbox (id) on delete cascade,
    consumed_at timestamptz not null,
    primary key (consumer, event_id)
);
create index consumed_events_event_idx on platform.consumed_events (event_id);
comment on table platform.consumed_events is
    'Written in the transaction of a consumer''s effect: an event that comes again finds its row and does nothing.';
