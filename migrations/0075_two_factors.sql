create table users.two_factors (
    user_id text primary key references users.accounts (id) on delete cascade,
    secret bytea not null,
    made_at timestamptz not null,
    enabled_at timestamptz,
    last_step bigint not null default 0
);
comment on table users.two_factors is 'Second factors: codes by time (RFC 6238). One that is not enabled was shown to its user and waits for its first code.';
comment on column users.two_factors.secret is 'Sealed by TWO_FACTOR_KEYS; the plain one stands with its user alone.';
comment on column users.two_factors.last_step is 'The half minute of the last code that counted: neither it nor an older one counts again.';

create table users.recovery_codes (
    user_id text not null references users.two_factors (user_id) on delete cascade,
    code_hash bytea not null,
    primary key (user_id, code_hash)
);
comment on table users.recovery_codes is 'SHA-256 of each code that takes the place of a second factor once, and is deleted by that.';
