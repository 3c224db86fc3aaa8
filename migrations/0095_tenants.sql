create or replace view platform.accounts as
select
    a.id,
    a.status = 'active' as is_active,
    exists (
        select 1 from users.user_roles ur join users.roles r on r.id = ur.role_id
        where ur.user_id = a.id and r.name in ('admin', 'super_admin')) as is_admin,
    a.tenant_id
from users.accounts a;
comment on view platform.accounts is
    'Whether accounts may do anything, whether the owner rule does not bind them, and of which tenant they are, as the user service publishes it.';

update devices.devices d set tenant_id = a.tenant_id
from platform.accounts a
where a.id = d.user_id and a.tenant_id is not null and d.tenant_id is null and d.deleted_at is null;
comment on column devices.devices.tenant_id is 'The tenant of its owner, when it was made.';
