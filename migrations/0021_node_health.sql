alter table devices.nodes
    add column seen_at timestamptz,
    add column down_since timestamptz,
    add column down_reason text,
    add constraint nodes_down check ((down_since is null) = (down_reason is null));

comment on column devices.nodes.seen_at is 'When its engine last answered a replica, by the clock of the database; null where it never did.';
comment on column devices.nodes.down_since is 'Since when nobody reaches its engine: no device comes to it, and those on it are in error.';

alter table devices.devices add column lost boolean not null default false;

create index devices_lost on devices.devices (node, id) where lost;

comment on column devices.devices.lost is 'In error because its node is down: what became of it is seen when the node is back.';

alter table devices.operations add column begun_at timestamptz;

update devices.operations set begun_at = clock_timestamp() where state = 'running';

comment on column devices.operations.begun_at is 'When a worker first claimed it: its deadline counts from here, whoever works on it.';

create table devices.leftovers (
    node text not null references devices.nodes (name),
    device_id text not null references devices.devices (id),
    adb_port integer not null,
    webrtc_port integer not null,
    scrcpy_port integer not null,
    since timestamptz not null default clock_timestamp(),
    primary key (node, device_id)
);

comment on table devices.leftovers is
    'Containers that may still be on a node that was down when their devices were made anew elsewhere. The node gets no devices before they are removed; only then are their ports free.';
