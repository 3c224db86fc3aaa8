//! What each metric says of itself, as `# HELP` in `/metrics`. Numbers are this replica's own unless they say "cluster".

/// Every metric of a replica, and what it tells. Names that no replica has used yet cost nothing.
const HELP: [(&str, &str); 91] = [
    (
        "accept_errors_total",
        "Connections that could not be accepted",
    ),
    (
        "cloudphone_access_tickets_total",
        "Tickets for tunnels to devices that were given, by port",
    ),
    (
        "cloudphone_clock_error_seconds",
        "How far this machine's clock is ahead of the database's, by which the replica goes",
    ),
    (
        "cloudphone_device_commands_total",
        "Commands given to devices by ADB: done, cut off, or failed",
    ),
    (
        "cloudphone_device_minutes_total",
        "Minutes that devices ran, as billing heard of them",
    ),
    (
        "cloudphone_device_moves_total",
        "Moves of devices from nodes that are drained, by how they ended: moved, failed or cancelled",
    ),
    (
        "cloudphone_device_moved_bytes_total",
        "Bytes of images that this replica brought from one node to another",
    ),
    (
        "cloudphone_device_operation_duration_seconds",
        "From the claim of an operation on a device to its end",
    ),
    (
        "cloudphone_devices_by_status",
        "Cluster: devices in a status",
    ),
    (
        "cloudphone_devices_cpu_cores_used",
        "Cluster: processor cores that running devices use together",
    ),
    (
        "cloudphone_devices_measured_total",
        "Measurements of devices by this replica, by whether the device answered",
    ),
    (
        "cloudphone_devices_memory_megabytes_used",
        "Cluster: memory that running devices use together",
    ),
    (
        "cloudphone_devices_storage_megabytes_used",
        "Cluster: storage that running devices use together, as last counted",
    ),
    (
        "cloudphone_devices_hosted",
        "Simulated devices that this replica listens for",
    ),
    (
        "cloudphone_devices_lifecycle_executions_total",
        "Executions of lifecycle rules that are over, by type and result",
    ),
    (
        "cloudphone_devices_reconciled_total",
        "Differences between engines, database and Redis, by what was done about them",
    ),
    (
        "cloudphone_devices_stopped_by_quota_total",
        "Devices that ran beyond a limit of a quota and were stopped, by limit",
    ),
    (
        "cloudphone_devices_taken_over_total",
        "Simulated devices taken over from replicas that fell silent",
    ),
    (
        "cloudphone_nodes_down_total",
        "Nodes that were marked as down, since nobody reached their engines",
    ),
    (
        "cloudphone_notification_deliveries_total",
        "Attempts to deliver notifications by e-mail, text message or webhook: sent, retried, or failed for good",
    ),
    (
        "cloudphone_notification_template_failures_total",
        "Notifications that have the built-in words because the template of their event could not be filled in",
    ),
    (
        "cloudphone_notification_users_online",
        "Users who have sockets for notifications on this replica",
    ),
    (
        "cloudphone_notifications_sent_total",
        "Notifications that were stored and handed to the sockets",
    ),
    (
        "cloudphone_notifications_swept_total",
        "Frames found by the sweep, since the news of them was lost on the way",
    ),
    ("cloudphone_orders_total", "Orders that reached a state"),
    (
        "cloudphone_payments_success_total",
        "Payments that succeeded",
    ),
    (
        "cloudphone_ports_allocated",
        "Cluster: ports of a kind that devices hold",
    ),
    (
        "cloudphone_ports_contended_total",
        "Sets of ports that were given up, by reason",
    ),
    (
        "cloudphone_snapshots_swept_total",
        "Images found of snapshots that there are not, and removed",
    ),
    (
        "cloudphone_sockets_cut_total",
        "Sockets cut before their clients wanted to leave, by reason",
    ),
    (
        "cloudphone_sockets_open",
        "Open sockets for notifications, by transport",
    ),
    (
        "cloudphone_tunnel_bytes_total",
        "Bytes that went through tunnels, up to devices and down to clients",
    ),
    (
        "cloudphone_tunnels_ended_total",
        "Tunnels to devices that ended, by reason",
    ),
    (
        "cloudphone_tunnels_open",
        "Tunnels to devices that are open through this replica",
    ),
    (
        "cloudphone_tunnels_total",
        "Requests for tunnels to devices: opened, refused, or the device unreachable",
    ),
    ("cloudphone_user_login_attempts_total", "Tries to sign in"),
    (
        "cloudphone_user_login_failures_total",
        "Sign-ins that were refused",
    ),
    (
        "cloudphone_webhooks_total",
        "Payment notices, by what was made of them",
    ),
    (
        "cluster_fenced_writes_total",
        "Cluster: writes of late holders that were refused, by kind",
    ),
    ("cron_job_paused", "Cluster: 1 while the job is paused"),
    (
        "cron_lag_seconds",
        "How long after its slot a run began, the job's jitter included",
    ),
    (
        "cron_runs_total",
        "Runs of a job that this replica began, ended or gave up, by state",
    ),
    (
        "cron_slot_duplicates_total",
        "Cluster: slots that were run twice; must be 0",
    ),
    (
        "cron_slot_gaps_total",
        "Cluster: slots that were owed and left out; must be 0",
    ),
    (
        "double_lease_total",
        "Cluster: ports that were held twice; must be 0",
    ),
    ("events_consumed_total", "Events that a consumer handled"),
    (
        "events_dead_total",
        "Events that a consumer has given up until an administrator lets them be tried again",
    ),
    (
        "events_failed_total",
        "Events that a consumer could not handle and that come again",
    ),
    (
        "events_relayed_total",
        "Events that were published from the outbox",
    ),
    (
        "events_repeated_total",
        "Events that came to a consumer again and changed nothing",
    ),
    (
        "fenced_writes_total",
        "Writes of late holders that this replica refused, by kind",
    ),
    (
        "gateway_access_lines_left_out_total",
        "Lines of failed or slow requests that the access log had no room for",
    ),
    (
        "gateway_circuit_open",
        "1 while the circuit breaker of the service is open, 0.5 half open, 0 closed",
    ),
    (
        "gateway_ejections_total",
        "Instances left alone for a while, by reason",
    ),
    (
        "gateway_identities_total",
        "Tokens at the door: vouched for, passed on to the service, or refused",
    ),
    (
        "gateway_instances",
        "Instances of a service as this gateway sees them, by state",
    ),
    ("gateway_open_upgrades", "Sockets that are passed through"),
    (
        "gateway_queue_seconds",
        "How long those waited for a place who had to",
    ),
    (
        "gateway_refusals_total",
        "Requests that the gateway itself said no to, by reason as in `gateway explain`",
    ),
    (
        "gateway_requests_in_flight",
        "Requests to a service, or to all, that wait for the head of their reply",
    ),
    (
        "gateway_requests_queued",
        "Requests to a service, or to all, that wait for a place",
    ),
    ("gateway_retries_total", "Tries after the first"),
    (
        "gateway_shed_total",
        "Requests refused because too many were under way, by reason",
    ),
    (
        "gateway_tls_certificate_expiry_timestamp_seconds",
        "Until when the certificate in use holds, in Unix time",
    ),
    (
        "gateway_tls_handshakes_total",
        "Handshakes with clients: done, failed, late, or crowded out by newer ones",
    ),
    (
        "gateway_tls_reloads_total",
        "Certificates found anew in their files: loaded, or refused",
    ),
    (
        "gateway_upstream_requests_total",
        "Requests to a service by class of their status, or why there was no reply",
    ),
    (
        "http_connections",
        "Open connections of a service of this replica",
    ),
    (
        "http_connections_resting",
        "Of these, HTTP/1 connections between two requests that gave their buffers back",
    ),
    (
        "http_request_duration_seconds",
        "How long a service of this replica took for a request",
    ),
    (
        "http_requests_total",
        "Requests that a service of this replica answered",
    ),
    (
        "invariant_checked_timestamp_seconds",
        "Cluster: when an invariant was last looked at with success, in Unix time",
    ),
    ("leases_total", "Leases asked for, by what became of them"),
    (
        "ledger_imbalance",
        "Cluster: accounts whose ledger does not add up; must be 0",
    ),
    (
        "media_callbacks_total",
        "Reports of media providers, by what became of them",
    ),
    (
        "media_claim_seconds",
        "How long the claim of a media task took until its outcome",
    ),
    ("media_claims_total", "Claims of media tasks, by outcome"),
    (
        "media_objects_deleted_total",
        "Files of media tasks that were deleted, by reason",
    ),
    (
        "media_polls_total",
        "Steps of media tasks that a provider was asked about, by provider",
    ),
    (
        "media_tasks_created_total",
        "Media tasks that were taken in, by type",
    ),
    (
        "media_tasks_finished_total",
        "Media tasks that came to an end, by status",
    ),
    (
        "orders_paid_twice_total",
        "Cluster: orders that were paid twice; must be 0",
    ),
    (
        "port_index_rebuilds_total",
        "Indexes of ports that Redis had lost, built anew here or found done",
    ),
    (
        "port_leases_expired_total",
        "Ports taken back from owners that no longer renew",
    ),
    (
        "port_leases_total",
        "Requests for the ports of a device, by result",
    ),
    (
        "ports_quarantined_total",
        "Ports that were found unusable, by reason",
    ),
    (
        "registry_instances",
        "Cluster: instances of a service in the registry, on all machines, as this gateway read it",
    ),
    (
        "registry_instances_lost_total",
        "Cluster: instances that fell silent without leaving, since this gateway runs",
    ),
    (
        "registry_slots_moved_total",
        "Instance slots that were found taken and left for another one",
    ),
    ("task_steps_total", "Steps of background tasks, by result"),
    (
        "webhook_events_unapplied",
        "Cluster: payment notices that wait for somebody to look at them",
    ),
];

/// Tells the recorder of metrics, which must be installed.
pub fn describe() {
    for (name, help) in HELP {
        // A description is of a name, whatever it counts with.
        metrics::describe_counter!(name, help);
    }
}
