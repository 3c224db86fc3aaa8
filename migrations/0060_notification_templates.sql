create table notifications.templates (
    seq bigint generated always as identity,
    id text primary key,
    code text not null,
    name text not null,
    kind text not null check (kind in ('system', 'billing', 'device', 'promotion', 'security')),
    title text not null,
    body text not null,
    channels jsonb not null,
    language text not null,
    is_active boolean not null,
    version integer not null check (version > 0),
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint templates_code_key unique (code, language)
);
create index templates_list_idx on notifications.templates (created_at desc, seq desc);
comment on table notifications.templates is
    'Words for notifications. One whose code is the name of a domain event replaces the built-in words of that event while it is active.';

create table notifications.template_versions (
    template_id text not null references notifications.templates (id) on delete cascade,
    version integer not null,
    code text not null,
    name text not null,
    kind text not null,
    title text not null,
    body text not null,
    channels jsonb not null,
    language text not null,
    changed_by text not null,
    changed_at timestamptz not null,
    primary key (template_id, version)
);
comment on table notifications.template_versions is
    'What a template said after each change, the present one too. Rows never change; whether it was active is no version.';
