create table billing.low_balance_alerts (
    seq bigint generated always as identity primary key,
    user_id text not null,
    balance bigint not null,
    threshold bigint not null,
    created_at timestamptz not null
);
create index low_balance_alerts_user_idx on billing.low_balance_alerts (user_id, seq desc);
comment on table billing.low_balance_alerts is
    'When balances fell to their thresholds or below, written with the event that tells of it.';

create table billing.ledger_verdict (
    only_one boolean primary key default true constraint ledger_verdict_is_one check (only_one),
    verdict jsonb not null,
    checked_at timestamptz not null
);
comment on table billing.ledger_verdict is
    'What the last proof of the ledger found, for when one takes longer than a request may.';
