-- no-transaction
create index concurrently if not exists packages_icon_idx on apps.packages (icon_key) where icon_key is not null;
