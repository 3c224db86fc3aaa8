alter table devices.snapshots add column hidden boolean not null default false;

comment on column devices.snapshots.hidden is
    'Taken to give a device away with what is on it: its owner never sees it, and it counts against no limit.';

alter table devices.operations
    drop constraint operations_kind_known,
    add constraint operations_kind_known
        check (kind in ('create', 'start', 'stop', 'restart', 'delete', 'repair', 'snapshot', 'restore', 'forget', 'move')),
    drop constraint operations_snapshot,
    add constraint operations_snapshot
        check ((kind in ('snapshot', 'restore', 'forget', 'move')) = (snapshot_id is not null));

create table devices.moves (
    operation_id bigint primary key references devices.operations (id) on delete cascade,
    device_id text not null references devices.devices (id),
    source text not null references devices.nodes (name),
    target text references devices.nodes (name),
    ran boolean,
    error text,
    queued_at timestamptz not null default clock_timestamp(),
    handed_over_at timestamptz,
    settled_at timestamptz
);

create index moves_device on devices.moves (device_id, operation_id);
create index moves_source on devices.moves (source) where settled_at is null;
create index moves_unsettled on devices.moves (operation_id) where settled_at is null;

comment on table devices.moves is
    'How the operations go that take devices from a node that is drained: what a worker needs that goes on after another one died.';
comment on column devices.moves.target is
    'Where images of the device may be from the moment this is written on; changed only after the former one is among the leftovers.';
comment on column devices.moves.ran is 'Whether the device ran when it was stopped for the move; null before that.';
comment on column devices.moves.error is 'Why it goes back to what it was on its source; from then on nothing else happens.';
comment on column devices.moves.handed_over_at is 'Since when the device is one of the target.';
comment on column devices.moves.settled_at is
    'Since when nothing is left behind by it that nobody knows: of an operation that ended, however it ended.';

alter table devices.leftovers
    add column rested boolean not null default false,
    add column claimed_until timestamptz;

comment on table devices.leftovers is
    'Containers and images of a device that may still be on a node it was taken from, or was to come to. The device does not come to the node before they are removed; where the node is down, no device does.';
comment on column devices.leftovers.rested is 'Whether its ports were given back when the device was taken away.';
comment on column devices.leftovers.claimed_until is 'Until when a replica may be removing them: another one that did the same late could meet what came after.';

create view devices.held_leftovers as
    select l.node, l.device_id
    from devices.leftovers l
        join devices.devices d on d.id = l.device_id and d.status = 'error' and d.deleted_at is null
        cross join lateral (
            select m.source, m.handed_over_at from devices.moves m where m.device_id = d.id order by m.operation_id desc limit 1) m
    where m.source = l.node and m.handed_over_at is not null;

comment on view devices.held_leftovers is
    'What a node that was drained keeps of devices that are in error where they went: it may be all that there is of them, and stays until they are well or deleted.';
