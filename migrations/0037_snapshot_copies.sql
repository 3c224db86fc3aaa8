create table devices.snapshot_copies (
    snapshot_id text not null references devices.snapshots (id) on delete cascade,
    node text not null references devices.nodes (name),
    state text not null default 'copying' check (state in ('copying', 'ready')),
    tried_at timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    primary key (snapshot_id, node)
);

create index snapshot_copies_node on devices.snapshot_copies (node);
create index snapshot_copies_open on devices.snapshot_copies (tried_at) where state = 'copying';

comment on table devices.snapshot_copies is
    'Images of snapshots on other nodes than the one of their device, from before they are brought there on. An image without a row is removed when it is seen, also on a node that was away.';
comment on column devices.snapshot_copies.tried_at is 'When it was last tried to bring it there and failed.';
