create schema billing;

comment on schema billing is
    'What is sold, what was ordered and paid, and the ledger that proves it. Amounts are fen. Owned by the crate of that name.';

create table billing.plans (
    seq bigint generated always as identity,
    id text primary key,
    code text not null constraint plans_code_key unique,
    name text not null,
    description text not null,
    type text not null check (type in ('free', 'basic', 'pro', 'enterprise')),
    price bigint not null check (price between 0 and 100000000),
    original_price bigint check (original_price >= 0),
    currency text not null default 'CNY',
    billing_cycle text not null check (billing_cycle in ('monthly', 'yearly')),
    duration integer not null check (duration between 1 and 3660),
    features text[] not null default '{}',
    max_devices integer not null check (max_devices >= 0),
    cpu_cores integer not null check (cpu_cores > 0),
    memory_mb integer not null check (memory_mb > 0),
    storage_mb integer not null check (storage_mb > 0),
    storage_quota_gb integer not null check (storage_quota_gb >= 0),
    traffic_quota_gb integer not null check (traffic_quota_gb >= 0),
    is_popular boolean not null default false,
    is_active boolean not null default true,
    is_public boolean not null default true,
    created_at timestamptz not null,
    updated_at timestamptz not null
);
comment on table billing.plans is 'What can be ordered; an order fixes the price at its creation.';
comment on column billing.plans.duration is 'Days that one payment is good for.';

-- Lists show the newest first, so the dearest goes in first.
insert into billing.plans
    (id, code, name, description, type, price, billing_cycle, duration, features, max_devices,
     cpu_cores, memory_mb, storage_mb, storage_quota_gb, traffic_quota_gb, is_popular, created_at, updated_at)
values
    ('enterprise', 'enterprise', 'Enterprise', 'For companies that run fleets of phones', 'enterprise', 99900, 'monthly', 30,
     '{"100 devices","8 cores and 8 GB each","Priority support","Dedicated nodes"}', 100, 8, 8192, 65536, 6400, 10000, false, '2025-01-01Z', '2025-01-01Z'),
    ('pro', 'pro', 'Pro', 'For teams', 'pro', 29900, 'monthly', 30,
     '{"20 devices","4 cores and 4 GB each","Priority support"}', 20, 4, 4096, 32768, 640, 2000, true, '2025-01-01Z', '2025-01-01Z'),
    ('basic', 'basic', 'Basic', 'For everyday use', 'basic', 9900, 'monthly', 30,
     '{"5 devices","2 cores and 2 GB each"}', 5, 2, 2048, 16384, 80, 500, false, '2025-01-01Z', '2025-01-01Z'),
    ('free', 'free', 'Free', 'One phone to try', 'free', 0, 'monthly', 30,
     '{"1 device"}', 1, 1, 1024, 8192, 8, 10, false, '2025-01-01Z', '2025-01-01Z');

create sequence billing.order_numbers;
create sequence billing.payment_numbers;

create table billing.orders (
    seq bigint generated always as identity,
    id text primary key,
    order_no text not null constraint orders_number_key unique,
    user_id text not null,
    plan_id text not null references billing.plans (id),
    plan_name text not null,
    amount bigint not null check (amount >= 0),
    discount_amount bigint not null default 0 check (discount_amount >= 0),
    final_amount bigint not null check (final_amount >= 0 and final_amount = amount - discount_amount),
    currency text not null default 'CNY',
    state text not null check (state in ('PENDING', 'PAID', 'COMPLETED', 'CANCELLED', 'EXPIRED', 'REFUNDING', 'REFUNDED', 'FAILED')),
    payment_method text,
    transaction_id text,
    coupon_id text,
    expires_at timestamptz not null,
    paid_at timestamptz,
    cancelled_at timestamptz,
    refunded_at timestamptz,
    refund_amount bigint not null default 0,
    remark text,
    cancel_reason text,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint orders_paid_once check ((paid_at is not null) = (state in ('PAID', 'COMPLETED', 'REFUNDING', 'REFUNDED'))),
    constraint orders_refund_bound check (refund_amount between 0 and final_amount)
);
create index orders_user_idx on billing.orders (user_id, created_at desc, seq desc);
create index orders_newest_idx on billing.orders (created_at desc, seq desc);
create index orders_unpaid_idx on billing.orders (expires_at) where state = 'PENDING';
comment on table billing.orders is
    'Purchases of plans. Whoever changes the state locks the row and says in the update which state it was.';

create table billing.payments (
    seq bigint generated always as identity,
    id text primary key,
    payment_no text not null constraint payments_number_key unique,
    order_id text not null references billing.orders (id),
    user_id text not null,
    amount bigint not null check (amount >= 0),
    currency text not null default 'CNY',
    method text not null check (method in ('wechat', 'alipay', 'stripe', 'paypal', 'paddle', 'balance', 'other')),
    status text not null check (status in ('pending', 'processing', 'success', 'failed', 'refunding', 'refunded', 'cancelled')),
    applied boolean not null default false,
    transaction_id text,
    failure_reason text,
    refund_amount bigint not null default 0,
    expires_at timestamptz not null,
    paid_at timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint payments_refund_bound check (refund_amount between 0 and amount),
    constraint payments_applied_are_paid check (not applied or (status in ('success', 'refunding', 'refunded') and paid_at is not null))
);
create unique index payments_once_an_order on billing.payments (order_id) where applied;
create index payments_order_idx on billing.payments (order_id);
create index payments_user_idx on billing.payments (user_id, created_at desc, seq desc);
create index payments_newest_idx on billing.payments (created_at desc, seq desc);
comment on table billing.payments is
    'Attempts to pay an order, and money that came for one that could not take it.';
comment on column billing.payments.applied is
    'This is the payment that paid its order: the unique index lets an order have one at most.';

