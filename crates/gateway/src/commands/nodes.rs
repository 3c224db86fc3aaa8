//! `gateway nodes`: the nodes of the cluster by way of its API, and what they need, seen from this machine.

use anyhow::{anyhow, bail};
use devices::node::check::{Report, Standing};
use http::Method;
use platform::{Env, db};
use serde_json::{Value, json};

use super::client::{Asking, Client, Refusal};
use super::stores::addresses;
use super::table::table;
use super::{Closing, NodesCommand, say};
use crate::serve::Config;

/// How many nodes a page of the list has, and how many pages there are at most.
const PAGE: usize = 500;
const MOST_PAGES: usize = 100;

/// Does what the command says.
pub async fn nodes(env: Env, command: NodesCommand) -> anyhow::Result<i32> {
    match command {
        NodesCommand::Check { node, json } => check(env, node, json).await,
        NodesCommand::List { asking, json } => {
            let nodes = all(&asking.client(env)?).await.map_err(told)?;
            tell(&Value::Array(nodes), json)
        }
        NodesCommand::Cordon(closing) => close(env, closing, "cordon").await,
        NodesCommand::Drain(closing) => close(env, closing, "drain").await,
        NodesCommand::Uncordon { node, asking, json } => {
            let node = change(env, asking, &node, "uncordon", &json!({})).await?;
            tell(&node, json)
        }
    }
}

async fn close(env: Env, closing: Closing, what: &str) -> anyhow::Result<i32> {
    let body = json!({ "reason": closing.reason });
    let node = change(env, closing.asking, &closing.node, what, &body).await?;
    tell(&node, closing.json)
}

/// All nodes, page after page.
async fn all(client: &Client) -> Result<Vec<Value>, Refusal> {
    let mut nodes = Vec::new();
    for page in 1..=MOST_PAGES {
        let path = format!("nodes?page={page}&pageSize={PAGE}");
        let mut reply = client.ask(Method::GET, &path, None).await?;
        let Value::Array(some) = reply["data"].take() else {
            return Err(Refusal::Broken("the reply has no nodes".to_owned()));
        };
        let is_last = some.len() < PAGE;
        nodes.extend(some);
        if is_last {
            break;
        }
    }
    Ok(nodes)
}

async fn change(
    env: Env,
    asking: Asking,
    node: &str,
    what: &str,
    body: &Value,
) -> anyhow::Result<Value> {
    let client = asking.client(env)?;
    // Anything else could lead to another route.
    if node.trim_matches('.').is_empty() || !contracts::id::is_valid(node) {
        bail!("`{node}` is no name of a node; `gateway nodes list` shows those there are");
    }
    let path = format!("nodes/{node}/{what}");
    client
        .ask(Method::POST, &path, Some(body))
        .await
        .map_err(told)
}

/// A refusal, and what helps.
fn told(refusal: Refusal) -> anyhow::Error {
    let help = match &refusal {
        Refusal::Said { status, .. } => match status.as_u16() {
            401 => ": sign in by POST /api/auth/login and give the access token",
            403 => {
                ": it takes the token of an administrator (`gateway admin create` makes one), or an API key of one with the \
                    scope nodes:read or nodes:write"
            }
            404 => ": `gateway nodes list` shows the nodes there are",
            _ => "",
        },
        _ => "",
    };
    anyhow!("{refusal}{help}")
}

/// A node or several, as JSON or as a table.
fn tell(told: &Value, json: bool) -> anyhow::Result<i32> {
    let text = match (json, told) {
        (true, told) => serde_json::to_string_pretty(told)?,
        (false, Value::Array(nodes)) if nodes.is_empty() => {
            "there are no nodes: DEVICE_NODES or POST /api/nodes makes them known".to_owned()
        }
        (false, Value::Array(nodes)) => list(nodes),
        (false, node) => list(std::slice::from_ref(node)),
    };
    say(&text)?;
    Ok(0)
}

fn list(nodes: &[Value]) -> String {
    let head = [
        "NODE", "RUNTIME", "STATUS", "DEVICES", "CPU", "MEMORY", "ADDRESS", "SINCE", "REASON",
    ];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let of = |used: String, most: &Value, unit: &str| match most {
        Value::Null => format!("{used}{unit}"),
        most => format!("{used} of {most}{unit}"),
    };
    let rows = nodes.iter().map(|node| {
        let (used, most) = (&node["used"], &node["capacity"]);
        vec![
            text(&node["name"]),
            text(&node["runtime"]),
            text(&node["status"]),
            of(used["devices"].to_string(), &most["devices"], ""),
            of(used["cpuCores"].to_string(), &most["cpuCores"], ""),
            of(used["memoryMB"].to_string(), &most["memoryMB"], " MB"),
            text(&node["address"]),
            text(&node["since"]),
            text(&node["reason"]),
        ]
    });
    table(&head, rows)
}

/// What nodes need; exit code 1 where one fails. A replica need not run here.
async fn check(env: Env, node: Option<String>, json: bool) -> anyhow::Result<i32> {
    let config = Config::from_env(env)?;
    let db = db::connect(&addresses(&config.settings)?.database, (0, 1)).await?;
    let reports = devices::check_nodes(&db, &config.devices, node.as_deref()).await;
    db.close().await;
    let reports = reports?;
    if let (Some(node), true) = (node, reports.is_empty()) {
        bail!("there is no node {node}");
    }
    let text = match json {
        true => serde_json::to_string_pretty(&reports)?,
        false => shown(&reports),
    };
    say(&text)?;
    let fails = reports.iter().any(|report| report.status == Standing::Fail);
    Ok(fails.into())
}

fn shown(reports: &[Report]) -> String {
    let rows = reports.iter().flat_map(|report| {
        report.checks.iter().map(|check| {
            vec![
                report.node.clone(),
                check.name.to_owned(),
                check.status.as_str().to_owned(),
                check.found.clone(),
                check.advice.clone().unwrap_or_default(),
            ]
        })
    });
    table(&["NODE", "CHECK", "STATUS", "FOUND", "ADVICE"], rows)
}
