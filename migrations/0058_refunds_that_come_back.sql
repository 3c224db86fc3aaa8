-- Refunds that succeeded at their provider and failed later, when the payer's bank sent the money back. The new checks
-- let through all that the old ones did, so nobody waits until every row is looked at.

alter table billing.refunds
    add column reversal_id text constraint refunds_reversal_key unique references billing.transactions (id),
    drop constraint refunds_succeeded_are_booked,
    add constraint refunds_succeeded_are_booked check (
        case state
            when 'succeeded' then transaction_id is not null and reversal_id is null
            when 'failed' then (transaction_id is null) = (reversal_id is null)
            else transaction_id is null and reversal_id is null
        end) not valid;
comment on column billing.refunds.reversal_id is 'The movement that took the refund''s own back, where it failed after it had succeeded.';

alter table billing.transactions
    drop constraint transactions_type_check,
    add constraint transactions_type_check check (type in
        ('recharge', 'consume', 'refund', 'freeze', 'unfreeze', 'adjust', 'payment', 'payout', 'payout_returned')) not valid,
    drop constraint transactions_balance_shown,
    add constraint transactions_balance_shown check (
        (type in ('payment', 'payout', 'payout_returned')) = (balance_before is null)
        and (type in ('payment', 'payout', 'payout_returned')) = (balance_after is null)) not valid;
comment on table billing.transactions is
    'Movements of money, append-only. A payment from outside that pays an order, a payout that gives it back outside, and one that came back from there, pass no balance and are not shown among a user''s movements.';
