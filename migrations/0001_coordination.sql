create schema coordination;

comment on schema coordination is
    'What keeps replicas out of each other''s way: fencing tokens, cron runs, idempotency keys. Owned by the crate of that name.';

create table coordination.fences (
    key text primary key,
    token bigint not null check (token > 0)
);

comment on table coordination.fences is
    'The highest fencing token known for each lease or job. A holder with a lower one is late and must change nothing; tokens never go down, also when Redis lost its counter.';

create table coordination.cron_jobs (
    job text primary key,
    schedule text not null,
    catch_up text not null,
    first_seen_at timestamptz not null default clock_timestamp(),
    seen_at timestamptz not null default clock_timestamp()
);

comment on table coordination.cron_jobs is
    'Every job a replica has announced. Slots before first_seen_at are nobody''s debt and are not caught up.';

create table coordination.cron_runs (
    job text not null,
    slot timestamptz not null,
    manual boolean not null default false,
    attempt integer not null default 1,
    token bigint,
    instance text,
    state text not null check (state in ('requested', 'running', 'succeeded', 'failed', 'abandoned')),
    scheduled_at timestamptz not null default clock_timestamp(),
    started_at timestamptz,
    alive_at timestamptz,
    finished_at timestamptz,
    lag_ms bigint,
    error text,
    constraint cron_runs_once_a_slot primary key (job, slot),
    constraint cron_runs_started check (state = 'requested' or (token is not null and instance is not null and started_at is not null))
);

create index cron_runs_open on coordination.cron_runs (job, slot) where state in ('requested', 'running', 'abandoned');
create index cron_runs_old on coordination.cron_runs (scheduled_at);

comment on table coordination.cron_runs is
    'One row for each slot of each job that was begun: the primary key, not a lock, keeps a slot from running twice.';
comment on column coordination.cron_runs.alive_at is
    'When the holder last said that it still runs; a running row that stays silent for longer than the lock lives has lost its holder.';
comment on column coordination.cron_runs.manual is
    'Asked for by hand: the slot is the moment of asking and does not count when the schedule is caught up.';

create table coordination.idempotency_keys (
    scope text not null,
    key text not null,
    fingerprint bytea not null,
    status integer,
    body jsonb,
    created_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    primary key (scope, key)
);

create index idempotency_keys_expiry on coordination.idempotency_keys (expires_at);

comment on table coordination.idempotency_keys is
    'Keys of POSTs that were carried out, with the answer given. Written in the transaction of the effect, so that neither exists without the other.';
comment on column coordination.idempotency_keys.status is
    'HTTP status of the first answer; null while its transaction has stored none.';
