create table devices.port_quarantine (
    node text not null references devices.nodes (name),
    kind text not null check (kind in ('adb', 'webrtc', 'scrcpy')),
    port integer not null check (port between 1 and 65535),
    reason text not null check (reason in ('foreign-process', 'not-permitted')),
    since timestamptz not null,
    until timestamptz not null check (until >= since),
    primary key (node, kind, port)
);

create index port_quarantine_until on devices.port_quarantine (until);

comment on table devices.port_quarantine is
    'Ports that could not be bound when a device was to get them. Redis keeps what rests; this is what it learns again after it lost its data. Ports that a deletion freed are told by devices.released_at.';
