-- What roles permit beyond what everybody may, for those who verify callers.
create view platform.role_permissions as
select name, permissions from users.roles where permissions <> '{}';
comment on view platform.role_permissions is 'Which scopes each role grants on what belongs to others, as the user service publishes it.';

update users.roles
set permissions = '{users:read,devices:read,apps:read,orders:read,payments:read,balance:read,quotas:read,media:read}'
where name = 'support' and permissions = '{}';

alter table users.roles add column seq bigint generated always as identity;
create index roles_seq_idx on users.roles (seq);

alter table users.accounts add column deleted_at timestamptz, add column anonymised_at timestamptz;
create index accounts_anonymise_idx on users.accounts (deleted_at) where deleted_at is not null and anonymised_at is null;
comment on column users.accounts.deleted_at is 'When its user left, or was removed. Name and address stay taken until it is anonymised.';
comment on column users.accounts.anonymised_at is 'When all that says who it was went out of the row.';
