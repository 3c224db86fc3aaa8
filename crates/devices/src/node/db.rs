//! Nodes in PostgreSQL.

use contracts::Timestamp;
use platform::http::Slice;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::settings::NodeSettings;
use super::{Node, State, bind_address};

macro_rules! select_node {
    ($rest:literal) => {
        concat!(
            "select name, runtime, hosts_simulated, endpoint, engine_id, tls, address, bind, labels, cpu_millis, cpu_overcommit, memory_mb,
                disk_mb, most_devices, used_cpu_millis, used_memory_mb, used_devices, state, reason, since, seen_at,
                extract(epoch from clock_timestamp() - seen_at)::float8 as unseen_seconds, down_since, down_reason, created_at, updated_at
            from devices.nodes ",
            $rest
        )
    };
}

/// Who makes a node known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// An operator, of a node that nobody knows.
    New,
    /// The settings.
    Settings,
    /// A replica, by what it found on its machine: an engine that others reach is not taken from the node.
    Found,
}

/// Makes a node known, or what its settings say of it by now; what they leave out stays. `false` where that is not to be by
/// the word of this one, or where devices are there that the node could not run.
pub async fn announce(
    conn: &mut PgConnection,
    node: &NodeSettings,
    word: Word,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let bind = (node.bind).unwrap_or_else(|| bind_address(&node.address));
    let insert = sqlx::query(
        "-- nodes::announce
        insert into devices.nodes as n (name, runtime, hosts_simulated, endpoint, tls, address, bind, labels, cpu_millis,
            cpu_overcommit, memory_mb, most_devices, disk_mb, created_at, updated_at)
        values ($1, $2, coalesce($3, $2 = 'simulated'), $4, $5, $6, $7, coalesce($8, '{}'::jsonb), $9, coalesce($10, 1), $11, $12, $16, $13, $13)
        on conflict (name) do update set runtime = excluded.runtime, hosts_simulated = coalesce($3, n.hosts_simulated),
            endpoint = excluded.endpoint, tls = excluded.tls, address = excluded.address, bind = excluded.bind,
            labels = coalesce($8, n.labels), cpu_millis = coalesce($9, n.cpu_millis), cpu_overcommit = coalesce($10, n.cpu_overcommit),
            memory_mb = coalesce($11, n.memory_mb), most_devices = coalesce($12, n.most_devices),
            disk_mb = coalesce($16, n.disk_mb), updated_at = excluded.updated_at,
            state = case when n.removed_at is null then n.state else 'ready' end, removed_at = null,
            since = case when n.removed_at is null then n.since else clock_timestamp() end,
            seen_at = case when n.removed_at is null and n.endpoint = excluded.endpoint then n.seen_at end,
            engine_id = case when n.removed_at is null and n.endpoint = excluded.endpoint then n.engine_id end
        where (n.removed_at is not null or (not $14 and not ($15 and n.runtime <> 'simulated' and (excluded.runtime = 'simulated' or n.endpoint is distinct from excluded.endpoint))))
            and (n.runtime = excluded.runtime or not exists (
                select 1 from devices.devices d where d.node = n.name and d.runtime = n.runtime and d.released_at is null
                    and not (d.runtime = 'simulated' and coalesce($3, n.hosts_simulated))))",
    );
    let done = insert
        .bind(&node.name)
        .bind(node.runtime.as_str())
        .bind(node.hosts_simulated)
        .bind(&node.endpoint)
        .bind(node.tls.as_ref().map(Json))
        .bind(&node.address)
        .bind(bind.to_string())
        .bind(node.labels.as_ref().map(Json))
        .bind(node.cpu_cores.map(millis))
        .bind(node.cpu_overcommit)
        .bind(node.memory_m_b)
        .bind(node.devices)
        .bind(now)
        .bind(word == Word::New)
        .bind(word == Word::Found)
        .bind(node.disk_m_b)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Thousandths of a number of cores.
pub fn millis(cores: f64) -> i32 {
    (cores * 1000.0).round() as i32
}

/// Every node, by name.
pub async fn all(conn: &mut PgConnection) -> sqlx::Result<Vec<Node>> {
    sqlx::query_as(select_node!("where removed_at is null order by name"))
        .fetch_all(conn)
        .await
}

/// A page of the nodes, by name.
pub async fn list(conn: &mut PgConnection, slice: Slice) -> sqlx::Result<Vec<Node>> {
    sqlx::query_as(select_node!(
        "where removed_at is null order by name limit $1 offset $2"
    ))
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many nodes there are.
pub async fn count(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from devices.nodes where removed_at is null")
        .fetch_one(conn)
        .await
}

/// The node of a name.
pub async fn find(conn: &mut PgConnection, name: &str) -> sqlx::Result<Option<Node>> {
    sqlx::query_as(select_node!("where name = $1 and removed_at is null"))
        .bind(name)
        .fetch_optional(conn)
        .await
}

/// Whether there is a node of this name.
pub async fn exists(conn: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from devices.nodes where name = $1 and removed_at is null)",
    )
    .bind(name)
    .fetch_one(conn)
    .await
}

