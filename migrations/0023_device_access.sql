alter table devices.devices
    add column adb_enabled boolean not null default true,
    add column access_generation bigint not null default 1;

comment on column devices.devices.adb_enabled is 'Whether its owner wants it to be reached by ADB.';
comment on column devices.devices.access_generation is
    'Grows with whatever ends the access of those who were let in: the device no longer runs, or has another owner, another node or other ports.';

create function devices.end_access() returns trigger language plpgsql as $$
begin
    new.access_generation := old.access_generation + 1;
    return new;
end $$;
create trigger devices_end_access before update on devices.devices
    for each row when (
        (old.status = 'running' and new.status <> 'running')
        or (old.user_id, old.node, old.adb_port, old.webrtc_port, old.scrcpy_port)
            is distinct from (new.user_id, new.node, new.adb_port, new.webrtc_port, new.scrcpy_port))
    execute function devices.end_access();
comment on function devices.end_access is 'Whoever stops or changes a device, and however, ends the access to it.';

create table devices.access_tickets (
    id bigint generated always as identity primary key,
    secret_hash bytea not null constraint access_tickets_secret_key unique check (length(secret_hash) = 32),
    kind text not null check (kind in ('adb', 'webrtc', 'scrcpy')),
    device_id text not null references devices.devices (id),
    owner_id text not null,
    access_generation bigint not null,
    user_id text not null,
    session_id text,
    api_key_id text,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    used_at timestamptz,
    revoked_at timestamptz,
    open_until timestamptz,
    constraint access_tickets_proof_check check (num_nonnulls(session_id, api_key_id) = 1)
);
create index access_tickets_waiting on devices.access_tickets (user_id, expires_at) where used_at is null;
create index access_tickets_device on devices.access_tickets (device_id);
create index access_tickets_open on devices.access_tickets (device_id, open_until) where open_until is not null;
create index access_tickets_expiry on devices.access_tickets (expires_at);

comment on table devices.access_tickets is
    'Permissions to open one tunnel to one port of one device, and the tunnels that were opened by them.';
comment on column devices.access_tickets.secret_hash is 'SHA-256 of the secret, which is stored nowhere.';
comment on column devices.access_tickets.owner_id is 'Whose device it was when the ticket was given.';
comment on column devices.access_tickets.access_generation is
    'The generation of the device then: in another one neither the ticket nor a tunnel by it counts.';
comment on column devices.access_tickets.user_id is 'Who asked for it, signed in with this session or known by this key.';
comment on column devices.access_tickets.open_until is
    'A tunnel is open by it until then, unless the replica that carries it prolongs this.';

create view platform.accounts as select id, status = 'active' as is_active from users.accounts;
comment on view platform.accounts is 'Whether accounts may do anything, as the user service publishes it.';

create view devices.access_standing as
select
    t.id as ticket_id,
    n.address,
    d.adb_port,
    d.webrtc_port,
    d.scrcpy_port,
    case
        when d.deleted_at is not null then 'deleted'
        when d.user_id <> t.owner_id or d.expires_at <= clock_timestamp() then 'lease-ended'
        when t.revoked_at is not null or (t.kind = 'adb' and not d.adb_enabled) then 'disabled'
        when d.access_generation <> t.access_generation or d.status <> 'running' then 'stopped'
        when exists (select 1 from platform.accounts a where a.id = t.user_id and not a.is_active) then 'signed-out'
        when t.session_id is not null and not exists (
            select 1 from platform.sessions s
            where s.id = t.session_id and s.ended_at is null and s.expires_at > clock_timestamp()) then 'signed-out'
        when t.api_key_id is not null and not exists (
            select 1 from platform.api_keys k
            where k.id = t.api_key_id and k.is_active and (k.expires_at is null or k.expires_at > clock_timestamp())) then 'signed-out'
    end as ended
from devices.access_tickets t
join devices.devices d on d.id = t.device_id
join devices.nodes n on n.name = d.node;
comment on view devices.access_standing is
    'Where the device of a ticket is reached, and why the ticket, or the tunnel that was opened by it, no longer counts; null where it does.';
