create table apps.packages (
    sha256 text primary key,
    size bigint not null check (size >= 0),
    object_key text not null unique,
    created_at timestamptz not null
);
comment on table apps.packages is
    'Contents that are stored, each once however many apps have it. Its row is locked by who names it anew and by who deletes it.';
insert into apps.packages (sha256, size, object_key, created_at)
select distinct on (sha256) sha256, size, object_key, created_at from apps.apps order by sha256, seq;

create index apps_sha256_idx on apps.apps (sha256);
create index apps_object_idx on apps.apps (object_key);
drop index apps.apps_object_key;
