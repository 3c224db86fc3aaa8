create table apps.uploads (
    id text primary key,
    user_id text not null,
    length bigint not null check (length > 0),
    received bigint not null default 0 check (received between 0 and length),
    fields jsonb not null,
    metadata text not null,
    status text not null default 'receiving' check (status in ('receiving', 'assembling', 'stored', 'refused')),
    app_id text,
    error text,
    attempts integer not null default 0,
    lease_until timestamptz,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    constraint uploads_whole check (status = 'receiving' or received = length),
    constraint uploads_stored check ((status = 'stored') = (app_id is not null))
);
create index uploads_expiry_idx on apps.uploads (expires_at);
create index uploads_user_idx on apps.uploads (user_id) where status = 'receiving';
create index uploads_assembling_idx on apps.uploads (created_at) where status = 'assembling';
comment on table apps.uploads is 'Resumable uploads: any replica goes on with one, and one of them makes an app of it.';
comment on column apps.uploads.received is 'How many bytes are stored, in parts without gaps from 0 on.';
comment on column apps.uploads.attempts is 'How often its assembling was begun; of the workers that hold it the last one has this number, and writes.';

create table apps.upload_parts (
    upload_id text not null references apps.uploads (id) on delete cascade,
    start bigint not null,
    size bigint not null check (size > 0),
    object_key text not null unique,
    primary key (upload_id, start)
);
comment on table apps.upload_parts is 'The parts of uploads, each an object until the whole is assembled.';
