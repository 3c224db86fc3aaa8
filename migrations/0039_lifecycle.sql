create table devices.lifecycle_rules (
    id text primary key,
    name text not null,
    type text not null constraint lifecycle_rules_type check (type in ('cleanup', 'autoscaling', 'backup', 'expiration-warning')),
    enabled boolean not null,
    priority integer not null,
    schedule text not null,
    time_zone text not null,
    config jsonb not null,
    next_execution_at timestamptz,
    last_executed_at timestamptz,
    execution_count bigint not null default 0,
    created_by text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    seq bigint generated always as identity
);

create index lifecycle_rules_due on devices.lifecycle_rules (next_execution_at) where enabled;

comment on table devices.lifecycle_rules is 'What is done with devices again and again: who is cleaned up, backed up, warned about or kept ready.';
comment on column devices.lifecycle_rules.next_execution_at is 'The next due time of the schedule; null where the schedule has none.';

create table devices.lifecycle_executions (
    id text primary key,
    rule_id text not null,
    rule_name text not null,
    type text not null,
    slot timestamptz,
    status text not null constraint lifecycle_executions_status check (status in ('running', 'completed', 'failed')),
    affected integer not null default 0,
    failed integer not null default 0,
    errors jsonb not null default '[]',
    behind text not null default '',
    fence bigint not null default 0,
    lease_until timestamptz not null,
    attempts integer not null default 0,
    started_at timestamptz not null,
    completed_at timestamptz,
    -- A rule is executed once for each of its due times, in the whole cluster.
    constraint lifecycle_executions_slot_key unique (rule_id, slot)
);

-- And once at a time.
create unique index lifecycle_executions_one_key on devices.lifecycle_executions (rule_id) where status = 'running';
create index lifecycle_executions_open on devices.lifecycle_executions (lease_until) where status = 'running';
create index lifecycle_executions_history on devices.lifecycle_executions (rule_id, started_at desc);
create index lifecycle_executions_started on devices.lifecycle_executions (started_at);

comment on table devices.lifecycle_executions is 'Each execution of a rule; it stays when the rule goes.';
comment on column devices.lifecycle_executions.slot is 'The due time it is for; null where somebody asked for it.';
comment on column devices.lifecycle_executions.behind is 'The last device that was dealt with: who goes on begins after it.';
comment on column devices.lifecycle_executions.attempts is 'How often it was taken since it last came further: where the database fails each time, the device is passed over.';
comment on column devices.lifecycle_executions.fence is 'Grows with each replica that takes it: one that was stopped meanwhile changes nothing.';

create table devices.lifecycle_warnings (
    rule_id text not null references devices.lifecycle_rules (id) on delete cascade,
    device_id text not null references devices.devices (id) on delete cascade,
    expires_at timestamptz not null,
    primary key (rule_id, device_id, expires_at)
);

create index lifecycle_warnings_device on devices.lifecycle_warnings (device_id);

comment on table devices.lifecycle_warnings is 'Of which end of which device a rule has warned: once each.';
