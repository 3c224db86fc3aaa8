-- What 0057 and 0058 have let new rows be checked by, for those that were there: while others write.

alter table billing.invoices validate constraint invoices_paid_bound;
alter table billing.invoices validate constraint invoices_paid_whole;
alter table billing.refunds validate constraint refunds_succeeded_are_booked;
alter table billing.transactions validate constraint transactions_type_check;
alter table billing.transactions validate constraint transactions_balance_shown;
