create index orders_term_idx on billing.orders (paid_at) where state = 'PAID';

alter table billing.device_usage
    add column unit_price bigint not null default 0 check (unit_price >= 0),
    add column total_cost bigint not null default 0 check (total_cost >= 0);
comment on column billing.device_usage.unit_price is 'Ten-thousandths of a yuan for a minute, when it was told.';

create table billing.usage_records (
    seq bigint generated always as identity,
    id text primary key,
    user_id text not null,
    device_id text not null,
    resource_type text not null check (resource_type in ('device_time', 'storage', 'traffic', 'api_call')),
    quantity numeric(18, 4) not null check (quantity > 0),
    unit_price bigint not null check (unit_price >= 0),
    total_cost bigint not null check (total_cost >= 0),
    transaction_id text references billing.transactions (id),
    description text,
    began_at timestamptz not null,
    ended_at timestamptz not null check (ended_at >= began_at),
    created_at timestamptz not null
);
create index usage_records_user_idx on billing.usage_records (user_id, began_at desc, seq desc);
comment on table billing.usage_records is 'What services and admins told of usage, each with the movement that it cost.';
comment on column billing.usage_records.unit_price is 'Ten-thousandths of a yuan.';

create table billing.debts (
    seq bigint generated always as identity,
    id text primary key,
    user_id text not null,
    device_id text not null,
    began_at timestamptz not null,
    amount bigint not null check (amount > 0),
    transaction_id text references billing.transactions (id),
    created_at timestamptz not null,
    settled_at timestamptz,
    constraint debts_once_an_hour unique (device_id, began_at),
    constraint debts_settled check ((transaction_id is null) = (settled_at is null))
);
create index debts_open_idx on billing.debts (user_id) where settled_at is null;
comment on table billing.debts is
    'Hours of devices that the balance did not cover when they were told. A cron collects them as soon as it does.';

create table billing.usage_sessions (
    id text primary key,
    user_id text not null,
    device_id text not null,
    started_at timestamptz not null,
    stopped_at timestamptz,
    usage_id text references billing.usage_records (id),
    constraint usage_sessions_stopped check ((usage_id is null) = (stopped_at is null))
);
create unique index usage_sessions_one_open on billing.usage_sessions (device_id) where stopped_at is null;
comment on table billing.usage_sessions is 'Use of a device that a service says began; what it cost is recorded once, when it says it ended.';

alter table billing.plans add column usage_prices jsonb not null default '{}' check (jsonb_typeof(usage_prices) = 'object');
comment on column billing.plans.usage_prices is
    'What usage costs beside the plan: ten-thousandths of a yuan by resource type. What is not named costs what the setting says.';

create view billing.usage as
select seq, id, user_id, device_id, 'device_time'::text as resource_type, minutes::float8 as quantity,
    unit_price / 10000.0::float8 as unit_price, total_cost, began_at, ended_at, created_at
from billing.device_usage
union all
select seq, id, user_id, device_id, resource_type, quantity::float8, unit_price / 10000.0::float8, total_cost,
    began_at, ended_at, created_at
from billing.usage_records;
comment on view billing.usage is 'All usage: what devices told of themselves, and what was recorded.';
