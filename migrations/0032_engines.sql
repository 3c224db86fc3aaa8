alter table devices.nodes add column engine_id text constraint nodes_engine_key unique;

comment on column devices.nodes.engine_id is
    'The engine itself, as it calls itself: whoever reaches another one by the same address does not reach the node. Written by the first contact, forgotten when the endpoint is set anew.';

alter table devices.orphans add column seen integer not null default 1;

comment on column devices.orphans.seen is 'In how many rounds: what is seen once may have been on its way.';

-- What devices have of their node is counted as they come, change and go, whoever writes them. At the end of the transaction:
-- until then others do not wait for the row of the node.
lock table devices.devices in share row exclusive mode;

update devices.nodes n set used_devices = coalesce(u.devices, 0), used_cpu_millis = coalesce(u.cores, 0) * 1000,
    used_memory_mb = coalesce(u.memory, 0)
from devices.nodes m left join (
    select node, count(*)::integer as devices, sum(cpu_cores) as cores, sum(memory_mb) as memory
    from devices.devices where released_at is null group by node
) u on u.node = m.name where m.name = n.name;

create function devices.count_used() returns trigger language plpgsql as $$
begin
    if tg_op <> 'INSERT' and old.released_at is null then
        update devices.nodes set used_devices = used_devices - 1, used_cpu_millis = used_cpu_millis - old.cpu_cores * 1000,
            used_memory_mb = used_memory_mb - old.memory_mb
        where name = old.node;
    end if;
    if tg_op <> 'DELETE' and new.released_at is null then
        update devices.nodes set used_devices = used_devices + 1, used_cpu_millis = used_cpu_millis + new.cpu_cores * 1000,
            used_memory_mb = used_memory_mb + new.memory_mb
        where name = new.node;
    end if;
    return null;
end
$$;

create constraint trigger devices_used after insert or delete on devices.devices
    deferrable initially deferred for each row execute function devices.count_used();
create constraint trigger devices_used_change after update on devices.devices
    deferrable initially deferred for each row
    when ((old.released_at is null, old.node, old.cpu_cores, old.memory_mb)
        is distinct from (new.released_at is null, new.node, new.cpu_cores, new.memory_mb))
    execute function devices.count_used();

create function devices.keep_used() returns trigger language plpgsql as $$
begin
    new.used_devices := old.used_devices;
    new.used_cpu_millis := old.used_cpu_millis;
    new.used_memory_mb := old.used_memory_mb;
    return new;
end
$$;
comment on function devices.keep_used is
    'Replicas of an earlier version count what devices use by themselves: it would be counted twice, or not at all.';

create trigger nodes_used before update of used_devices, used_cpu_millis, used_memory_mb on devices.nodes
    for each row when (pg_trigger_depth() = 0) execute function devices.keep_used();

comment on column devices.nodes.used_devices is
    'Devices that are not released. This and the other used columns are written by a trigger on the devices, at the end of each transaction.';
