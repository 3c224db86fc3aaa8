//! `gateway nodes`: what nodes need for devices, seen from this machine.

use anyhow::bail;
use devices::node::check::{Report, Standing};
use platform::{Env, db};

use super::stores::addresses;
use super::table::table;
use super::{NodesCommand, say};
use crate::serve::Config;

/// Does what the command says; exit code 1 where a node fails. A replica need not run here.
pub async fn nodes(env: Env, command: NodesCommand) -> anyhow::Result<i32> {
    let NodesCommand::Check { node, json } = command;
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
