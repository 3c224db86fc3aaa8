-- The transaction by which a signed notice pays an order, as crates/billing sends it, statement by statement.
\set n :n + 1
begin;
select clock_timestamp();
insert into billing.webhook_events
    (provider, event_id, order_id, payment_no, transaction_id, status, amount, signed, raw, told, outcome,
     received_at, last_received_at, headers)
values ('pgbench', concat('e-bench-', :turn::text, '-', :client_id::text, '-', :n::text), concat('bench-', :turn::text, '-', :client_id::text, '-', :n::text), null,
    concat('t-bench-', :turn::text, '-', :client_id::text, '-', :n::text), 'paid', 9900, true,
    convert_to(concat('{"amount":99,"currency":"CNY","orderId":"bench-', :turn::text, '-', :client_id::text, '-', :n::text,
        '","provider":"alipay","status":"paid","transactionId":"t-bench-', :turn::text, '-', :client_id::text, '-', :n::text, '"}'), 'UTF8'),
    jsonb_build_object('kind', 'payment', 'notice', jsonb_build_object('orderId', concat('bench-', :turn::text, '-', :client_id::text, '-', :n::text),
        'status', 'paid', 'transactionId', concat('t-bench-', :turn::text, '-', :client_id::text, '-', :n::text), 'amount', 99.00, 'provider', 'pgbench')),
    'received', now(), now(),
    jsonb_build_object('webhook-id', concat('e-bench-', :turn::text, '-', :client_id::text, '-', :n::text), 'webhook-timestamp', '1700000000',
        'webhook-signature', 'v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='))
on conflict (provider, event_id) do nothing;
select * from billing.orders where id = concat('bench-', :turn::text, '-', :client_id::text, '-', :n::text) for no key update;
select * from billing.payments where order_id = concat('bench-', :turn::text, '-', :client_id::text, '-', :n::text) and applied;
select distinct status, transaction_id, payment_no from billing.webhook_events
where order_id = concat('bench-', :turn::text, '-', :client_id::text, '-', :n::text)
    and (provider, event_id) <> ('pgbench', concat('e-bench-', :turn::text, '-', :client_id::text, '-', :n::text))
    and outcome in ('paid', 'refunded', 'failed', 'ignored') and status in ('paid', 'failed', 'cancelled')
limit 1000;
update billing.orders
set state = 'PAID', paid_at = now(), updated_at = now(), payment_method = 'alipay',
    transaction_id = concat('t-bench-', :turn::text, '-', :client_id::text, '-', :n::text)
where id = concat('bench-', :turn::text, '-', :client_id::text, '-', :n::text) and state = 'PENDING'
returning *;
insert into billing.payments
    (id, payment_no, order_id, user_id, amount, method, status, expires_at, created_at, updated_at, provider, provider_open, ask_at)
values (concat('p-bench-', :turn::text, '-', :client_id::text, '-', :n::text),
    'PAY' || to_char(now() at time zone 'UTC', 'YYMMDDHH24MISS') || lpad((nextval('billing.payment_numbers') % 100000000)::text, 8, '0'),
    concat('bench-', :turn::text, '-', :client_id::text, '-', :n::text), 'bench', 9900, 'alipay', 'pending', now() + interval '15 minutes', now(), now(),
    null, false, now() + interval '1 minute')
returning *;
update billing.payments
set status = 'success', applied = true, paid_at = now(), updated_at = now(), failure_reason = null,
    transaction_id = concat('t-bench-', :turn::text, '-', :client_id::text, '-', :n::text)
where id = concat('p-bench-', :turn::text, '-', :client_id::text, '-', :n::text)
returning *;
update billing.payments set status = 'cancelled', updated_at = now()
where order_id = concat('bench-', :turn::text, '-', :client_id::text, '-', :n::text) and status in ('pending', 'processing');
with entry as (
    insert into billing.transactions (id, user_id, type, amount, description, order_id, payment_id, created_at)
    values (concat('m-bench-', :turn::text, '-', :client_id::text, '-', :n::text), 'bench', 'payment', 9900, 'order of the benchmark: Basic',
        concat('bench-', :turn::text, '-', :client_id::text, '-', :n::text), concat('p-bench-', :turn::text, '-', :client_id::text, '-', :n::text), now())
)
insert into billing.postings (transaction_id, leg, account_id, amount)
values (concat('m-bench-', :turn::text, '-', :client_id::text, '-', :n::text), 1, 'cash_in', -9900),
    (concat('m-bench-', :turn::text, '-', :client_id::text, '-', :n::text), 2, 'revenue', 9900);
insert into platform.outbox (id, kind, event, due_at)
values (concat('o-bench-', :turn::text, '-', :client_id::text, '-', :n::text), 'order.paid',
    jsonb_build_object('id', concat('o-bench-', :turn::text, '-', :client_id::text, '-', :n::text), 'kind', 'order.paid', 'userId', 'bench',
        'orderId', concat('bench-', :turn::text, '-', :client_id::text, '-', :n::text), 'amount', 99.00, 'planId', 'basic'), now());
update billing.webhook_events set retry_at = now()
where seq in (
    select seq from billing.webhook_events
    where outcome = 'held' and (payment_no = 'PAY' or transaction_id = concat('t-bench-', :turn::text, '-', :client_id::text, '-', :n::text))
    for no key update skip locked
);
update billing.webhook_events
set outcome = 'paid', order_state = 'PAID', status = 'paid', signed = true, retry_at = null
where provider = 'pgbench' and event_id = concat('e-bench-', :turn::text, '-', :client_id::text, '-', :n::text);
commit;
