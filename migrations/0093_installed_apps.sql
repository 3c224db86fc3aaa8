create table devices.installed_apps (
    device_id text not null references devices.devices (id),
    package_name text not null,
    app_id text not null,
    installation_id bigint not null,
    installed_at timestamptz not null,
    primary key (device_id, package_name)
);
create index installed_apps_app_idx on devices.installed_apps (app_id, device_id);
comment on table devices.installed_apps is
    'What our installations put on devices. The device itself knows better, where it runs: apps come and go by other ways too.';
comment on column devices.installed_apps.installation_id is
    'Which installation put it there: a removal takes back what it found, and not what was installed meanwhile.';
