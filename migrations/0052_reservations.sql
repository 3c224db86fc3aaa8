create table devices.reservations (
    operation_id bigint primary key references devices.operations (id) on delete cascade,
    node text not null references devices.nodes (name),
    cpu_cores integer not null,
    memory_mb integer not null,
    transfer_token bigint
);

create index reservations_node on devices.reservations (node);

comment on table devices.reservations is
    'Room on a node for a device that is about to come there, promised before its images are brought; it ends with the transaction that brings the device, or with the operation.';
comment on column devices.reservations.transfer_token is
    'The fencing token of the worker that brings images there for a failover: as long as it holds the operation, this counts among the transfers to the node.';

create function devices.count_reserved() returns trigger language plpgsql as $$
begin
    if tg_op <> 'INSERT' then
        update devices.nodes set used_devices = used_devices - 1, used_cpu_millis = used_cpu_millis - old.cpu_cores * 1000,
            used_memory_mb = used_memory_mb - old.memory_mb
        where name = old.node;
    end if;
    if tg_op <> 'DELETE' then
        update devices.nodes set used_devices = used_devices + 1, used_cpu_millis = used_cpu_millis + new.cpu_cores * 1000,
            used_memory_mb = used_memory_mb + new.memory_mb
        where name = new.node;
    end if;
    return null;
end
$$;

create constraint trigger reservations_used after insert or delete on devices.reservations
    deferrable initially deferred for each row execute function devices.count_reserved();
create constraint trigger reservations_used_change after update on devices.reservations
    deferrable initially deferred for each row
    when ((old.node, old.cpu_cores, old.memory_mb) is distinct from (new.node, new.cpu_cores, new.memory_mb))
    execute function devices.count_reserved();

comment on column devices.nodes.used_devices is
    'Devices that are not released, and those that are about to come. This and the other used columns are written by triggers on the devices and reservations, at the end of each transaction.';

alter table devices.snapshots add column replaces text;

comment on column devices.snapshots.replaces is
    'The snapshot whose place it takes: that one goes with the transaction that notes this one as taken, and not before.';
