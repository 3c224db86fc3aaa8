alter table devices.nodes add column disk_mb integer;
alter table devices.reservations add column disk_mb bigint not null default 0;

comment on column devices.nodes.disk_mb is
    'What snapshots and what is stored on devices may take of its disk when images are to be brought there from other nodes; null is no limit.';
comment on column devices.reservations.disk_mb is 'What of the disk the images take that are on their way.';
