//! The engines of all nodes, as this replica knows them: learnt from the rows of the nodes, connected to when needed.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use contracts::{DeviceId, SnapshotId};
use futures::future::{BoxFuture, join_all};
use futures::stream::BoxStream;
use sqlx::PgPool;
use tracing::{info, warn};

use super::docker::{Docker, Identity};
use super::kubernetes::Kubernetes;
use super::presence::Presence;
use super::recipe::Recipe;
use super::transfer::{Outlet, Piece};
use super::{Runtime, RuntimeError, Spec};
use crate::device::RuntimeKind;
use crate::node::Node;
use crate::node::check::Check;
use crate::node::settings::NodeSettings;
use crate::reconcile::Container;

/// How many devices may boot on a node whose engine has fewer processors, or has not said how many.
const LEAST_BOOTS: i64 = 2;

/// What runs the containers of a node.
pub trait Engine: Runtime {
    /// Whether this is the engine that the row names.
    fn is_of(&self, node: &Node) -> bool;
    /// Whether it is there, as this replica knows it.
    fn presence(&self) -> &Presence;
    /// How many processors its machine has; 0 where it has not said, or has many machines.
    fn processors(&self) -> i64 {
        0
    }
    /// Asks it whether it is there, for two seconds at most, and notes the answer.
    fn ping(&self) -> BoxFuture<'_, Result<(), RuntimeError>>;
    /// Whether it is there now, asked of one that is busy or far away no more often than is needed.
    fn is_there(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        self.ping()
    }
    /// Lists the containers of this cluster, running or not.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, RuntimeError>>;
    /// Removes a container by the identity that a list gave, with what was stored in it; one that is gone is fine, and one
    /// that took its place since stays.
    fn remove_container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Removes what is kept of a device beside its container.
    fn remove_kept<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Whether it keeps the image of a snapshot.
    fn has_image<'a>(
        &'a self,
        snapshot: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<bool, RuntimeError>>;
    /// Gives a copy of the image of a snapshot away, piece by piece, and says where the rest does not come.
    fn give_image<'a>(
        &'a self,
        snapshot: &'a SnapshotId,
        outlet: Outlet,
        within: Duration,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Takes the image of a snapshot, if it comes whole.
    fn take_image<'a>(
        &'a self,
        snapshot: &'a SnapshotId,
        pieces: BoxStream<'static, Piece>,
        within: Duration,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Refuses a device of which no further image can be kept: it is made of too many layers.
    fn bound_layers<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// How many bytes are stored in a device beyond what it was made of, where the engine can tell; it may take long.
    fn storage<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<Option<i64>, RuntimeError>>;
    /// What there is to be said of it and its machine.
    fn check<'a>(&'a self, node: &'a Node) -> BoxFuture<'a, Result<Vec<Check>, RuntimeError>>;
}

/// The engine of a node that has one.
pub fn engine(node: &Node, identity: Identity, recipe: &Recipe) -> Option<Arc<dyn Engine>> {
    match node.runtime {
        RuntimeKind::Docker => Some(Arc::new(Docker::of(node, identity, recipe)?)),
        RuntimeKind::Kubernetes => Some(Arc::new(Kubernetes::of(node, recipe)?)),
        RuntimeKind::Simulated => None,
    }
}

/// The engines of all nodes that have one.
#[derive(Clone)]
pub struct Engines(Arc<Inner>);

struct Inner {
    recipe: Recipe,
    identity: Identity,
    by_node: RwLock<HashMap<String, Arc<dyn Engine>>>,
}

impl Engines {
    /// Knows none yet. Which engine is whose stands in the database.
    pub fn new(recipe: Recipe, db: &PgPool) -> Self {
        Self(Arc::new(Inner {
            recipe,
            identity: Identity::Row(db.clone()),
            by_node: RwLock::default(),
        }))
    }

    /// What containers are made with.
    pub fn recipe(&self) -> &Recipe {
        &self.0.recipe
    }

    /// Knows these nodes and no others from now on.
    pub fn learn(&self, nodes: &[Node]) {
        let mut by_node = self
            .0
            .by_node
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        by_node.retain(|name, engine| {
            (nodes.iter()).any(|node| node.name == *name && engine.is_of(node))
        });
        for node in nodes {
            if !by_node.contains_key(&node.name)
                && let Some(engine) = engine(node, self.0.identity.clone(), &self.0.recipe)
            {
                by_node.insert(node.name.clone(), engine);
            }
        }
    }

    /// Knows this node, too, as its row describes it.
    pub fn know(&self, node: &Node) {
        if (self.of(&node.name)).is_ok_and(|engine| engine.is_of(node)) {
            return;
        }
        if let Some(engine) = engine(node, self.0.identity.clone(), &self.0.recipe) {
            let mut by_node = self
                .0
                .by_node
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            by_node.insert(node.name.clone(), engine);
        }
    }

    /// Sees whether an engine that is not known yet answers and has the image.
    ///
    /// # Errors
    /// Where it does not, or has not.
    pub async fn try_out(&self, node: &NodeSettings) -> anyhow::Result<()> {
        let engine = Docker::described(node, &self.0.recipe);
        let engine = engine.context("the node has no engine")?;
        engine.demand_image().await
    }

    /// The engine of a node.
    ///
    /// # Errors
    /// Where the node has none that is known here.
    pub fn of(&self, node: &str) -> Result<Arc<dyn Engine>, RuntimeError> {
        let by_node = self
            .0
            .by_node
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let engine = by_node.get(node).cloned();
        engine.ok_or_else(|| RuntimeError::NoEngine { node: node.into() })
    }

    /// The nodes whose engines answered this replica when they were last asked.
    pub fn answering(&self) -> Vec<String> {
        let answering = self.all_answering();
        answering.map(|(name, _)| name).collect()
    }

    /// The same with how many devices may boot there at a time: so many, else as many as the engine has processors.
    pub fn boots(&self, told: Option<i64>) -> Vec<(String, i64)> {
        let most = |engine: Arc<dyn Engine>| engine.processors().max(LEAST_BOOTS);
        self.all_answering()
            .map(|(name, engine)| (name, told.unwrap_or_else(|| most(engine))))
            .collect()
    }

    fn all_answering(&self) -> impl Iterator<Item = (String, Arc<dyn Engine>)> {
        let all = self.all().into_iter();
        all.filter(|(_, engine)| engine.presence().answers())
    }

    fn all(&self) -> Vec<(String, Arc<dyn Engine>)> {
        let by_node = self.0.by_node.read();
        let by_node = by_node.unwrap_or_else(PoisonError::into_inner);
        let all = by_node.iter();
        all.map(|(name, engine)| (name.clone(), Arc::clone(engine)))
            .collect()
    }

    /// Asks every engine whether it is there, all at the same time and each for a moment; tells what changed, and
    /// gives the nodes with what came of it.
    pub async fn ask_all(&self) -> Vec<(String, Result<(), RuntimeError>)> {
        let asked = self.all().into_iter().map(|(name, engine)| async move {
            let before = engine.presence().answers();
            let answer = engine.ping().await;
            match &answer {
                Ok(()) if !before => info!("the engine of node {name} answers"),
                Err(error) if before || is_news(&*engine, error) => warn!(
                    "the engine of node {name} does not answer: {}",
                    platform::problem::causes(error)
                ),
                Ok(()) | Err(_) => {}
            }
            (name, answer)
        });
        join_all(asked).await
    }
}

/// Whether nobody was told yet that another engine answers in the place of this one.
fn is_news(engine: &dyn Engine, error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::OtherEngine { .. }) && engine.presence().is_news()
}
