create view devices.sole_copies as
    select c.node, c.snapshot_id
    from devices.snapshot_copies c
        join devices.snapshots s on s.id = c.snapshot_id and s.status in ('ready', 'restoring') and s.taken_at is not null
        join devices.devices d on d.id = s.device_id and d.deleted_at is null and d.node <> c.node
        join devices.nodes h on h.name = d.node
    where c.state = 'ready'
        and (h.down_since is not null or exists (
            select 1 from devices.snapshot_copies o where o.snapshot_id = s.id and o.node = d.node and o.state = 'copying'))
        and not exists (
            select 1 from devices.snapshot_copies o join devices.nodes n on n.name = o.node
            where o.snapshot_id = s.id and o.state = 'ready' and o.node not in (c.node, d.node)
                and n.down_since is null and n.removed_at is null);

comment on view devices.sole_copies is
    'Copies without which a snapshot would be lost: the node of its device does not have it or is down, and no other node keeps one that is there.';
comment on table devices.snapshot_copies is
    'Images of snapshots on other nodes than the one of their device, from before they are brought there on; one that is to be copied to the node of the device says that this one does not have it. An image without a row is removed when it is seen, also on a node that was away.';
