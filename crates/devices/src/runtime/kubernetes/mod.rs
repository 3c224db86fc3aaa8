//! Devices in pods of a Kubernetes cluster. A node is a namespace there; a device is a claim that keeps what is on it, a
//! service with its ports, and, while it runs, a pod. All bear the device, the cluster and the fencing token.
//!
//! The leased ports are node ports: they lead to the pod on every machine of the cluster, wherever it was scheduled, and the
//! API server gives no port to two services. Host ports would be those of one machine, which is known only afterwards.
//!
//! Tested against a stand-in for the API server alone.

mod check;
mod endpoint;
mod metrics;
pub mod objects;
mod seen;
mod steps;

use std::future::Future;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use contracts::{DeviceId, SnapshotId};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use kube::api::ListParams;
use kube::core::Status;
use kube::{Api, Client};

pub use endpoint::Endpoint;

use super::engines::Engine;
use super::presence::Presence;
use super::recipe::Recipe;
use super::transfer::{Outlet, Piece};
use super::{Runtime, RuntimeError, Seen, Spec};
use crate::device::RuntimeKind;
use crate::measure::Counted;
use crate::node::Node;
use crate::node::check::Check;
use crate::reconcile::Container;

const PING: Duration = Duration::from_secs(2);
const QUICK: Duration = Duration::from_secs(5);
const SLOW: Duration = Duration::from_secs(30);
/// How long a pod may take until it runs, with the image that is pulled for it; another attempt goes on waiting.
const BOOT: Duration = Duration::from_secs(120);
/// How long a device may take to end by itself before it is killed.
const STOP_GRACE_SECONDS: u32 = 5;

/// The cluster of one node. It is connected to when it is first needed.
pub struct Kubernetes {
    node: String,
    endpoint: String,
    place: Endpoint,
    /// How many times as many cores are promised as there are.
    overcommit: f64,
    recipe: Recipe,
    connected: RwLock<Option<Cluster>>,
    presence: Presence,
}

/// The way to a namespace.
#[derive(Clone)]
struct Cluster {
    client: Client,
    namespace: String,
    pods: Api<Pod>,
    services: Api<Service>,
    claims: Api<PersistentVolumeClaim>,
}

impl Kubernetes {
    /// The cluster of a node that has one.
    pub fn of(node: &Node, recipe: &Recipe) -> Option<Self> {
        let endpoint = node.endpoint.clone()?;
        Some(Self {
            node: node.name.clone(),
            place: Endpoint::parse(&endpoint)?,
            endpoint,
            overcommit: node.cpu_overcommit,
            recipe: recipe.clone(),
            connected: RwLock::default(),
            presence: Presence::default(),
        })
    }

    /// The way to it. What is connected once is kept.
    async fn cluster(&self) -> Result<Cluster, RuntimeError> {
        if let Some(cluster) = &*(self.connected.read()).unwrap_or_else(PoisonError::into_inner) {
            return Ok(cluster.clone());
        }
        let tried = "find the way to the cluster";
        let client = tokio::time::timeout(QUICK, self.place.client()).await;
        let client = client.map_err(|_| self.silent(tried, QUICK))?;
        let (client, namespace) = client.map_err(|error| self.unreachable(tried, error.into()))?;
        let cluster = Cluster {
            pods: Api::namespaced(client.clone(), &namespace),
            services: Api::namespaced(client.clone(), &namespace),
            claims: Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
        };
        let mut connected = (self.connected.write()).unwrap_or_else(PoisonError::into_inner);
        Ok(connected.insert(cluster).clone())
    }

