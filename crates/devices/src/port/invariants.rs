//! No port in two hands: the leases in Redis compared with the rows of the database, and those with each other.

use coordination::{Check, Finding, PortKind, PortSet};
use fred::interfaces::KeysInterface;
use platform::Platform;
use serde_json::json;
use sqlx::FromRow;

use super::db;

/// Devices whose leases are read in one round trip.
const BATCH: i64 = 500;

#[derive(FromRow)]
struct Twice {
    node: String,
    kind: String,
    port: i32,
    devices: Vec<String>,
}

/// The check that every replica with this service can run.
pub fn check(platform: &Platform) -> Check {
    let platform = platform.clone();
    Check::new("double_lease", "invariants-port-leases", move || {
        look(platform.clone())
    })
}

async fn look(platform: Platform) -> anyhow::Result<Vec<Finding>> {
    let mut found = rows_that_share(&platform).await?;
    let nodes: Vec<String> = sqlx::query_scalar("select name from devices.nodes order by name")
        .fetch_all(&platform.db)
        .await?;
    for node in nodes {
        found.extend(leases_of_others(&platform, &node).await?);
    }
    Ok(found)
}

/// Ports that two rows hold, by a count that does not rely on the indexes that forbid it.
async fn rows_that_share(platform: &Platform) -> anyhow::Result<Vec<Finding>> {
    let query = sqlx::query_as(
        "-- port::invariants::rows_that_share
        select node, kind, port, array_agg(id order by id) as devices
        from devices.devices cross join lateral (
            values ('adb', adb_port), ('webrtc', webrtc_port), ('scrcpy', scrcpy_port)
        ) as each (kind, port)
        where released_at is null
        group by node, kind, port having count(*) > 1 limit 1000",
    );
    let twice: Vec<Twice> = query.fetch_all(&platform.db).await?;
    let found = twice.into_iter().map(|each| Finding {
        subject: format!("{} {} {}: {}", each.node, each.kind, each.port, each.devices.join(", ")),
        detail: json!({ "node": each.node, "kind": each.kind, "port": each.port, "devices": each.devices }),
        certain: true,
    });
    Ok(found.collect())
}

/// Ports that a row holds while Redis leases them to another. For a moment that is no fault: a lease that ran out is
/// leased again before the database refuses its new holder.
async fn leases_of_others(platform: &Platform, node: &str) -> anyhow::Result<Vec<Finding>> {
    let base = platform.keys.ports(node);
    let mut found = Vec::new();
    let mut last = String::new();
    loop {
        let held = {
            let mut conn = platform.db.acquire().await?;
            db::held_after(&mut conn, node, &last, BATCH).await?
        };
        let Some((id, _)) = held.last() else {
            return Ok(found);
        };
        last.clone_from(id);
        let keys: Vec<String> = held
            .iter()
            .flat_map(|(_, ports)| each(*ports))
            .map(|(kind, port)| format!("{base}{kind}:{port}"))
            .collect();
        let holders: Vec<Option<String>> = platform.redis.mget(keys).await?;
        let rows = held
            .iter()
            .flat_map(|(device, ports)| each(*ports).map(|(kind, port)| (device, kind, port)));
        for ((device, kind, port), holder) in rows.zip(holders) {
            if let Some(holder) = holder.filter(|holder| holder != device) {
                found.push(Finding {
                    subject: format!("{node} {kind} {port}: {device}, {holder}"),
                    detail: json!({ "node": node, "kind": kind, "port": port, "device": device, "leasedTo": holder }),
                    certain: false,
                });
            }
        }
    }
}

fn each(ports: PortSet) -> [(PortKind, u16); 3] {
    [
        (PortKind::Adb, ports.adb),
        (PortKind::Webrtc, ports.webrtc),
        (PortKind::Scrcpy, ports.scrcpy),
    ]
}
