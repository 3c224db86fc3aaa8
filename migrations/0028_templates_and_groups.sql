create table devices.groups (
    id text primary key,
    user_id text not null,
    name text not null,
    description text,
    tags text[] not null default '{}',
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint groups_name_key unique (user_id, name)
);

comment on table devices.groups is
    'Groups that users made. A device names its group, whether there is a row for it or not: what it says counts.';

create table devices.templates (
    id text primary key,
    seq bigint generated always as identity,
    created_by text not null,
    name text not null,
    description text,
    category text not null check (category in ('gaming', 'testing', 'general', 'custom')),
    cpu_cores integer not null,
    memory_mb integer not null,
    storage_mb integer not null,
    resolution text not null,
    dpi integer not null,
    android_version text not null,
    tags text[] not null default '{}',
    is_public boolean not null default false,
    usage_count bigint not null default 0,
    created_at timestamptz not null,
    updated_at timestamptz not null
);

create index templates_own on devices.templates (created_by, created_at desc, seq desc);
create index templates_public on devices.templates (created_at desc, seq desc) where is_public;

comment on table devices.templates is 'What devices shall be, to be made of again and again.';
comment on column devices.templates.usage_count is 'How many devices were made of it.';
