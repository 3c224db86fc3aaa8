-- no-transaction
create index concurrently if not exists usage_sessions_device_idx on billing.usage_sessions (device_id, stopped_at);
