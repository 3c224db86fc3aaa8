create table billing.invoice_counters (
    year integer primary key,
    last bigint not null check (last > 0)
);
comment on table billing.invoice_counters is
    'The last number of each year (UTC). It is counted up in the transaction that writes the invoice, so that what is rolled back leaves no gap.';

create table billing.invoices (
    seq bigint generated always as identity,
    id text primary key,
    invoice_number text not null constraint invoices_number_key unique,
    user_id text not null,
    type text not null check (type in ('monthly', 'recharge', 'adjustment', 'refund')),
    status text not null check (status in ('unpaid', 'paid', 'cancelled', 'refunding', 'refunded')),
    items jsonb not null check (jsonb_typeof(items) = 'array'),
    subtotal bigint not null check (subtotal >= 0),
    tax bigint not null default 0 check (tax >= 0),
    discount bigint not null default 0 check (discount >= 0),
    total bigint not null check (total >= 0 and total = subtotal + tax - discount),
    currency text not null default 'CNY',
    generated boolean not null,
    period_start timestamptz not null,
    period_end timestamptz not null check (period_end > period_start),
    due_date timestamptz not null,
    published_at timestamptz,
    paid_at timestamptz,
    payment_id text constraint invoices_payment_used_once unique references billing.payments (id),
    transaction_id text constraint invoices_transaction_key unique references billing.transactions (id),
    cancel_reason text,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint invoices_paid_once check ((paid_at is not null) = (status in ('paid', 'refunding', 'refunded')))
);
create unique index invoices_once_a_period on billing.invoices (user_id, period_start, period_end)
    where generated and status <> 'cancelled';
create index invoices_user_idx on billing.invoices (user_id, created_at desc, seq desc);
create index invoices_newest_idx on billing.invoices (created_at desc, seq desc);
comment on table billing.invoices is
    'What users are asked to pay for a span of time. Whoever changes one locks the row and says in the update which status it had.';
comment on column billing.invoices.generated is 'Made from the ledger, once a user and period; others are written by an admin.';
comment on column billing.invoices.published_at is 'Since when its user sees it.';
comment on column billing.invoices.transaction_id is 'The movement on the balance that paid it; later invoices do not bill it again.';
