-- What stands on an invoice, and how much of it is settled.

create table billing.invoice_entries (
    seq bigint generated always as identity primary key,
    -- Claimed before the invoice is written, which says what they come to.
    invoice_id text not null references billing.invoices (id) deferrable initially deferred,
    transaction_id text constraint invoice_entries_movement_once unique references billing.transactions (id),
    debt_id text constraint invoice_entries_debt_once unique references billing.debts (id),
    constraint invoice_entries_one_source check (num_nonnulls(transaction_id, debt_id) = 1)
);
create index invoice_entries_invoice_idx on billing.invoice_entries (invoice_id);
comment on table billing.invoice_entries is
    'The movements and debts that a generated invoice states. None stands on two; those of a cancelled one are deleted, and free.';

alter table billing.invoices
    add column paid_amount bigint,
    add constraint invoices_paid_bound check (paid_amount between 0 and total) not valid,
    -- A replica from before this would pay a generated invoice in full, once more: it is refused.
    add constraint invoices_paid_whole check (paid_amount = total or status in ('unpaid', 'cancelled')) not valid;
comment on column billing.invoices.paid_amount is
    'How much of a generated invoice is settled: what left the balance or was paid at a provider, and debts that were collected. Null where it was written by hand, and is paid in full or not at all.';

-- What is on the generated invoices so far had left the balance, or was paid at a provider, before they were written.
update billing.invoices
set status = 'paid', paid_at = clock_timestamp(), updated_at = clock_timestamp(), paid_amount = total
where generated and status = 'unpaid';

insert into billing.invoice_entries (invoice_id, transaction_id)
select distinct on (t.id) i.id, t.id
from billing.invoices i
join billing.transactions t on t.user_id = i.user_id and t.type in ('consume', 'payment')
    and t.created_at between i.period_start and i.period_end
where i.generated and i.status <> 'cancelled'
    and not exists (select 1 from billing.invoices p where p.transaction_id = t.id)
order by t.id, i.seq;
