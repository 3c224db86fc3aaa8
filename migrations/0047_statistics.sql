alter table billing.orders add column metadata jsonb check (jsonb_typeof(metadata) = 'object');
comment on column billing.orders.metadata is 'What admins note on it.';

create index transactions_time_idx on billing.transactions (created_at);

create table billing.known_users (
    user_id text primary key,
    registered_at timestamptz not null
);
create index known_users_time_idx on billing.known_users (registered_at);
comment on table billing.known_users is 'Who registered, as the user service told.';

create table billing.known_devices (
    device_id text primary key,
    user_id text not null,
    status text not null,
    changed_at timestamptz not null
);
comment on table billing.known_devices is
    'The status of each device as its service told last; an event that comes late changes nothing. What is deleted stays, so that it is not brought back.';

-- Nothing may be settled before the census has come; what was before it is taken over.
insert into platform.subscriptions (consumer, kind)
select 'billing-census', kind
from unnest(array['user.registered', 'device.created', 'device.status_changed', 'device.deleted']) kind
on conflict do nothing;

insert into billing.known_users (user_id, registered_at)
select id, created_at from users.accounts on conflict do nothing;

insert into billing.known_devices (device_id, user_id, status, changed_at)
select id, user_id, status, updated_at from devices.devices on conflict do nothing;

create view billing.revenue as
select t.created_at, p.amount, p.account_id = 'refunds' as refund
from billing.postings p join billing.transactions t on t.id = p.transaction_id
where p.account_id in ('revenue', 'refunds');
comment on view billing.revenue is 'What was earned, and below zero what was given back of it.';
