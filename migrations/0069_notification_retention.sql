alter table notifications.inboxes add column purged_seq bigint not null default 0;
comment on column notifications.inboxes.purged_seq is
    'The highest number that was deleted for its age. Who asks for what comes after a lower one is told that it is not all there.';
comment on column notifications.inboxes.last_seq is
    'The number of the newest notification. Numbers grow by one; one that is missing in notifications.notifications was deleted by its user, or for its age.';
create index notifications_age_idx on notifications.notifications (created_at);
