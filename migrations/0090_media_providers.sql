alter table media.jobs
    add column type text,
    add column known_fence bigint,
    add column provider text,
    add column reference text,
    add column excluded text[] not null default '{}',
    add column failures smallint not null default 0 check (failures >= 0),
    add column polls integer not null default 0 check (polls >= 0),
    add column reported jsonb,
    add column withdraw_at timestamptz,
    add column withdrawals smallint not null default 0 check (withdrawals >= 0),
    add constraint jobs_reference_of_provider check (reference is null or provider is not null);
create index jobs_polls_idx on media.jobs (due_at) where reference is not null and reported is null and state = 'ready';
create index jobs_provider_idx on media.jobs (provider) where provider is not null and state in ('ready', 'leased');
create index jobs_withdraw_idx on media.jobs (withdraw_at) where withdraw_at is not null;
comment on column media.jobs.type is 'What the step makes; null where a replica wrote it that makes stitches alone.';
comment on column media.jobs.known_fence is 'The number of the claim, written by replicas that know every type.';
comment on column media.jobs.provider is
    'Who was, or is about to be, asked to do it. Written before the call, so that whoever comes after a crash asks there first.';
comment on column media.jobs.reference is 'How the provider names it, once it is known to have taken it. From then on due_at is when it is asked how it goes.';
comment on column media.jobs.excluded is 'Providers that surely did not take it and are not asked again.';
comment on column media.jobs.failures is 'Failures in a row at the provider.';
comment on column media.jobs.reported is 'How it ended, as the provider said first, by an answer or by itself. It stays.';
comment on column media.jobs.withdraw_at is 'When the provider is told that nobody wants it any more.';

-- A replica of before this migration would make a stitch of anything.
create function media.keep_for_those_who_know() returns trigger language plpgsql as $$
begin
    return null;
end
$$;
create trigger jobs_claimed_knowingly before update on media.jobs for each row
    when (new.state = 'leased' and new.fence > old.fence and new.type is not null and new.known_fence is distinct from new.fence)
    execute function media.keep_for_those_who_know();

create function media.keep_report() returns trigger language plpgsql as $$
begin
    raise exception 'what was reported of job % stays', old.id using errcode = 'check_violation';
end
$$;
create trigger jobs_report_stays before update on media.jobs for each row
    when (old.reported is not null and new.reported is distinct from old.reported)
    execute function media.keep_report();

create table media.providers (
    ref text primary key,
    failures integer not null default 0 check (failures >= 0),
    open_until timestamptz,
    state text not null default 'up' check (state in ('up', 'degraded', 'down')),
    check_failures integer not null default 0 check (check_failures >= 0),
    check_successes integer not null default 0 check (check_successes >= 0),
    latency_ms bigint,
    last_check_at timestamptz,
    last_error text,
    recovered_at timestamptz
);
comment on table media.providers is 'How providers do, seen by all replicas together.';
comment on column media.providers.failures is 'Calls in a row that failed.';
comment on column media.providers.open_until is 'Until then nothing new is sent there; after it one call tries.';

create table media.provider_hours (
    ref text not null,
    hour timestamptz not null,
    succeeded bigint not null default 0,
    failed bigint not null default 0,
    milliseconds bigint not null default 0,
    primary key (ref, hour)
);
comment on table media.provider_hours is 'Calls to providers by the hour.';

create table media.links (
    ticket bytea primary key,
    object_key text not null,
    expires_at timestamptz not null
);
create index links_expiry_idx on media.links (expires_at);
comment on table media.links is 'Permissions for providers to fetch one object each.';
comment on column media.links.ticket is 'SHA-256 of the secret in the address.';
