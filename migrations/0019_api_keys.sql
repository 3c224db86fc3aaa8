create table users.api_keys (
    id text primary key,
    seq bigint generated always as identity,
    user_id text not null references users.accounts (id),
    name text not null,
    description text,
    metadata jsonb,
    prefix text not null,
    key_hash bytea not null constraint api_keys_key_hash_key unique,
    scopes text[] not null,
    status text not null constraint api_keys_status_check check (status in ('active', 'inactive', 'revoked')),
    expires_at timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    deleted_at timestamptz,
    version bigint not null default 1,
    changed_at timestamptz not null default clock_timestamp(),
    constraint api_keys_key_hash_check check (length(key_hash) = 32)
);
create index api_keys_user_idx on users.api_keys (user_id, created_at desc, seq desc) where deleted_at is null;
create index api_keys_created_idx on users.api_keys (created_at desc, seq desc) where deleted_at is null;
create index api_keys_deleted_idx on users.api_keys (deleted_at) where deleted_at is not null;
create index api_keys_changed_idx on users.api_keys (changed_at, id) where version > 1;
comment on table users.api_keys is 'Secrets by which programs act for their users.';
comment on column users.api_keys.prefix is 'The beginning of the secret, by which its user recognises it.';
comment on column users.api_keys.key_hash is 'SHA-256 of the secret, which is stored nowhere.';
comment on column users.api_keys.deleted_at is
    'Deleted keys stay for a day, so that every process hears of it.';
comment on column users.api_keys.version is
    'Grows with whatever changes for those who verify the key, be it the key, its user or the user''s roles.';
comment on column users.api_keys.changed_at is 'When the version grew, by the clock of the database.';

create function users.api_key_changes() returns trigger language plpgsql as $$
begin
    new.version := old.version + 1;
    new.changed_at := clock_timestamp();
    return new;
end $$;
create trigger api_keys_change before update on users.api_keys
    for each row execute function users.api_key_changes();
comment on function users.api_key_changes is 'Whoever changes a key, and however, lets all processes look it up anew.';

create function users.api_key_deletions() returns trigger language plpgsql as $$
begin
    raise exception 'API key % is in use: set deleted_at, and delete it a day later', old.id;
end $$;
create trigger api_keys_delete before delete on users.api_keys
    for each row when (old.deleted_at is null) execute function users.api_key_deletions();
comment on function users.api_key_deletions is 'Nobody hears of a row that is gone.';

create function users.api_keys_of_account_change() returns trigger language plpgsql as $$
begin
    update users.api_keys set version = version where user_id = new.id and deleted_at is null;
    return null;
end $$;
create trigger accounts_change_api_keys after update on users.accounts
    for each row when (old.status <> new.status or old.username <> new.username)
    execute function users.api_keys_of_account_change();

create function users.api_keys_of_user_role_change() returns trigger language plpgsql as $$
begin
    -- Whoever makes a key holds the account: that key is seen below, or finds the roles as they are now.
    perform from users.accounts where id in (old.user_id, new.user_id) order by id for no key update;
    update users.api_keys set version = version
    where user_id in (old.user_id, new.user_id) and deleted_at is null;
    return null;
end $$;
create trigger user_roles_change_api_keys after insert or update or delete on users.user_roles
    for each row execute function users.api_keys_of_user_role_change();

create function users.api_keys_of_role_change() returns trigger language plpgsql as $$
begin
    update users.api_keys set version = version
    where user_id in (select user_id from users.user_roles where role_id = new.id) and deleted_at is null;
    return null;
end $$;
create trigger roles_change_api_keys after update on users.roles
    for each row when (old.name <> new.name)
    execute function users.api_keys_of_role_change();

create view platform.api_keys as
select
    k.id, k.key_hash, k.user_id, a.username, k.scopes, k.expires_at, k.version, k.changed_at,
    (k.status = 'active' and k.deleted_at is null and a.status = 'active') as is_active,
    array(
        select r.name from users.user_roles ur join users.roles r on r.id = ur.role_id
        where ur.user_id = k.user_id order by r.name
    ) as roles
from users.api_keys k left join users.accounts a on a.id = k.user_id;
comment on view platform.api_keys is 'What every service needs to verify an API key, as the user service publishes it.';

create table platform.api_key_usage (
    key_id text primary key,
    usage_count bigint not null,
    last_used_at timestamptz not null
);
comment on table platform.api_key_usage is
    'How often each API key was used: written every few seconds, so that a crash loses the last of them.';

create view users.api_key_listing as
select
    k.id, k.seq, k.user_id, k.name, k.description, k.metadata, k.prefix, k.scopes, k.status, k.expires_at,
    k.created_at, k.updated_at, coalesce(u.usage_count, 0) as usage_count, u.last_used_at
from users.api_keys k left join platform.api_key_usage u on u.key_id = k.id
where k.deleted_at is null;
comment on view users.api_key_listing is 'API keys as their users see them.';
