create table platform.dead_letters (
    consumer text not null,
    event_id text not null references platform.outbox (id) on delete cascade,
    failures integer not null,
    error text not null,
    first_failed_at timestamptz not null,
    last_failed_at timestamptz not null,
    buried_at timestamptz,
    primary key (consumer, event_id)
);
create index dead_letters_event_idx on platform.dead_letters (event_id);
create index dead_letters_buried_idx on platform.dead_letters (buried_at desc, event_id) where buried_at is not null;
comment on table platform.dead_letters is
    'Events that a consumer could not handle. A row goes with its success.';
comment on column platform.dead_letters.buried_at is
    'When it was given up: this consumer is no longer waited for, until an admin lets it try again. Its event is kept.';
