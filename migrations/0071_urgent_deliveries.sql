alter table notifications.deliveries add column urgent boolean not null default false;
comment on column notifications.deliveries.urgent is 'It goes before those that are not.';
