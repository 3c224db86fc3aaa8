create table billing.campaigns (
    seq bigint generated always as identity,
    id text primary key,
    code text not null constraint campaigns_code_key unique,
    name text not null,
    type text not null check (type in ('discount', 'amount', 'trial')),
    value bigint not null check (value > 0),
    min_amount bigint check (min_amount > 0),
    max_uses integer not null check (max_uses > 0),
    per_user integer not null check (per_user > 0),
    claimed integer not null default 0,
    start_time timestamptz not null,
    end_time timestamptz not null check (end_time > start_time),
    operator_id text not null,
    created_at timestamptz not null,
    constraint campaigns_claimed_bound check (claimed between 0 and max_uses)
);
comment on table billing.campaigns is
    'Codes by which a limited number of coupons can be had. Whoever claims one counts it on the row first, so that claims of a code follow one another.';
comment on column billing.campaigns.value is 'As on its coupons.';
comment on column billing.campaigns.per_user is 'How many of its coupons one user can have.';

create table billing.coupons (
    seq bigint generated always as identity,
    id text primary key,
    code text not null constraint coupons_code_key unique,
    campaign_id text references billing.campaigns (id),
    user_id text not null,
    name text not null,
    type text not null check (type in ('discount', 'amount', 'trial')),
    value bigint not null check (value > 0 and (type <> 'discount' or value <= 10000)),
    min_amount bigint check (min_amount > 0),
    start_time timestamptz not null,
    end_time timestamptz not null check (end_time > start_time),
    operator_id text,
    created_at timestamptz not null
);
create index coupons_user_idx on billing.coupons (user_id, created_at desc, seq desc);
create index coupons_campaign_idx on billing.coupons (campaign_id, user_id) where campaign_id is not null;
comment on table billing.coupons is
    'Coupons of users. A row never changes: an order that names the coupon and is neither cancelled nor expired uses it.';
comment on column billing.coupons.value is 'Hundredths: of a percent for a discount, of a yuan for an amount, of a day for a trial.';

alter table billing.orders add column coupon_used_at timestamptz;
comment on column billing.orders.coupon_used_at is 'When the coupon was put to this order.';

-- One coupon, one order; an order that comes to nothing gives it back by its state alone, whichever version closes it.
create unique index orders_coupon_once on billing.orders (coupon_id)
    where coupon_id is not null and state in ('PENDING', 'PAID', 'COMPLETED', 'REFUNDING', 'REFUNDED');

create view billing.coupon_uses as
select c.*, o.id as order_id, o.coupon_used_at as used_at
from billing.coupons c
left join billing.orders o
    on o.coupon_id = c.id and o.state in ('PENDING', 'PAID', 'COMPLETED', 'REFUNDING', 'REFUNDED');
comment on view billing.coupon_uses is 'Coupons with the order that uses each.';
