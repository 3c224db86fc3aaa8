create schema users;

create table users.roles (
    id text primary key,
    name text not null constraint roles_name_key unique,
    description text,
    permissions text[] not null default '{}',
    built_in boolean not null default false,
    created_at timestamptz not null,
    updated_at timestamptz not null
);
comment on table users.roles is 'What a user may do. Tokens carry the names.';

insert into users.roles (id, name, description, built_in, created_at, updated_at)
values
    ('0198f3c2-0000-7000-8000-000000000001', 'super_admin', 'Passes every check', true, now(), now()),
    ('0198f3c2-0000-7000-8000-000000000002', 'admin', 'Administers users, devices and money', true, now(), now()),
    ('0198f3c2-0000-7000-8000-000000000003', 'support', 'Helps users', true, now(), now()),
    ('0198f3c2-0000-7000-8000-000000000004', 'user', 'Rents devices', true, now(), now());

create table users.accounts (
    id text primary key,
    seq bigint generated always as identity,
    username text not null constraint accounts_username_key unique,
    email text not null constraint accounts_email_key unique,
    password_hash text not null,
    full_name text,
    phone text,
    avatar text,
    preferences jsonb,
    status text not null constraint accounts_status_check check (status in ('active', 'inactive', 'suspended', 'deleted')),
    tenant_id text,
    failed_logins integer not null default 0,
    open_attempts integer not null default 0,
    open_attempts_until timestamptz,
    locked_until timestamptz,
    last_login_at timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint accounts_normal_form_check check (username = lower(username) and email = lower(email))
);
create index accounts_created_idx on users.accounts (created_at desc, seq desc);
comment on table users.accounts is 'People who sign in.';
comment on column users.accounts.password_hash is 'A PHC string; leaves the table only to be compared.';
comment on column users.accounts.failed_logins is 'Wrong passwords in a row.';
comment on column users.accounts.open_attempts is
    'Passwords being compared right now, on all replicas; with the wrong ones never more than the limit.';
comment on column users.accounts.open_attempts_until is
    'From when on open attempts count no more: their process died.';

create table users.user_roles (
    user_id text not null references users.accounts (id) on delete cascade,
    role_id text not null references users.roles (id),
    primary key (user_id, role_id)
);
create index user_roles_role_idx on users.user_roles (role_id);
comment on table users.user_roles is 'Who has which role.';

create view users.profiles as
select
    a.id, a.seq, a.username, a.email, a.full_name, a.phone, a.avatar, a.preferences, a.status, a.tenant_id,
    a.failed_logins, a.locked_until, a.last_login_at, a.created_at, a.updated_at,
    array(
        select r.name from users.user_roles ur join users.roles r on r.id = ur.role_id
        where ur.user_id = a.id order by r.name
    ) as roles
from users.accounts a;
comment on view users.profiles is 'Accounts with the names of their roles, and without what only sign-in may read.';

create table users.sessions (
    id text primary key,
    seq bigint generated always as identity,
    user_id text not null references users.accounts (id) on delete cascade,
    address text not null,
    browser text not null,
    os text not null,
    remember boolean not null,
    created_at timestamptz not null,
    last_active_at timestamptz not null,
    expires_at timestamptz not null,
    ended_at timestamptz,
    enforced_at timestamptz
);
create index sessions_user_idx on users.sessions (user_id, created_at desc, seq desc) where ended_at is null;
create index sessions_unenforced_idx on users.sessions (ended_at) where ended_at is not null and enforced_at is null;
create index sessions_expires_idx on users.sessions (expires_at);
comment on table users.sessions is 'Sign-ins as their users see them, and what may renew their tokens.';
comment on column users.sessions.ended_at is 'When its end was decided.';
comment on column users.sessions.enforced_at is 'When every instance was told; a job tells them where a crash came between.';

create table users.refresh_tokens (
    token_hash bytea primary key,
    session_id text not null references users.sessions (id) on delete cascade,
    created_at timestamptz not null,
    spent_at timestamptz
);
create index refresh_tokens_session_idx on users.refresh_tokens (session_id);
comment on table users.refresh_tokens is
    'SHA-256 of each refresh token of a living session. A spent one that comes again was stolen, and ends the session.';