/// Writes what operators want of a node; `false` where there is none.
pub async fn set_state(
    conn: &mut PgConnection,
    name: &str,
    state: State,
    reason: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.nodes set since = case when state = $2 then since else clock_timestamp() end,
            state = $2, reason = $3, updated_at = $4 where name = $1 and removed_at is null",
    );
    let done = update
        .bind(name)
        .bind(state.as_str())
        .bind(reason)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Removes a node that no living device is on; `false` where one is, where something of one is still to be removed from an
/// engine that is there, where it alone keeps a snapshot or what is on a device (unless it is down and those are to be given up), or where there is no
/// such node. Its row stays for those that were on it.
pub async fn remove(
    conn: &mut PgConnection,
    name: &str,
    gives_up: bool,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.nodes set removed_at = clock_timestamp(), engine_id = null, updated_at = $2
        where name = $1 and removed_at is null and used_devices = 0
            and (down_since is not null or not exists (select 1 from devices.leftovers where node = $1))
            and (($3 and down_since is not null) or not (exists (select 1 from devices.sole_copies where node = $1)
                or exists (select 1 from devices.held_leftovers where node = $1)))",
    );
    let update = update.bind(name).bind(now).bind(gives_up);
    let done = update.execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// How many snapshots a node keeps that no other one keeps which is there, and of how many devices it keeps all that there is.
pub async fn count_kept_alone(conn: &mut PgConnection, name: &str) -> sqlx::Result<(i64, i64)> {
    sqlx::query_as(
        "-- nodes::count_kept_alone
        select (select count(*) from devices.sole_copies where node = $1), (select count(*) from devices.held_leftovers where node = $1)",
    )
    .bind(name)
    .fetch_one(conn)
    .await
}

/// The engine that a node has from its first contact on: the one that was found at its endpoint, where none was found there
/// before. `None` where the node has another endpoint by now. The unique constraint refuses what is another node's engine.
pub async fn recognise(
    conn: &mut PgConnection,
    (node, endpoint): (&str, &str),
    found: &str,
) -> sqlx::Result<Option<String>> {
    let select = "select engine_id from devices.nodes where name = $1 and endpoint = $2 and removed_at is null";
    let known: Option<Option<String>> = sqlx::query_scalar(select)
        .bind(node)
        .bind(endpoint)
        .fetch_optional(&mut *conn)
        .await?;
    if !matches!(known, Some(None)) {
        return Ok(known.flatten());
    }
    let update = "update devices.nodes set engine_id = $3 where name = $1 and endpoint = $2 and engine_id is null and removed_at is null";
    let update = sqlx::query(update).bind(node).bind(endpoint).bind(found);
    update.execute(&mut *conn).await?;
    // Another replica may have been first, with another engine.
    let known: Option<Option<String>> = sqlx::query_scalar(select)
        .bind(node)
        .bind(endpoint)
        .fetch_optional(conn)
        .await?;
    Ok(known.flatten())
}

/// What an operator may change of a node.
#[derive(Clone, Debug, Default)]
pub struct NodeChange {
    /// Its engine.
    pub endpoint: Option<String>,
    /// How replicas authenticate themselves to it.
    pub tls: Option<super::Tls>,
    /// Where clients reach its ports.
    pub address: Option<String>,
    /// Its marks.
    pub labels: Option<super::Labels>,
    /// Thousandths of a core.
    pub cpu_millis: Option<i32>,
    /// How many times as many are promised.
    pub cpu_overcommit: Option<f64>,
    /// Memory.
    pub memory_mb: Option<i32>,
    /// Disk for what is brought there.
    pub disk_mb: Option<i32>,
    /// How many devices.
    pub most_devices: Option<i32>,
}

/// Changes a node; `false` where there is none. A capacity below what is in use takes nothing away from any device.
pub async fn patch(
    conn: &mut PgConnection,
    name: &str,
    change: &NodeChange,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.nodes set endpoint = case when runtime <> 'simulated' then coalesce($2, endpoint) else endpoint end,
            engine_id = case when $2 is null then engine_id end,
            tls = coalesce($3, tls), address = coalesce($4, address), labels = coalesce($5, labels),
            cpu_millis = coalesce($6, cpu_millis), cpu_overcommit = coalesce($7, cpu_overcommit),
            memory_mb = coalesce($8, memory_mb), most_devices = coalesce($9, most_devices),
            disk_mb = coalesce($11, disk_mb), updated_at = $10
        where name = $1 and removed_at is null",
    );
    let done = update
        .bind(name)
        .bind(&change.endpoint)
        .bind(change.tls.as_ref().map(Json))
        .bind(&change.address)
        .bind(change.labels.as_ref().map(Json))
        .bind(change.cpu_millis)
        .bind(change.cpu_overcommit)
        .bind(change.memory_mb)
        .bind(change.most_devices)
        .bind(now)
        .bind(change.disk_mb)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}
