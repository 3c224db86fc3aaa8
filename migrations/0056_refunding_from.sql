-- What an order was before all of it began to be given back.

alter table billing.orders add column refunding_from text;
comment on column billing.orders.refunding_from is
    'The state to which a refund that fails brings the order back; null before the first, and where an older replica began it: PAID then.';
