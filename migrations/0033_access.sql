alter table devices.access_tickets add column api_key_version bigint;

comment on column devices.access_tickets.api_key_version is
    'The version of the key then: whatever changes for those who verify it, its scopes or the roles of its user, ends what was let in by it.';

create or replace view platform.accounts as
select
    a.id,
    a.status = 'active' as is_active,
    exists (
        select 1 from users.user_roles ur join users.roles r on r.id = ur.role_id
        where ur.user_id = a.id and r.name in ('admin', 'super_admin')) as is_admin
from users.accounts a;
comment on view platform.accounts is
    'Whether accounts may do anything, and whether the owner rule does not bind them, as the user service publishes it.';

create or replace view devices.access_standing as
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
        when exists (
            select 1 from platform.accounts a
            where a.id = t.user_id and (not a.is_active or (t.user_id <> t.owner_id and not a.is_admin))) then 'signed-out'
        when t.session_id is not null and not exists (
            select 1 from platform.sessions s
            where s.id = t.session_id and s.ended_at is null and s.expires_at > clock_timestamp()) then 'signed-out'
        when t.api_key_id is not null and not exists (
            select 1 from platform.api_keys k
            where k.id = t.api_key_id and k.is_active and (k.expires_at is null or k.expires_at > clock_timestamp())
                and (t.api_key_version is null or k.version = t.api_key_version)) then 'signed-out'
    end as ended
from devices.access_tickets t
join devices.devices d on d.id = t.device_id
join devices.nodes n on n.name = d.node;
