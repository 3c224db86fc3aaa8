alter table devices.readings add column heartbeat_at timestamptz;
alter table devices.readings add column storage_at timestamptz;

comment on column devices.readings.heartbeat_at is
    'When a service last said that the device lives, which is not the same as having measured it.';
comment on column devices.readings.storage_at is
    'When the storage was last counted, or claimed to be: an engine walks the files of a container for it, so it is done seldom.';
