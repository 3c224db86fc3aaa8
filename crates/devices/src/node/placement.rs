//! Which node a device comes to: a choice among rows, and a reservation that the row of the node grants or refuses.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{Labels, Node};
use crate::device::{ProviderType, RuntimeKind};

names! {
    /// In which order nodes that could take a device are tried.
    Policy, "placement" {
        /// The emptiest first: devices share the machines evenly.
        Spread = "spread",
        /// The fullest first: machines stay free for large devices, or can be switched off.
        Pack = "pack",
    }
}

/// What a device needs of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// What shall stand behind it.
    pub provider: ProviderType,
    /// Thousandths of a core.
    pub cpu_millis: i64,
    /// Memory.
    pub memory_mb: i64,
    /// Labels that the node must have.
    pub selector: Labels,
}

impl Demand {
    /// What a device of this size needs.
    pub fn new(
        provider: ProviderType,
        (cpu_cores, memory_mb): (i32, i32),
        selector: Labels,
    ) -> Self {
        Self {
            provider,
            cpu_millis: i64::from(cpu_cores) * 1000,
            memory_mb: memory_mb.into(),
            selector,
        }
    }
}

/// A node that takes no device, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its name.
    pub node: String,
    /// Why, with the figures.
    pub reason: String,
}

/// Refusals as one sentence.
pub fn told(refusals: &[Refusal]) -> String {
    let mut text = String::new();
    for refusal in refusals {
        let separator = if text.is_empty() { "" } else { "; " };
        // Writing to a string does not fail.
        let _ = write!(text, "{separator}{}: {}", refusal.node, refusal.reason);
    }
    if text.is_empty() {
        "there is no node".into()
    } else {
        text
    }
}

/// The same without the names of nodes: how many refuse for which reason.
pub fn counted(refusals: &[Refusal]) -> String {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for refusal in refusals {
        let name = format!("node {}", refusal.node);
        *reasons
            .entry(refusal.reason.replace(&name, "the node"))
            .or_default() += 1;
    }
    let mut text = String::new();
    for (reason, nodes) in reasons {
        let separator = if text.is_empty() { "" } else { "; " };
        let plural = if nodes == 1 { "" } else { "s" };
        // Writing to a string does not fail.
        let _ = write!(text, "{separator}{nodes} node{plural}: {reason}");
    }
    if text.is_empty() {
        "there is no node".into()
    } else {
        text
    }
}

/// What would run a device for this provider on a node: a container where any node has an engine. `None` where nothing there
/// does.
fn runtime(node: &Node, provider: ProviderType, engines: bool) -> Option<RuntimeKind> {
    match provider {
        ProviderType::Redroid if engines => node.runtime.has_engine().then_some(node.runtime),
        ProviderType::Redroid => {
            (node.runtime == RuntimeKind::Simulated).then_some(RuntimeKind::Simulated)
        }
        ProviderType::Simulated => (node.runtime == RuntimeKind::Simulated || node.hosts_simulated)
            .then_some(RuntimeKind::Simulated),
    }
}

/// The best node for a device, apart from those that were tried already; otherwise why none takes it.
pub fn choose<'a>(
    nodes: &'a [Node],
    demand: &Demand,
    policy: Policy,
    tried: &[Refusal],
) -> Result<(&'a Node, RuntimeKind), Vec<Refusal>> {
    let engines = nodes.iter().any(|node| node.runtime.has_engine());
    let mut refusals = Vec::new();
    let mut open = Vec::new();
    for node in nodes {
        if let Some(known) = tried.iter().find(|tried| tried.node == node.name) {
            refusals.push(known.clone());
            continue;
        }
        let runtime = runtime(node, demand.provider, engines);
        match (runtime, refusal(node, demand)) {
            (Some(runtime), None) => open.push((node, runtime)),
            (runtime, reason) => {
                let wanted = match demand.provider == ProviderType::Redroid && engines {
                    true => "takes no devices in containers",
                    false => "takes no simulated devices",
                };
                let reason = reason.filter(|_| runtime.is_some());
                refusals.push(Refusal {
                    node: node.name.clone(),
                    reason: reason.unwrap_or_else(|| wanted.into()),
                });
            }
        }
    }
    let best = (open.into_iter()).min_by(|(a, _), (b, _)| order(a, b, policy));
    best.ok_or(refusals)
}

