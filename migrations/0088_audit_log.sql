create table users.audit_log (
    id text primary key,
    seq bigint generated always as identity,
    user_id text,
    action text not null,
    resource_type text not null,
    resource_id text,
    status text not null constraint audit_log_status_check check (status in ('success', 'failed', 'warning')),
    details jsonb not null default '{}',
    changes jsonb,
    method text,
    request_path text,
    ip_address text,
    user_agent text,
    request_id text,
    event_id text constraint audit_log_event_id_key unique,
    created_at timestamptz not null
);
create index audit_log_seq_idx on users.audit_log (seq desc);
create index audit_log_user_idx on users.audit_log (user_id, seq desc);
create index audit_log_resource_idx on users.audit_log (resource_type, resource_id, seq desc);
create index audit_log_action_idx on users.audit_log (action, seq desc);
create index audit_log_created_idx on users.audit_log (created_at);
comment on table users.audit_log is
    'Who did what, when and from where. Entries are only ever added, and removed when their time is over.';
comment on column users.audit_log.user_id is 'Who did it, or to whom it happened where nobody was signed in.';
comment on column users.audit_log.event_id is 'The event that an entry was made of, in the place of a request: once, however often it comes.';

create function users.audit_log_stays() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' and old.created_at < now() - interval '30 days' then
        return old;
    end if;
    raise exception 'entries of the audit log cannot be changed, nor deleted within 30 days';
end $$;
create trigger audit_log_stays before update or delete on users.audit_log
    for each row execute function users.audit_log_stays();
create trigger audit_log_is_not_emptied before truncate on users.audit_log
    for each statement execute function users.audit_log_stays();
