-- no-transaction
create index concurrently if not exists usage_records_device_idx on billing.usage_records (device_id, began_at desc, seq desc);
