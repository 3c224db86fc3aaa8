-- no-transaction
create index concurrently if not exists deliveries_next_idx on notifications.deliveries
    (channel, urgent, (greatest(due_at, leaves_at)), seq) where state = 'queued';