    /// Asks the API server; the inner error is what it refused, for a reason that lies with what was asked.
    async fn call<T>(
        &self,
        tried: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<Result<T, Box<Status>>, RuntimeError> {
        match tokio::time::timeout(QUICK, call).await {
            Ok(Ok(answer)) => Ok(Ok(answer)),
            Ok(Err(kube::Error::Api(status))) if status.code < 500 && status.code != 429 => {
                if status.code == 401 {
                    self.forget_connection();
                }
                Ok(Err(status))
            }
            // It is there and cannot now, or one of its webhooks cannot: that says nothing of the node.
            Ok(Err(error @ kube::Error::Api(_))) => Err(RuntimeError::Unreachable {
                node: self.node.clone(),
                tried,
                source: error.into(),
            }),
            Ok(Err(error)) => {
                self.forget_connection();
                Err(self.unreachable(tried, error.into()))
            }
            Err(_) => Err(self.silent(tried, QUICK)),
        }
    }

    /// Has files be read anew: the address, what the cluster is known by, or what the replica authenticates itself with may
    /// be another by now.
    fn forget_connection(&self) {
        *(self.connected.write()).unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn unreachable(
        &self,
        tried: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> RuntimeError {
        self.presence.missed();
        RuntimeError::Unreachable {
            node: self.node.clone(),
            tried,
            source,
        }
    }

    fn silent(&self, tried: &'static str, within: Duration) -> RuntimeError {
        self.presence.missed();
        RuntimeError::Silent { tried, within }
    }

    async fn ask(&self) -> Result<(), RuntimeError> {
        let tried = "ask the cluster whether it is there";
        let asked = async {
            let cluster = self.cluster().await?;
            // What is of use: the namespace, and that we may work there.
            let one = ListParams::default().limit(1).labels(&self.ours());
            let answer = self.call(tried, cluster.pods.list_metadata(&one)).await?;
            answer.map(drop).map_err(|status| refused(tried, &status))
        };
        match tokio::time::timeout(PING, asked).await {
            Ok(Ok(())) => {
                self.presence.answered();
                Ok(())
            }
            Ok(Err(error)) => {
                self.presence.missed();
                Err(error)
            }
            Err(_) => Err(self.silent(tried, PING)),
        }
    }
}

/// What the API server refused.
fn refused(tried: &'static str, status: &Status) -> RuntimeError {
    let source = format!("{} ({} {})", status.message, status.code, status.reason).into();
    RuntimeError::Engine { tried, source }
}

/// What can never be done here.
fn unsupported<'a, T>(tried: &'static str) -> BoxFuture<'a, Result<T, RuntimeError>>
where
    T: Send + 'a,
{
    let runtime = RuntimeKind::Kubernetes;
    Box::pin(async move { Err(RuntimeError::Unsupported { runtime, tried }) })
}

impl Runtime for Kubernetes {
    fn create<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.make(spec))
    }

    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.run(spec))
    }

    fn stop<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.halt(spec))
    }

    fn remove<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.take_away(id))
    }

    fn inspect<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<Seen, RuntimeError>> {
        Box::pin(self.look(id))
    }

    fn snapshot<'a>(
        &'a self,
        _: &'a Spec,
        _: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<i64, RuntimeError>> {
        unsupported("keep a snapshot")
    }

    fn restore<'a>(
        &'a self,
        _: &'a Spec,
        _: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        unsupported("restore a snapshot")
    }

    fn forget<'a>(&'a self, _: &'a SnapshotId) -> BoxFuture<'a, Result<bool, RuntimeError>> {
        // Nothing is kept here.
        Box::pin(async { Ok(false) })
    }

    fn measure<'a>(
        &'a self,
        id: &'a DeviceId,
    ) -> BoxFuture<'a, Result<Option<Counted>, RuntimeError>> {
        Box::pin(self.count(id))
    }

    fn snapshots(&self) -> BoxFuture<'_, Result<Vec<SnapshotId>, RuntimeError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

impl Engine for Kubernetes {
    fn is_of(&self, node: &Node) -> bool {
        node.endpoint.as_deref() == Some(&self.endpoint) && node.cpu_overcommit == self.overcommit
    }

    fn presence(&self) -> &Presence {
        &self.presence
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(self.ask())
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, RuntimeError>> {
        Box::pin(self.containers())
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.remove_identity(id))
    }

    fn remove_kept<'a>(&'a self, _: &'a DeviceId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        // All that there is of a device is among what its identity names.
        Box::pin(async { Ok(()) })
    }

    fn has_image<'a>(&'a self, _: &'a SnapshotId) -> BoxFuture<'a, Result<bool, RuntimeError>> {
        unsupported("keep the image of a snapshot")
    }

    fn give_image<'a>(
        &'a self,
        _: &'a SnapshotId,
        _: Outlet,
        _: Duration,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        unsupported("give the image of a snapshot away")
    }

    fn take_image<'a>(
        &'a self,
        _: &'a SnapshotId,
        _: BoxStream<'static, Piece>,
        _: Duration,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        unsupported("take the image of a snapshot")
    }

    fn bound_layers<'a>(&'a self, _: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        unsupported("keep a snapshot")
    }

    fn storage<'a>(&'a self, _: &'a DeviceId) -> BoxFuture<'a, Result<Option<i64>, RuntimeError>> {
        // What is stored lies on a volume, of which the API server knows no more than its size.
        Box::pin(async { Ok(None) })
    }

    fn check<'a>(&'a self, _: &'a Node) -> BoxFuture<'a, Result<Vec<Check>, RuntimeError>> {
        Box::pin(self.examine())
    }
}
