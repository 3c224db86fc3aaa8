create table platform.cluster (
    single boolean primary key default true check (single),
    id text not null default gen_random_uuid()::text
);
insert into platform.cluster default values;

comment on table platform.cluster is
    'What makes this cluster another one than any that shares a machine with it, whatever both are called: its containers bear this id.';