/// Why a node does not take a device that it could run.
fn refusal(node: &Node, demand: &Demand) -> Option<String> {
    if let Some(reason) = node.closed() {
        return Some(reason.into());
    }
    let missing = |(key, value): &(&String, &String)| node.labels.get(*key) != Some(*value);
    if let Some((key, value)) = demand.selector.iter().find(missing) {
        return Some(format!("has no label {key}={value}"));
    }
    let full = |what: &str, asked: i64, used: i64, limit: Option<i64>| {
        let limit = limit.filter(|limit| used.saturating_add(asked) > *limit)?;
        Some(format!(
            "{what}: {asked} asked, {} of {limit} free",
            (limit - used).max(0)
        ))
    };
    let memory = node.memory_mb.map(i64::from);
    let devices = node.most_devices.map(i64::from);
    full(
        "CPU (thousandths of a core)",
        demand.cpu_millis,
        node.used_cpu_millis,
        node.promised_cpu_millis(),
    )
    .or_else(|| full("memory (MB)", demand.memory_mb, node.used_memory_mb, memory))
    .or_else(|| full("devices", 1, node.used_devices.into(), devices))
}

fn order(a: &Node, b: &Node, policy: Policy) -> Ordering {
    let by_load = load(a).total_cmp(&load(b));
    let by_load = by_load.then(a.used_devices.cmp(&b.used_devices));
    let by_load = match policy {
        Policy::Spread => by_load,
        Policy::Pack => by_load.reverse(),
    };
    by_load.then_with(|| a.name.cmp(&b.name))
}

/// How full a node is, 0 to 1, by what it has least of. A limit that is not set is never reached.
fn load(node: &Node) -> f64 {
    let share = |used: i64, limit: Option<i64>| {
        limit.map_or(0.0, |limit| used as f64 / limit.max(1) as f64)
    };
    share(node.used_cpu_millis, node.promised_cpu_millis())
        .max(share(node.used_memory_mb, node.memory_mb.map(i64::from)))
        .max(share(
            node.used_devices.into(),
            node.most_devices.map(i64::from),
        ))
}

/// Whether a node has room for a device that comes to it, and still takes those of its runtime. The row stays locked until the
/// transaction ends, so that nobody else is promised the same room, and this comes last in it; what the device then has is
/// counted with its own row.
pub async fn reserve(
    conn: &mut PgConnection,
    place: (&str, RuntimeKind),
    demand: &Demand,
) -> sqlx::Result<bool> {
    reserve_beyond(conn, place, demand, Held::default()).await
}

/// What is promised to a device on a node already, and counted there.
#[derive(Clone, Copy, Debug, Default, sqlx::FromRow)]
pub struct Held {
    /// Thousandths of a core.
    pub cpu_millis: i64,
    /// Memory.
    pub memory_mb: i64,
    /// Whether it has a place among the devices: 1, or 0.
    pub devices: i32,
}

