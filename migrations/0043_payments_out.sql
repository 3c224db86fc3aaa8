-- Payments that we begin at a provider, refunds that go back to it, and the provider of the sandbox.

alter table billing.payments
    add column provider text,
    add column provider_reference text,
    add column payment_url text,
    add column qr_code text,
    add column provider_open boolean not null default false,
    add column ask_at timestamptz,
    add column asked integer not null default 0,
    add column last_answer text,
    add constraint payments_begun_have_a_provider check (provider is not null or not provider_open);
create index payments_open_idx on billing.payments (ask_at) where provider_open;
comment on column billing.payments.provider is
    'At whose interface we began it, written before the first call; null where nobody is called.';
comment on column billing.payments.provider_reference is 'The provider''s name of what was begun, where its answers need it.';
comment on column billing.payments.provider_open is
    'Whether money may still come by it as far as we know: true from before the first call until the provider has said how it ended.';
comment on column billing.payments.ask_at is 'When the provider is asked next how it stands.';

-- Replicas from before this insert refunds to the balance, which are done when they are written: the defaults say so.
alter table billing.refunds
    alter column transaction_id drop not null,
    alter column operator_id drop not null,
    add column destination text not null default 'balance' check (destination in ('balance', 'source')),
    add column state text not null default 'succeeded'
        check (state in ('requested', 'pending', 'processing', 'succeeded', 'failed', 'rejected')),
    add column refund_no text constraint refunds_number_key unique,
    add column provider text,
    add column provider_reference text,
    add column failure_reason text,
    add column decided_by text,
    add column ask_at timestamptz,
    add column asked integer not null default 0,
    add column settled_at timestamptz,
    add constraint refunds_succeeded_are_booked check ((state = 'succeeded') = (transaction_id is not null)),
    add constraint refunds_to_the_source_are_numbered check (destination = 'balance' or (refund_no is not null and provider is not null));
create sequence billing.refund_numbers;
create index refunds_open_idx on billing.refunds (ask_at) where state in ('pending', 'processing');
create index refunds_waiting_idx on billing.refunds (created_at desc) where state in ('requested', 'pending', 'processing');
create index refunds_payment_idx on billing.refunds (payment_id);
comment on table billing.refunds is
    'What is given back of paid orders, to the balance or to where it came from, and by whom. The amount counts in refund_amount of order and payment from the request on, so that never more than was paid is on its way; it is booked when it succeeded.';

alter table billing.transactions drop constraint transactions_type_check;
alter table billing.transactions add constraint transactions_type_check
    check (type in ('recharge', 'consume', 'refund', 'freeze', 'unfreeze', 'adjust', 'payment', 'payout'));
alter table billing.transactions drop constraint transactions_balance_shown;
alter table billing.transactions add constraint transactions_balance_shown
    check ((type in ('payment', 'payout')) = (balance_before is null) and (type in ('payment', 'payout')) = (balance_after is null));
comment on table billing.transactions is
    'Movements of money, append-only. A payment from outside that pays an order, and a payout that gives it back outside, pass no balance and are not shown among a user''s movements.';

create table billing.sandbox_payments (
    payment_no text primary key,
    amount bigint not null check (amount >= 0),
    state text not null check (state in ('open', 'paid', 'failed', 'closed')),
    transaction_id text not null unique,
    created_at timestamptz not null
);
comment on table billing.sandbox_payments is 'What the provider of the sandbox knows of payments. Nothing else reads it.';

create table billing.sandbox_refunds (
    refund_no text primary key,
    payment_no text not null references billing.sandbox_payments (payment_no),
    amount bigint not null check (amount > 0),
    done_at timestamptz not null
);
comment on table billing.sandbox_refunds is 'Refunds at the provider of the sandbox, which take a moment.';

create table billing.sandbox_notices (
    id bigint generated always as identity primary key,
    webhook_id text not null,
    body text not null,
    due_at timestamptz not null,
    attempts integer not null default 0
);
create index sandbox_notices_due_idx on billing.sandbox_notices (due_at);
comment on table billing.sandbox_notices is
    'What the provider of the sandbox will tell, some of it twice, late or in the wrong order; removed once it was answered.';

create index payments_transaction_idx on billing.payments (transaction_id) where transaction_id is not null;
-- One that somebody made in the console of a provider is known by the provider's name of it, and booked once.
create unique index refunds_reference_key on billing.refunds (provider, provider_reference)
    where destination = 'source' and provider_reference is not null;
