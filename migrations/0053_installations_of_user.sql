-- Those that count to what a user may have open.
create index installations_user on devices.installations (user_id) where state in ('queued', 'running');