/// The same for a device that gives up what it holds there for it.
pub async fn reserve_beyond(
    conn: &mut PgConnection,
    (node, runtime): (&str, RuntimeKind),
    demand: &Demand,
    held: Held,
) -> sqlx::Result<bool> {
    let select = sqlx::query(
        "-- placement::reserve
        select from devices.nodes
        where name = $1 and state = 'ready' and removed_at is null and down_since is null
            and (runtime = $4 or ($4 = 'simulated' and hosts_simulated))
            and (cpu_millis is null or used_cpu_millis + $2 <= floor(cpu_millis * cpu_overcommit))
            and (memory_mb is null or used_memory_mb + $3 <= memory_mb)
            and (most_devices is null or used_devices - $5 < most_devices)
        for no key update",
    );
    let done = select
        .bind(node)
        .bind(demand.cpu_millis - held.cpu_millis)
        .bind(demand.memory_mb - held.memory_mb)
        .bind(runtime.as_str())
        .bind(held.devices)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Whether a node has room for a device that comes back to what it left there: also where it takes no others.
pub async fn reserve_again(
    conn: &mut PgConnection,
    node: &str,
    demand: &Demand,
) -> sqlx::Result<bool> {
    let select = sqlx::query(
        "-- placement::reserve_again
        select from devices.nodes
        where name = $1 and removed_at is null and down_since is null
            and (cpu_millis is null or used_cpu_millis + $2 <= floor(cpu_millis * cpu_overcommit))
            and (memory_mb is null or used_memory_mb + $3 <= memory_mb)
            and (most_devices is null or used_devices < most_devices)
        for no key update",
    );
    let done = select
        .bind(node)
        .bind(demand.cpu_millis)
        .bind(demand.memory_mb)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Whether a node has room for a device on it to become of another size, in the transaction that changes its row. What
/// shrinks is always granted.
pub async fn reserve_growth(
    conn: &mut PgConnection,
    node: &str,
    before: (i32, i32),
    after: (i32, i32),
) -> sqlx::Result<bool> {
    let select = sqlx::query(
        "-- placement::reserve_growth
        select from devices.nodes
        where name = $1
            and ($2 <= 0 or cpu_millis is null or used_cpu_millis + $2 <= floor(cpu_millis * cpu_overcommit))
            and ($3 <= 0 or memory_mb is null or used_memory_mb + $3 <= memory_mb)
        for no key update",
    );
    let done = select
        .bind(node)
        .bind((i64::from(after.0) - i64::from(before.0)) * 1000)
        .bind(i64::from(after.1) - i64::from(before.1))
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::State;

    fn node(name: &str, change: impl FnOnce(&mut Node)) -> Node {
        let mut node = Node {
            name: name.into(),
            runtime: RuntimeKind::Docker,
            hosts_simulated: false,
            endpoint: Some("unix:///s".into()),
            engine_id: None,
            tls: None,
            address: "127.0.0.1".into(),
            bind: "127.0.0.1".into(),
            labels: sqlx::types::Json(Labels::new()),
            cpu_millis: Some(8_000),
            cpu_overcommit: 1.0,
            memory_mb: Some(8_192),
            disk_mb: None,
            most_devices: None,
            used_cpu_millis: 0,
            used_memory_mb: 0,
            used_devices: 0,
            state: State::Ready,
            reason: None,
            since: chrono::DateTime::UNIX_EPOCH.into(),
            seen_at: None,
            unseen_seconds: None,
            down_since: None,
            down_reason: None,
            created_at: chrono::DateTime::UNIX_EPOCH.into(),
            updated_at: chrono::DateTime::UNIX_EPOCH.into(),
        };
        change(&mut node);
        node
    }

    fn demand() -> Demand {
        Demand::new(ProviderType::Redroid, (2, 4_096), Labels::new())
    }

    fn name(nodes: &[Node], demand: &Demand, policy: Policy) -> String {
        match choose(nodes, demand, policy, &[]) {
            Ok((node, _)) => node.name.clone(),
            Err(refusals) => told(&refusals),
        }
    }

    #[test]
    fn devices_are_spread_or_packed() {
        let nodes = [
            node("a", |node| {
                (node.used_memory_mb, node.used_devices) = (4_096, 1);
            }),
            node("b", |_| {}),
        ];
        assert_eq!(name(&nodes, &demand(), Policy::Spread), "b");
        assert_eq!(name(&nodes, &demand(), Policy::Pack), "a");

        // What has no limit is compared by the devices.
        let unlimited = |name: &str, devices| {
            node(name, |node| {
                (node.cpu_millis, node.memory_mb, node.used_devices) = (None, None, devices);
            })
        };
        let nodes = [unlimited("a", 3), unlimited("b", 2)];
        assert_eq!(name(&nodes, &demand(), Policy::Spread), "b");
        assert_eq!(name(&nodes, &demand(), Policy::Pack), "a");
    }

    #[test]
    fn whoever_refuses_says_why_with_the_figures() {
        let label = Demand {
            selector: Labels::from([("gpu".to_owned(), "host".to_owned())]),
            ..demand()
        };
        let simulated = Demand {
            provider: ProviderType::Simulated,
            ..demand()
        };
        let table: [(Node, &Demand, &str); 8] = [
            (
                node("a", |node| node.used_cpu_millis = 7_000),
                &demand(),
                "a: CPU (thousandths of a core): 2000 asked, 1000 of 8000 free",
            ),
            (
                node("a", |node| node.used_memory_mb = 5_000),
                &demand(),
                "a: memory (MB): 4096 asked, 3192 of 8192 free",
            ),
            (
                node("a", |node| {
                    (node.most_devices, node.used_devices) = (Some(3), 3);
                }),
                &demand(),
                "a: devices: 1 asked, 0 of 3 free",
            ),
            (
                node("a", |node| node.state = State::Cordoned),
                &demand(),
                "a: cordoned",
            ),
            (
                node("a", |node| {
                    node.down_since = Some(chrono::DateTime::UNIX_EPOCH.into());
                    node.down_reason = Some("no route".into());
                }),
                &demand(),
                "a: down",
            ),
            (node("a", |_| {}), &label, "a: has no label gpu=host"),
            (
                node("a", |_| {}),
                &simulated,
                "a: takes no simulated devices",
            ),
            (
                node("a", |node| {
                    (node.state, node.reason) = (State::Draining, Some("new disk".into()));
                }),
                &demand(),
                "a: draining",
            ),
        ];
        for (node, demand, reason) in table {
            assert_eq!(name(&[node], demand, Policy::Spread), reason);
        }
        assert_eq!(name(&[], &demand(), Policy::Spread), "there is no node");
    }

    #[test]
    fn promises_may_exceed_the_cores() {
        let nodes = [node("a", |node| {
            (node.cpu_overcommit, node.used_cpu_millis) = (1.25, 8_000);
        })];
        assert_eq!(name(&nodes, &demand(), Policy::Spread), "a");
    }

    #[test]
    fn containers_are_used_where_there_is_an_engine_and_simulated_nodes_are_left_to_others() {
        let engine = node("engine", |_| {});
        let simulated = node("simulated", |node| {
            (node.runtime, node.hosts_simulated) = (RuntimeKind::Simulated, true);
        });
        let wish = Demand {
            provider: ProviderType::Simulated,
            ..demand()
        };
        let nodes = [engine, simulated];
        assert_eq!(name(&nodes, &demand(), Policy::Spread), "engine");
        assert_eq!(name(&nodes, &wish, Policy::Spread), "simulated");
        assert_eq!(name(&nodes[1..], &demand(), Policy::Spread), "simulated");

        let pods = node("pods", |node| {
            (node.runtime, node.used_devices) = (RuntimeKind::Kubernetes, 1);
        });
        let nodes = [pods, nodes[1].clone()];
        let (chosen, runtime) = choose(&nodes, &demand(), Policy::Spread, &[]).unwrap();
        assert_eq!((&*chosen.name, runtime), ("pods", RuntimeKind::Kubernetes));
    }

    #[test]
    fn who_was_tried_is_not_tried_again() {
        let nodes = [node("a", |_| {}), node("b", |_| {})];
        let tried = [Refusal {
            node: "a".into(),
            reason: "no ports".into(),
        }];
        let (node, _) = choose(&nodes, &demand(), Policy::Spread, &tried).unwrap();
        assert_eq!(node.name, "b");

        let refusals = choose(&nodes[..1], &demand(), Policy::Spread, &tried).unwrap_err();
        assert_eq!(told(&refusals), "a: no ports");
    }

    #[test]
    fn users_are_told_how_many_nodes_refuse_and_why_and_no_names() {
        let refusal = |node: &str, reason: &str| Refusal {
            node: node.into(),
            reason: reason.into(),
        };
        let refusals = ["a", "b"].map(|node| refusal(node, "cordoned"));
        let refusals = [&refusals[..], &[refusal("c", "no port on node c")]].concat();
        assert_eq!(
            counted(&refusals),
            "2 nodes: cordoned; 1 node: no port on the node"
        );
        assert_eq!(counted(&[]), "there is no node");
    }
}