create table billing.webhook_events (
    seq bigint generated always as identity,
    provider text not null,
    event_id text not null,
    order_id text,
    payment_no text,
    transaction_id text,
    status text not null,
    amount bigint,
    signed boolean not null,
    raw bytea not null,
    order_state text,
    outcome text not null check (outcome in ('received', 'paid', 'duplicate', 'refunded', 'failed', 'ignored', 'amount_mismatch', 'unknown_order')),
    deliveries integer not null default 1,
    received_at timestamptz not null,
    last_received_at timestamptz not null,
    constraint webhook_events_once primary key (provider, event_id)
);
create index webhook_events_order_idx on billing.webhook_events (order_id);
create index webhook_events_unapplied_idx on billing.webhook_events (received_at) where outcome in ('amount_mismatch', 'unknown_order');
comment on table billing.webhook_events is
    'Every notice of a payment provider with what was made of it, written in the transaction of its effect. The primary key lets an event have its effect once; those that could not be applied are tried again when they are delivered again.';
comment on column billing.webhook_events.raw is 'The body as it came.';
comment on column billing.webhook_events.order_state is 'The state of the order as the first answer told it.';

create table billing.balances (
    id text not null constraint balances_id_key unique,
    user_id text primary key,
    available bigint not null default 0 constraint balances_available_not_negative check (available >= 0),
    frozen bigint not null default 0 constraint balances_frozen_not_negative check (frozen >= 0),
    total_recharge bigint not null default 0 check (total_recharge >= 0),
    total_consume bigint not null default 0 check (total_consume >= 0),
    currency text not null default 'CNY',
    low_balance_threshold bigint not null default 10000,
    alert_enabled boolean not null default true,
    created_at timestamptz not null,
    updated_at timestamptz not null
);
comment on table billing.balances is
    'What each user has, kept beside the ledger that it follows from; changed only in the transaction that writes the postings.';

create table billing.accounts (
    id text primary key,
    kind text not null check (kind in ('available', 'frozen', 'cash_in', 'revenue', 'refunds', 'adjustments')),
    user_id text references billing.balances (user_id),
    constraint accounts_one_a_kind unique nulls not distinct (user_id, kind),
    constraint accounts_owner check ((user_id is not null) = (kind in ('available', 'frozen')))
);
comment on table billing.accounts is
    'Where money can be. The balances of users are kept; those of the house follow from the postings alone, so that payments of different users never wait for one row.';

insert into billing.accounts (id, kind)
values ('cash_in', 'cash_in'), ('revenue', 'revenue'), ('refunds', 'refunds'), ('adjustments', 'adjustments');

create table billing.transactions (
    seq bigint generated always as identity,
    id text primary key,
    user_id text not null,
    type text not null check (type in ('recharge', 'consume', 'refund', 'freeze', 'unfreeze', 'adjust', 'payment')),
    amount bigint not null,
    balance_before bigint,
    balance_after bigint,
    description text not null,
    order_id text,
    payment_id text,
    device_id text,
    operator_id text,
    metadata jsonb,
    created_at timestamptz not null,
    constraint transactions_amount check (amount > 0 or (type = 'adjust' and amount <> 0)),
    constraint transactions_balance_shown check ((type = 'payment') = (balance_before is null) and (type = 'payment') = (balance_after is null))
);
create index transactions_user_idx on billing.transactions (user_id, created_at desc, seq desc);
create unique index transactions_pay_an_order_once on billing.transactions (order_id) where type = 'payment';
comment on table billing.transactions is
    'Movements of money, append-only. A payment from outside that pays an order passes no balance and is not shown among a user''s movements.';

create table billing.postings (
    transaction_id text not null references billing.transactions (id),
    leg smallint not null check (leg > 0),
    account_id text not null references billing.accounts (id),
    amount bigint not null check (amount <> 0),
    primary key (transaction_id, leg)
);
create index postings_account_idx on billing.postings (account_id);
comment on table billing.postings is
    'The legs of each movement: what an account gains (or loses, below zero). Append-only; those of one movement sum to zero.';

create table billing.refunds (
    seq bigint generated always as identity,
    id text primary key,
    order_id text not null references billing.orders (id),
    payment_id text not null references billing.payments (id),
    transaction_id text not null references billing.transactions (id),
    amount bigint not null check (amount > 0),
    reason text not null,
    operator_id text not null,
    created_at timestamptz not null
);
create index refunds_order_idx on billing.refunds (order_id);
comment on table billing.refunds is 'What was given back of paid orders, and by whom.';

create function billing.legs_sum_to_zero() returns trigger language plpgsql as $$
declare
    checked text;
    total numeric;
    legs bigint;
begin
    if tg_table_name = 'postings' then
        checked := new.transaction_id;
    else
        checked := new.id;
    end if;
    select coalesce(sum(amount), 0), count(*) into total, legs from billing.postings where transaction_id = checked;
    if total <> 0 or legs < 2 then
        raise exception 'transaction % has % legs that sum to %', checked, legs, total
            using errcode = 'check_violation', constraint = 'legs_sum_to_zero';
    end if;
    return null;
end $$;

create constraint trigger legs_sum_to_zero after insert on billing.postings
    deferrable initially deferred for each row execute function billing.legs_sum_to_zero();
create constraint trigger legs_sum_to_zero after insert on billing.transactions
    deferrable initially deferred for each row execute function billing.legs_sum_to_zero();

create function billing.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '%.% is append-only', tg_table_schema, tg_table_name using errcode = 'restrict_violation';
end $$;

create trigger append_only before update or delete or truncate on billing.postings
    for each statement execute function billing.refuse_change();
create trigger append_only before update or delete or truncate on billing.transactions
    for each statement execute function billing.refuse_change();
