//! Knowing the nodes, and whether their engines answer.

use std::time::Duration;

use anyhow::{Context, bail};
use contracts::Timestamp;
use futures::future::join_all;
use platform::Platform;
use platform::lifecycle::Tick;
use platform::problem::causes;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::db::Word;
use super::settings::NodeSettings;
use super::{Node, db, down};
use crate::config::{Failover, RuntimeChoice};
use crate::device::RuntimeKind;
use crate::runtime::{RuntimeError, Runtimes};
use crate::{Config, Devices, error::Result, metrics};

/// How long one look at a node may take; the others wait for it.
const LOOK: Duration = Duration::from_secs(5);

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
        write(platform, node, Word::Settings, now).await?;
    }
    if config.nodes.is_empty() {
        let (node, word) = only_node(config, runtimes).await?;
        write(platform, &node, word, now).await?;
    }
    let nodes = db::all(&mut *platform.db.acquire().await?).await?;
    runtimes.engines.learn(&nodes);
    runtimes.engines.ask_all().await;
    Ok(())
}

async fn write(
    platform: &Platform,
    node: &NodeSettings,
    word: Word,
    now: Timestamp,
) -> anyhow::Result<()> {
    let mut conn = platform.db.acquire().await?;
    let announced = db::announce(&mut conn, node, word, now).await;
    let announced = announced.with_context(|| format!("making the node {} known", node.name))?;
    if !announced {
        match word {
            Word::Found => warn!(
                "node {} has another engine than what was found here: other replicas run its devices; DEVICE_RUNTIME=docker gives it the one of this machine, DEVICE_RUNTIME=simulated is for a cluster without engines, DEVICE_NODES for several nodes",
                node.name
            ),
            Word::New | Word::Settings => warn!(
                "node {} keeps its runtime: it has devices that {} cannot run",
                node.name, node.runtime
            ),
        }
    }
    Ok(())
}

/// The one node of a machine that is told of no others.
async fn only_node(config: &Config, runtimes: &Runtimes) -> anyhow::Result<(NodeSettings, Word)> {
    let image = &config.image;
    let endpoint = config.docker_host.replacen("http://", "tcp://", 1);
    let engine = NodeSettings::only(config, RuntimeKind::Docker);
    let simulated = NodeSettings::only(config, RuntimeKind::Simulated);
    if config.runtime == RuntimeChoice::Simulated {
        return Ok((simulated, Word::Settings));
    }
    if !super::is_endpoint(&endpoint) {
        bail!("{endpoint} is no container engine: unix:///path or tcp://host:port");
    }
    match runtimes.engines.try_out(&engine).await {
        Ok(()) => {
            info!("devices run in docker at {endpoint}, from the image {image}");
            // Nobody has said that it is to be this one: it may be another machine's node that is called the same.
            let word = match config.runtime {
                RuntimeChoice::Docker => Word::Settings,
                RuntimeChoice::Auto | RuntimeChoice::Simulated => Word::Found,
            };
            Ok((engine, word))
        }
        Err(error) if config.runtime == RuntimeChoice::Docker => Err(error),
        Err(reason) => {
            info!("devices are simulated: {reason:#}");
            Ok((simulated, Word::Found))
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
    let answers = state.runtimes.engines.ask_all().await;
    // First for all: nothing that one of them needs may make another look as if nobody reached it.
    for (name, answer) in &answers {
        if answer.is_ok() {
            let mut conn = state.platform.db.acquire().await?;
            down::seen(&mut conn, name).await?;
        }
    }
    let known = |name: &str| nodes.iter().find(|node| node.name == name);
    let looked = answers.into_iter().filter_map(|(name, answer)| {
        let node = known(&name)?;
        Some(async move {
            let looked = async {
                match answer {
                    Ok(()) => greet(state, node).await,
                    Err(error) => miss(state, node, &error).await,
                }
            };
            // What is not done by then goes on with the next look.
            if let Ok(Err(error)) = timeout(LOOK, looked).await {
                warn!("looking after node {name}: {}", causes(&error));
            }
        })
    });
    join_all(looked).await;
    Ok(Tick::Idle)
}

async fn greet(state: &Devices, node: &Node) -> Result<()> {
    match node.down_since {
        Some(_) => down::come_back(state, node).await?,
        None => down::remove_leftovers(state, node).await?,
    }
    down::find_again(state, node).await?;
    down::find_elsewhere(state, node).await?;
    Ok(())
}

/// What no replica has reached for long enough is down. A replica must have looked for as long itself, and found that no
/// other one reached it: after a pause of the database, or of this replica, they first have the time to say that they do.
async fn miss(state: &Devices, node: &Node, error: &RuntimeError) -> Result<()> {
    let after = state.config.node_down_after;
    let engine = state.runtimes.engines.of(&node.name);
    if node.down_since.is_none() {
        if !engine.is_ok_and(|engine| engine.presence().unseen_for(node.seen_at) >= after) {
            return Ok(());
        }
        let mut conn = state.platform.db.acquire().await?;
        if !down::mark(&mut conn, &node.name, after, &error.to_string()).await? {
            return Ok(());
        }
        error!("node {} is down: {}", node.name, causes(error));
        metrics::node_down();
    }
    let elsewhere = state.config.failover != Failover::None;
    down::lose_devices(state, node, elsewhere).await?;
    Ok(())
}
