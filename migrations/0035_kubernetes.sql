alter table devices.nodes
    drop constraint nodes_runtime_check,
    add constraint nodes_runtime_known check (runtime in ('docker', 'kubernetes', 'simulated')),
    drop constraint nodes_endpoint,
    add constraint nodes_endpoint check (runtime = 'simulated' or endpoint is not null);

alter table devices.devices
    drop constraint devices_runtime_check,
    add constraint devices_runtime_known check (runtime in ('docker', 'kubernetes', 'simulated'));

comment on column devices.nodes.endpoint is
    'The engine: unix:///path or tcp://host:port; of kubernetes in-cluster://namespace or kubeconfig:///path?context=name&namespace=name.';
