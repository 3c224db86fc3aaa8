-- no-transaction
-- On which devices an app is, and to which it is on its way.
create index concurrently if not exists installations_app_idx
    on devices.installations (app_id, device_id, id) where state in ('queued', 'running');
