-- Waits for nobody for long, for whoever comes after waits behind it; a migration that failed is tried again. Replicas of
-- the version before ignore pauses, jitter and overlap policies until they are gone.
set local lock_timeout = '5s';

alter table coordination.cron_jobs
    add column time_zone text not null default 'UTC',
    add column overlap text not null default 'queue-one',
    add column jitter_ms bigint not null default 0,
    add column timeout_ms bigint not null default 300000,
    add column pause_after integer not null default 0,
    add column failures integer not null default 0,
    add column paused_at timestamptz,
    add column pause_reason text,
    add column owes_since timestamptz not null default clock_timestamp();

update coordination.cron_jobs set owes_since = first_seen_at;

create index cron_jobs_paused on coordination.cron_jobs (job) where paused_at is not null;

comment on column coordination.cron_jobs.pause_after is
    'After so many failed runs in a row the job pauses itself; 0 for never.';
comment on column coordination.cron_jobs.failures is
    'Failed runs in a row; a success or a resumption begins anew.';
comment on column coordination.cron_jobs.owes_since is
    'Slots up to this moment are nobody''s debt: when the job was first seen, got another schedule, or was resumed.';
comment on column coordination.cron_jobs.seen_at is
    'When a replica last said that it runs this job; said every half minute.';

alter table coordination.cron_runs
    add column stop_asked boolean not null default false,
    drop constraint cron_runs_state_check,
    drop constraint cron_runs_started,
    add constraint cron_runs_state_check check (
        state in ('requested', 'running', 'succeeded', 'failed', 'abandoned', 'cancelled', 'skipped')
    ) not valid,
    add constraint cron_runs_started check (
        state in ('requested', 'skipped') or (token is not null and instance is not null and started_at is not null)
    ) not valid;

-- One open request of a job is enough: who asks again is told of it.
delete from coordination.cron_runs r where state = 'requested' and exists (
    select from coordination.cron_runs l where l.job = r.job and l.state = 'requested' and l.slot > r.slot
);
create unique index cron_runs_requested on coordination.cron_runs (job) where state = 'requested';

create index cron_runs_finished on coordination.cron_runs (job, finished_at);

comment on column coordination.cron_runs.stop_asked is
    'A later slot is due and wants this run cancelled; its holder sees it when it next says that it is alive.';

create table coordination.cron_attempts (
    job text not null,
    slot timestamptz not null,
    token bigint not null,
    instance text not null,
    started_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    outcome text check (outcome in ('succeeded', 'failed', 'abandoned', 'cancelled')),
    accepted boolean,
    primary key (job, slot, token),
    foreign key (job, slot) references coordination.cron_runs (job, slot) on delete cascade
);

create index cron_attempts_finished on coordination.cron_attempts (finished_at);

comment on table coordination.cron_attempts is
    'What every holder of a run says its body did, so that duplicates are seen by other means than those that prevent them. Null: it never said.';
comment on column coordination.cron_attempts.accepted is
    'Whether the end counted; where another had taken the run over before, it did not.';

create table coordination.findings (
    invariant text not null,
    subject text not null,
    detail jsonb not null default '{}',
    first_seen_at timestamptz not null default clock_timestamp(),
    last_seen_at timestamptz not null default clock_timestamp(),
    looks integer not null default 1,
    counted_at timestamptz not null default clock_timestamp(),
    confirmed_at timestamptz,
    primary key (invariant, subject)
);

create index findings_open on coordination.findings (invariant, last_seen_at) where confirmed_at is null;

comment on table coordination.findings is
    'Violations of what must never happen. What may be a passing state of two stores is confirmed only when a later look still finds it; what is confirmed stays.';

create table coordination.invariant_checks (
    invariant text primary key,
    checked_at timestamptz not null default clock_timestamp(),
    instance text not null,
    error text
);

comment on column coordination.findings.looks is
    'How many looks in a row have seen it, with no longer pause between two of them than an outage of the checks makes; one that comes soon after another is not counted.';
comment on column coordination.findings.counted_at is
    'When a look was last counted.';

comment on table coordination.invariant_checks is
    'When each invariant was last looked at, and why that failed: a zero that nobody has checked is none.';

create table coordination.fenced_writes (
    kind text primary key,
    total bigint not null default 0,
    last_at timestamptz not null default clock_timestamp()
);

comment on table coordination.fenced_writes is
    'Writes of late holders that a fencing token refused, over all replicas there ever were. A replica adds its own every few seconds; one that is killed takes the last few with it.';
