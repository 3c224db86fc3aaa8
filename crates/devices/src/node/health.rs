//! Knowing the nodes, and whether their engines answer.

use anyhow::{Context, bail};
use contracts::Timestamp;
use platform::Platform;
use platform::lifecycle::Tick;
use tracing::{info, warn};

use super::db;
use super::settings::NodeSettings;
use crate::config::RuntimeChoice;
use crate::device::RuntimeKind;
use crate::runtime::Runtimes;
use crate::{Config, Devices, error::Result};

/// Makes the nodes of the settings known, and their engines to this replica.
///
/// # Errors
/// Where the database does not answer, or the one engine there is to be is demanded and cannot be used.
pub async fn announce(
    platform: &Platform,
    config: &Config,
    runtimes: &Runtimes,
) -> anyhow::Result<()> {
    let now = platform.clock.now();
    for node in &config.nodes {
        write(platform, node, now).await?;
    }
    if config.nodes.is_empty() {
        let node = only_node(config, runtimes).await?;
        write(platform, &node, now).await?;
    }
    let nodes = db::all(&mut *platform.db.acquire().await?).await?;
    runtimes.engines.learn(&nodes);
    runtimes.engines.ask_all().await;
    Ok(())
}

async fn write(platform: &Platform, node: &NodeSettings, now: Timestamp) -> anyhow::Result<()> {
    let mut conn = platform.db.acquire().await?;
    let announced = db::announce(&mut conn, node, false, now).await;
    let announced = announced.with_context(|| format!("making the node {} known", node.name))?;
    if !announced {
        warn!(
            "node {} keeps its runtime: it has devices that {} cannot run",
            node.name, node.runtime
        );
    }
    Ok(())
}

/// The one node of a machine that is told of no others.
async fn only_node(config: &Config, runtimes: &Runtimes) -> anyhow::Result<NodeSettings> {
    let image = &config.image;
    let endpoint = config.docker_host.replacen("http://", "tcp://", 1);
    let engine = NodeSettings::only(config, RuntimeKind::Docker);
    let simulated = NodeSettings::only(config, RuntimeKind::Simulated);
    if config.runtime == RuntimeChoice::Simulated {
        return Ok(simulated);
    }
    if !super::is_endpoint(&endpoint) {
        bail!("{endpoint} is no container engine: unix:///path or tcp://host:port");
    }
    match runtimes.engines.try_out(&engine).await {
        Ok(()) => {
            info!("devices run in docker at {endpoint}, from the image {image}");
            Ok(engine)
        }
        Err(error) if config.runtime == RuntimeChoice::Docker => Err(error),
        Err(reason) => {
            info!("devices are simulated: {reason:#}");
            Ok(simulated)
        }
    }
}

/// Learns what nodes there are by now, and asks their engines whether they are there.
pub async fn tend(state: &Devices) -> Result<Tick> {
    let nodes = {
        let mut conn = state.platform.db.acquire().await?;
        db::all(&mut conn).await?
    };
    state.runtimes.engines.learn(&nodes);
    state.runtimes.engines.ask_all().await;
    Ok(Tick::Idle)
}
