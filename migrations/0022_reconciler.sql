create table devices.orphans (
    node text not null references devices.nodes (name),
    container text not null,
    device_id text not null,
    first_seen timestamptz not null default clock_timestamp(),
    primary key (node, container)
);

comment on table devices.orphans is
    'Containers of this cluster that no device has, since when they have been seen; after a grace they are removed.';

create table devices.reconciliations (
    id bigint generated always as identity primary key,
    node text not null references devices.nodes (name),
    action text not null,
    device_id text,
    container text,
    detail text not null,
    at timestamptz not null default clock_timestamp()
);

create index reconciliations_node on devices.reconciliations (node, id desc);
create index reconciliations_repairs on devices.reconciliations (device_id, at) where action = 'repair';
create index reconciliations_old on devices.reconciliations (at);

comment on table devices.reconciliations is
    'What the reconciler found and did: the audit trail of everything that was changed without a user''s wish. Kept for a while.';
