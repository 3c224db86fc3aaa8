alter table devices.nodes
    add column runtime text not null default 'simulated' check (runtime in ('docker', 'simulated')),
    add column hosts_simulated boolean not null default true,
    add column endpoint text,
    add column tls jsonb,
    add column bind text not null default '127.0.0.1',
    add column labels jsonb not null default '{}' check (jsonb_typeof(labels) = 'object'),
    add column cpu_millis integer check (cpu_millis > 0),
    add column cpu_overcommit double precision not null default 1 check (cpu_overcommit > 0),
    add column memory_mb integer check (memory_mb > 0),
    add column most_devices integer check (most_devices >= 0),
    add column used_cpu_millis bigint not null default 0 check (used_cpu_millis >= 0),
    add column used_memory_mb bigint not null default 0 check (used_memory_mb >= 0),
    add column used_devices integer not null default 0 check (used_devices >= 0),
    add column state text not null default 'ready' check (state in ('ready', 'cordoned', 'draining')),
    add column reason text,
    add column since timestamptz not null default clock_timestamp(),
    add column removed_at timestamptz,
    add constraint nodes_removed check (removed_at is null or used_devices = 0),
    add constraint nodes_endpoint check (runtime <> 'docker' or endpoint is not null);

-- The address was the one thing known of a node, and devices were bound to it.
update devices.nodes set bind = address;

update devices.nodes n set used_devices = u.devices, used_cpu_millis = u.cores * 1000, used_memory_mb = u.memory
from (
    select node, count(*)::integer as devices, sum(cpu_cores) as cores, sum(memory_mb) as memory
    from devices.devices where released_at is null group by node
) u where u.node = n.name;

alter table devices.operations
    drop constraint operations_kind_check,
    add constraint operations_kind_known check (kind in ('create', 'start', 'stop', 'restart', 'delete', 'repair'));

comment on column devices.nodes.address is 'Where clients reach the ports of its devices: an IP address or a host name.';
comment on column devices.nodes.bind is 'The IP address on the node that the ports of its devices are bound to.';
comment on column devices.nodes.runtime is 'What runs devices there, unless they are to be simulated.';
comment on column devices.nodes.hosts_simulated is 'Whether simulated devices are placed there, too: its address is one of the replicas'' own.';
comment on column devices.nodes.endpoint is 'The container engine: unix:///path or tcp://host:port.';
comment on column devices.nodes.tls is 'Where replicas find what they authenticate themselves to the engine with: the paths ca, cert and key; never their contents.';
comment on column devices.nodes.cpu_millis is 'Thousandths of a processor core there are; with cpu_overcommit times as many promised to devices. Null: no limit.';
comment on column devices.nodes.used_devices is 'Devices that are not released; this and the other used columns change in the transactions that make and release devices.';
comment on column devices.nodes.state is 'What operators want of it. Only a ready node gets further devices.';
comment on column devices.nodes.since is 'When the state last changed.';
comment on column devices.nodes.removed_at is 'When an operator removed it; the row stays for the devices that were on it.';
