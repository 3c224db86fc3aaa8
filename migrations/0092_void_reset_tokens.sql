create function users.void_reset_tokens() returns trigger language plpgsql as $$
begin
    update users.reset_tokens set used_at = clock_timestamp() where user_id = new.id and used_at is null;
    return null;
end $$;
create trigger accounts_void_reset_tokens after update on users.accounts
    for each row when (old.password_hash <> new.password_hash or old.email <> new.email or old.status <> new.status)
    execute function users.void_reset_tokens();
comment on function users.void_reset_tokens is
    'What was mailed to set a forgotten password opens nothing once the password, the address or the account is another.';
