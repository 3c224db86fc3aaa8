-- Notices of Stripe, Alipay and WeChat Pay, and what could not be applied: kept, shown, tried again.

alter table billing.webhook_events
    add column headers jsonb,
    add column told jsonb,
    add column retry_at timestamptz,
    add column retries integer not null default 0,
    add column replayed_by text;
alter table billing.webhook_events drop constraint webhook_events_outcome_check;
alter table billing.webhook_events add constraint webhook_events_outcome_check check (outcome in (
    'received', 'paid', 'duplicate', 'refunded', 'failed', 'ignored', 'refund_settled',
    'amount_mismatch', 'currency_mismatch', 'merchant_mismatch', 'unknown_order', 'held', 'unreadable'));
create unique index webhook_events_seq_key on billing.webhook_events (seq);
create index webhook_events_newest_idx on billing.webhook_events (received_at desc, seq desc);
drop index billing.webhook_events_unapplied_idx;
create index webhook_events_unapplied_idx on billing.webhook_events (received_at) where outcome in
    ('amount_mismatch', 'currency_mismatch', 'merchant_mismatch', 'unknown_order', 'held', 'unreadable');
create index webhook_events_retry_idx on billing.webhook_events (retry_at) where outcome in ('unknown_order', 'held');
comment on column billing.webhook_events.headers is 'Those by which its signature can be checked again; null where it came before they were kept.';
comment on column billing.webhook_events.told is 'What was read from it, by which it is tried again; null where it could not be read.';
comment on column billing.webhook_events.retry_at is 'When it is tried again by itself.';
comment on column billing.webhook_events.replayed_by is 'The admin who let it be tried again last.';
