alter table devices.port_quarantine
    drop constraint port_quarantine_reason_check,
    add constraint port_quarantine_reason_check check (reason in ('foreign-process', 'not-permitted', 'returned'));

comment on table devices.port_quarantine is
    'Ports that could not be bound when a device was to get them, and ports that a device gave up with one of these. Redis keeps what rests; this is what it learns again after it lost its data. Ports that a deletion freed are told by devices.released_at.';
