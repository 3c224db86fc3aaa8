alter table billing.orders add column terms jsonb check (jsonb_typeof(terms) = 'object');

update billing.orders o
set terms = jsonb_build_object('name', p.name, 'days', p.duration, 'maxDevices', p.max_devices, 'cpuCores', p.cpu_cores,
    'memoryMb', p.memory_mb, 'storageMb', p.storage_mb, 'storageQuotaGb', p.storage_quota_gb, 'trafficQuotaGb', p.traffic_quota_gb)
from billing.plans p where p.id = o.plan_id;

alter table billing.orders alter column terms set not null;

comment on column billing.orders.terms is
    'What the plan allowed when it was ordered: that is what is paid for, whatever becomes of the plan.';

-- Events that wait to be handled tell the terms from now on.
update platform.outbox e set event = jsonb_set(e.event, '{data,plan}', o.terms)
from billing.orders o
where e.kind = 'order.paid' and e.settled_at is null and not e.event -> 'data' ? 'plan' and o.id = e.event -> 'data' ->> 'orderId';

-- Nothing may be settled before those who want it have come.
insert into platform.subscriptions (consumer, kind)
values ('device-quotas', 'order.paid'), ('billing-usage', 'device.used') on conflict do nothing;

-- What orders grant that were paid before is told once more, to the quotas alone: an order that they know of changes nothing.
with told as (
    insert into platform.outbox (id, kind, event, due_at)
    select e.id, 'order.paid', jsonb_build_object('id', e.id, 'userId', o.user_id, 'type', 'order.paid',
        'occurredAt', to_char(o.paid_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
        'data', jsonb_build_object('orderId', o.id, 'orderNo', o.order_no, 'planId', o.plan_id,
            'amount', round(o.final_amount / 100.0, 2), 'plan', o.terms)), clock_timestamp()
    from billing.orders o cross join lateral (select 'paid-' || o.id as id) e
    where o.state in ('PAID', 'COMPLETED')
    returning id)
insert into platform.consumed_events (consumer, event_id, consumed_at)
select s.consumer, told.id, clock_timestamp()
from told cross join platform.subscriptions s where s.kind = 'order.paid' and s.consumer <> 'device-quotas';

create table billing.device_usage (
    device_id text not null,
    began_at timestamptz not null,
    ended_at timestamptz not null check (ended_at > began_at),
    seq bigint generated always as identity,
    id text not null constraint device_usage_id_key unique,
    user_id text not null,
    minutes integer not null check (minutes between 1 and 60),
    created_at timestamptz not null,
    primary key (device_id, began_at)
);

create index device_usage_user on billing.device_usage (user_id, began_at desc, seq desc);
create index device_usage_newest on billing.device_usage (began_at desc, seq desc);

comment on table billing.device_usage is
    'How many minutes of an hour a device ran, as its service told: one row a device and hour, however often it is told.';

-- Hours that were told when nobody listened.
insert into billing.device_usage (device_id, began_at, ended_at, id, user_id, minutes, created_at)
select u.device_id, u.began_at, u.began_at + interval '1 hour', md5(u.device_id || ' ' || extract(epoch from u.began_at)), u.user_id,
    u.minutes, clock_timestamp()
from devices.usage u where u.minutes between 1 and 60
on conflict do nothing;
