create schema apps;

create table apps.apps (
    id text primary key,
    seq bigint generated always as identity,
    name text not null,
    package_name text not null,
    version_name text not null,
    version_code bigint not null,
    status text not null,
    category text not null,
    size bigint not null,
    sha256 text not null,
    object_key text not null,
    description text,
    min_sdk_version integer,
    target_sdk_version integer,
    tags text[] not null,
    uploader_id text not null,
    download_count bigint not null default 0,
    install_count bigint not null default 0,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint apps_package_version_key unique (package_name, version_code)
);
create index apps_order_idx on apps.apps (created_at desc, seq desc);
create unique index apps_object_key on apps.apps (object_key);
create index apps_uploader_idx on apps.apps (uploader_id);
comment on table apps.apps is 'Application packages; a row exists only for an object that is stored whole.';
comment on column apps.apps.object_key is 'Where the package lies in the object store.';
