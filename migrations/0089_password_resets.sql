create table users.password_resets (
    id text primary key,
    email text not null,
    address text not null,
    due_at timestamptz not null,
    attempts integer not null default 0,
    settled_at timestamptz,
    created_at timestamptz not null
);
create index password_resets_due_idx on users.password_resets (due_at) where settled_at is null;
create index password_resets_created_idx on users.password_resets (created_at);
comment on table users.password_resets is
    'Who asked to set a forgotten password, whether there is such an account or not: so the answer takes as long for both.';

create table users.reset_tokens (
    token_hash bytea primary key constraint reset_tokens_hash_check check (length(token_hash) = 32),
    user_id text not null references users.accounts (id) on delete cascade,
    expires_at timestamptz not null,
    used_at timestamptz
);
create index reset_tokens_user_idx on users.reset_tokens (user_id) where used_at is null;
create index reset_tokens_expires_idx on users.reset_tokens (expires_at);
comment on table users.reset_tokens is 'SHA-256 of what was mailed to set a forgotten password, once.';
