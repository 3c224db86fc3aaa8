//! Devices in containers of a Docker engine, named after them and marked with device, cluster and fencing token.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bollard::API_DEFAULT_VERSION;
use bollard::models::{
    ContainerConfig, ContainerCreateBody, ContainerInspectResponse, ContainerNetworkStats,
    ContainerStateStatusEnum, ContainerSummary, ContainerSummaryStateEnum, HostConfig,
    ImageSummary, PortBinding, SystemInfo,
};
use bollard::query_parameters::{
    CommitContainerOptions, CreateContainerOptions, ImportImageOptions, InspectContainerOptions,
    ListContainersOptions, ListImagesOptions, RemoveContainerOptions, RemoveImageOptions,
    StartContainerOptions, StatsOptions, StopContainerOptions,
};
use contracts::{DeviceId, SnapshotId};
use coordination::PortSet;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use sqlx::PgPool;

use super::boot::has_booted;
use super::engines::Engine;
use super::knock;
use super::presence::Presence;
use super::recipe::{CLUSTER_LABEL, DEVICE_LABEL, FENCE_LABEL, Recipe};
use super::transfer::{Outlet, Piece};
use super::{Runtime, RuntimeError, Seen, Spec};
use crate::measure::Counted;
use crate::node::check::{self, Check};
use crate::node::settings::NodeSettings;
use crate::node::{self, Node, Tls};
use crate::reconcile::Container;

/// The ports of a device within its container.
const ADB: &str = "5555/tcp";
const WEBRTC: &str = "8080/tcp";
const SCRCPY: &str = "27183/tcp";
/// How long a device may take to end by itself before it is killed.
const STOP_GRACE_SECONDS: i32 = 5;
const PING: Duration = Duration::from_secs(1);
/// For so long after its last answer, a little more than two looks at the nodes, an engine is there as long as it takes
/// connections.
const LATELY: Duration = Duration::from_secs(5);
/// After this time it is asked again which engine answers: another one may have taken its place.
const KNOWN: Duration = Duration::from_secs(10);
/// The repository of the images that keep snapshots.
const REPOSITORY: &str = "cloudphone-snapshot";
/// How long after one look whether Android has booted the next one follows.
const BOOT_LOOK: Duration = Duration::from_millis(500);
/// How long a commit may take; it copies all that was written on the device.
const COMMIT: Duration = Duration::from_secs(600);
/// Of how many layers the image of a device that is kept may be made; engines mount 128 at most.
const MOST_LAYERS: usize = 64;
/// How long finding an engine and seeing which one it is may take.
const GREETING: Duration = Duration::from_secs(3);
const QUICK: Duration = Duration::from_secs(5);
const SLOW: Duration = Duration::from_secs(30);

/// The label with the id of the snapshot that an image keeps.
pub const SNAPSHOT_LABEL: &str = "cloudphone.snapshot";

/// What says which engine is the node's.
#[derive(Clone, Debug)]
pub enum Identity {
    /// The row of the node, which the first contact writes.
    Row(PgPool),
    /// What that row said; any engine where it said nothing.
    Told(Option<String>),
}

/// The engine of one node. It is connected to when it is first needed, and it is the node's only where it says so: the same
/// address leads to another engine on another machine.
pub struct Docker {
    node: String,
    endpoint: String,
    tls: Option<Tls>,
    identity: Identity,
    recipe: Recipe,
    connected: RwLock<Option<Connected>>,
    /// Of its machine, as it said when it was last connected to.
    processors: AtomicI64,
    presence: Presence,
}

/// The way to an engine that is the node's.
#[derive(Clone)]
struct Connected {
    engine: bollard::Docker,
    /// What it calls itself.
    id: String,
    /// When it last did so.
    asked: Instant,
}

impl Docker {
    /// The engine of a node that has one.
    pub fn of(node: &Node, identity: Identity, recipe: &Recipe) -> Option<Self> {
        let tls = node.tls.as_ref().map(|tls| tls.0.clone());
        let endpoint = node.endpoint.clone()?;
        Some(Self::new(&node.name, (endpoint, tls), identity, recipe))
    }

    /// The engine of a node that is only described yet.
    pub fn described(node: &NodeSettings, recipe: &Recipe) -> Option<Self> {
        let place = (node.endpoint.clone()?, node.tls.clone());
        Some(Self::new(&node.name, place, Identity::Told(None), recipe))
    }

    fn new(
        node: &str,
        (endpoint, tls): (String, Option<Tls>),
        identity: Identity,
        recipe: &Recipe,
    ) -> Self {
        Self {
            node: node.to_owned(),
            endpoint,
            tls,
            identity,
            recipe: recipe.clone(),
            connected: RwLock::default(),
            processors: AtomicI64::new(0),
            presence: Presence::default(),
        }
    }

    /// Asks an engine that answers which one it is, where that was long ago. One that takes its time for it is taken for the
    /// one that it was.
    async fn ask_again(&self, connected: Connected) -> Result<(), RuntimeError> {
        if connected.asked.elapsed() < KNOWN {
            return Ok(());
        }
        let Ok(info) = tokio::time::timeout(PING, connected.engine.info()).await else {
            return Ok(());
        };
        let info = info.map_err(|error| self.refused("ask the engine about itself", error))?;
        // Certificates are read again with the next connection: they may be others by then.
        self.forget_way();
        match identity(info) == Some(connected.id) {
            true => self.connect().await.map(drop),
            false => Err(self.another("another engine has taken its place")),
        }
    }

    /// Makes sure that the image is there.
    ///
    /// # Errors
    /// Where the engine does not answer or has no such image.
    pub async fn demand_image(&self) -> anyhow::Result<()> {
        let (endpoint, image) = (&self.endpoint, &self.recipe.image);
        let silent = || format!("no container engine answers at {endpoint}");
        self.ping().await.with_context(silent)?;
        let engine = self.engine().await?;
        match tokio::time::timeout(QUICK, engine.inspect_image(image)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if status(&error) == Some(404) => {
                bail!("the engine at {endpoint} has no image {image}")
            }
            Ok(Err(error)) => Err(error).with_context(silent),
            Err(error) => Err(error).with_context(silent),
        }
    }

    /// The way to it. It is kept until a request fails on it; each opens a connection of its own.
    async fn engine(&self) -> Result<bollard::Docker, RuntimeError> {
        match self.connected() {
            Some(connected) => Ok(connected.engine),
            None => self.connect().await,
        }
    }

    fn connected(&self) -> Option<Connected> {
        let connected = self.connected.read();
        connected.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn forget_way(&self) {
        let connected = self.connected.write();
        *connected.unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Finds a way to it, and sees that it is the engine of the node.
    async fn connect(&self) -> Result<bollard::Docker, RuntimeError> {
        let tried = "connect to the engine";
        let (endpoint, seconds) = (self.endpoint.as_str(), SLOW.as_secs() + 5);
        let engine = match (&self.tls, endpoint.strip_prefix("unix://")) {
            (_, Some(path)) => {
                bollard::Docker::connect_with_unix(path, seconds, API_DEFAULT_VERSION)
            }
            (None, None) => {
                bollard::Docker::connect_with_http(endpoint, seconds, API_DEFAULT_VERSION)
            }
            (Some(tls), None) => bollard::Docker::connect_with_ssl(
                endpoint,
                &tls.key,
                &tls.cert,
                &tls.ca,
                seconds,
                API_DEFAULT_VERSION,
            ),
        };
        let engine = engine.map_err(|error| self.refused(tried, error))?;
        let asked = async {
            let engine = engine.negotiate_version().await?;
            let info = engine.info().await?;
            Ok((engine, info))
        };
        let (engine, info) = self
            .call(tried, GREETING, asked)
            .await?
            .map_err(|error| self.refused(tried, error))?;
        self.processors
            .store(info.ncpu.unwrap_or(0), Ordering::Relaxed);
        let id = identity(info);
        let id = id.ok_or_else(|| self.another("it does not say which engine it is"))?;
        self.recognise(&id).await?;
        let connected = Connected {
            engine: engine.clone(),
            id,
            asked: Instant::now(),
        };
        let mut known = self
            .connected
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *known = Some(connected);
        Ok(engine)
    }

    /// Sees whether the engine that was found is the node's.
    async fn recognise(&self, found: &str) -> Result<(), RuntimeError> {
        let known = match &self.identity {
            Identity::Told(None) => return Ok(()),
            Identity::Told(Some(known)) => Some(known.clone()),
            Identity::Row(db) => {
                let mut conn = db.acquire().await?;
                match node::db::recognise(&mut conn, (&self.node, &self.endpoint), found).await {
                    Err(error) if constraint(&error) == Some("nodes_engine_key") => {
                        return Err(self.another("it is the engine of another node"));
                    }
                    known => known?,
                }
            }
        };
        match known {
            Some(known) if known == found => Ok(()),
            Some(known) => Err(self.another(&format!(
                "it calls itself {found} and not {known}; where it has taken its place, set the endpoint of the node anew"
            ))),
            None => Err(self.another("the node has another endpoint by now")),
        }
    }

    fn another(&self, why: &str) -> RuntimeError {
        self.presence.missed();
        RuntimeError::OtherEngine {
            node: self.node.clone(),
            endpoint: self.endpoint.clone(),
            why: why.to_owned(),
        }
    }

    /// What it means that a call failed: what the engine refused, or that it is not there.
    fn refused(&self, tried: &'static str, error: bollard::errors::Error) -> RuntimeError {
        if status(&error).is_some() {
            let source = error.into();
            return RuntimeError::Engine { tried, source };
        }
        // The next one may need other certificates, or lead elsewhere.
        self.forget_way();
        self.presence.missed();
        RuntimeError::Unreachable {
            node: self.node.clone(),
            tried,
            source: error.into(),
        }
    }

    fn silent(&self, tried: &'static str, within: Duration) -> RuntimeError {
        self.presence.missed();
        RuntimeError::Silent { tried, within }
    }

    async fn call<T>(
        &self,
        tried: &'static str,
        within: Duration,
        call: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<Result<T, bollard::errors::Error>, RuntimeError> {
        let answer = tokio::time::timeout(within, call).await;
        answer.map_err(|_| self.silent(tried, within))
    }

    fn absent_is_fine(
        &self,
        tried: &'static str,
        answer: Result<(), bollard::errors::Error>,
    ) -> Result<(), RuntimeError> {
        match answer {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            Err(error) => Err(self.refused(tried, error)),
        }
    }

    async fn create_container(&self, spec: &Spec) -> Result<(), RuntimeError> {
        let tried = "create a container";
        let engine = self.engine().await?;
        let create = || {
            let options = CreateContainerOptions {
                name: Some(name(&spec.id)),
                ..CreateContainerOptions::default()
            };
            let create = engine.create_container(Some(options), self.body(spec));
            self.call(tried, SLOW, create)
        };
        let mut created = create().await?;
        if created
            .as_ref()
            .is_err_and(|error| status(error) == Some(409))
        {
            if !self.remove_outdated(spec).await? {
                // It is there already: made by an earlier attempt.
                return Ok(());
            }
            created = create().await?;
        }
        created
            .map(drop)
            .map_err(|error| self.refused(tried, error))
    }

    /// Removes the container of a device that was made for the ports it had before; says whether there is none now.
    async fn remove_outdated(&self, spec: &Spec) -> Result<bool, RuntimeError> {
        let (tried, name) = ("inspect a container", name(&spec.id));
        let engine = self.engine().await?;
        let inspect = engine.inspect_container(&name, None::<InspectContainerOptions>);
        let seen = match self.call(tried, QUICK, inspect).await? {
            Err(error) if status(&error) == Some(404) => return Ok(true),
            seen => seen.map_err(|error| self.refused(tried, error))?,
        };
        let made_by = fence(&seen);
        let bound = seen.host_config.and_then(|host| host.port_bindings);
        let bound = bound.unwrap_or_default();
        let is_bound = |(inside, outside): (&str, u16)| {
            let bindings = bound.get(inside).and_then(Option::as_ref);
            let ports = bindings.into_iter().flatten();
            let mut ports = ports.filter_map(|binding| binding.host_port.as_deref());
            ports.any(|port| port == outside.to_string())
        };
        let Some(id) = seen
            .id
            .filter(|_| !bindings(spec).into_iter().all(is_bound))
        else {
            return Ok(false);
        };
        // Who made it after this worker claimed the operation knows better which ports the device has.
        if made_by.is_some_and(|fence| fence > spec.fence) {
            return Err(RuntimeError::Fenced);
        }
        // By its id: a container that has taken its place meanwhile stays.
        self.take_away(&id).await?;
        Ok(true)
    }

    /// What the engine says of itself and its machine.
    ///
    /// # Errors
    /// Where it fails.
    pub async fn info(&self) -> Result<SystemInfo, RuntimeError> {
        let tried = "ask the engine about itself";
        let engine = self.engine().await?;
        let info = self.call(tried, QUICK, engine.info()).await?;
        info.map_err(|error| self.refused(tried, error))
    }

    /// Removes a container by its name or its id, with what was stored in it; one that is gone is fine.
    async fn take_away(&self, name: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptions {
            v: true,
            force: true,
            ..RemoveContainerOptions::default()
        };
        let engine = self.engine().await?;
        let remove = engine.remove_container(name, Some(options));
        let tried = "remove a container";
        match self.call(tried, SLOW, remove).await? {
            // Its removal is under way; ask until it is gone.
            Err(error) if status(&error) == Some(409) => Err(self.refused(tried, error)),
            answer => self.absent_is_fine(tried, answer),
        }
    }

    async fn start_container(&self, spec: &Spec) -> Result<(), RuntimeError> {
        let name = name(&spec.id);
        let engine = self.engine().await?;
        let start = engine.start_container(&name, None::<StartContainerOptions>);
        match self.call("start a container", SLOW, start).await? {
            Ok(()) => self.wait_for_boot(spec).await,
            Err(error) => {
                let text = error.to_string();
                let ports = [spec.ports.adb, spec.ports.webrtc, spec.ports.scrcpy];
                let occupied =
                    text.contains("already allocated") || text.contains("already in use");
                let port = ports
                    .into_iter()
                    .find(|port| occupied && text.contains(&format!(":{port}")));
                Err(match port {
                    Some(port) => RuntimeError::PortOccupied { port },
                    None => self.refused("start a container", error),
                })
            }
        }
    }

    /// Waits until Android says that it has booted; what stands in for it needs no time.
    async fn wait_for_boot(&self, spec: &Spec) -> Result<(), RuntimeError> {
        if !self.recipe.is_android() {
            return Ok(());
        }
        let within = self.recipe.boot;
        let until = tokio::time::Instant::now() + within;
        while !has_booted(spec, until).await {
            if tokio::time::Instant::now() >= until {
                return Err(RuntimeError::NotBooted { within });
            }
            if self.inspect(&spec.id).await? != Seen::Running {
                return Err(RuntimeError::BootEnded);
            }
            tokio::time::sleep(BOOT_LOOK).await;
        }
        Ok(())
    }

    /// Commits the container, unless that was done already; the bytes of the layer that this adds.
    async fn commit(&self, spec: &Spec, snapshot: &SnapshotId) -> Result<i64, RuntimeError> {
        let reference = reference(snapshot);
        let kept = self.images(SNAPSHOT_LABEL, snapshot.as_str()).await?;
        if !kept
            .iter()
            .any(|image| image.repo_tags.contains(&reference))
        {
            self.refuse_layers(spec).await?;
            let options = CommitContainerOptions {
                container: Some(name(&spec.id)),
                repo: Some(REPOSITORY.to_owned()),
                tag: Some(snapshot.to_string()),
                ..CommitContainerOptions::default()
            };
            let config = ContainerConfig {
                labels: Some(HashMap::from([
                    (SNAPSHOT_LABEL.to_owned(), snapshot.to_string()),
                    (DEVICE_LABEL.to_owned(), spec.id.to_string()),
                    (CLUSTER_LABEL.to_owned(), self.recipe.cluster.clone()),
                ])),
                ..ContainerConfig::default()
            };
            let tried = "commit a container";
            let patient = self.engine().await?.with_timeout(COMMIT);
            let commit = patient.commit_container(options, config);
            let commit = self.call(tried, COMMIT, commit).await?;
            commit.map_err(|error| self.refused(tried, error))?;
        }
        let tried = "look at the layers of an image";
        let engine = self.engine().await?;
        let history = engine.image_history(&reference);
        let history = self.call(tried, QUICK, history).await?;
        let history = history.map_err(|error| self.refused(tried, error))?;
        Ok(history.first().map_or(0, |layer| layer.size))
    }

    /// Refuses one layer more than a device may be made of.
    async fn refuse_layers(&self, spec: &Spec) -> Result<(), RuntimeError> {
        let tried = "look at the layers of a container";
        let engine = self.engine().await?;
        let image = self.image(spec);
        let inspect = self.call(tried, QUICK, engine.inspect_image(&image));
        let image = inspect.await?.map_err(|error| self.refused(tried, error))?;
        let layers = image.root_fs.and_then(|root| root.layers);
        let layers = layers.map_or(0, |layers| layers.len());
        match layers >= MOST_LAYERS {
            true => Err(RuntimeError::TooManyLayers { layers }),
            false => Ok(()),
        }
    }

    /// Makes the container anew of the image that the spec names.
    async fn remake(&self, spec: &Spec) -> Result<(), RuntimeError> {
        let engine = self.engine().await?;
        // The container goes only where there is what takes its place.
        let (tried, image) = ("inspect the image to restore", self.image(spec));
        let inspect = self.call(tried, QUICK, engine.inspect_image(&image));
        inspect.await?.map_err(|error| self.refused(tried, error))?;
        let (tried, name) = ("inspect a container", name(&spec.id));
        let inspect = engine.inspect_container(&name, None::<InspectContainerOptions>);
        match self.call(tried, QUICK, inspect).await? {
            Err(error) if status(&error) == Some(404) => {}
            Err(error) => return Err(self.refused(tried, error)),
            Ok(seen) => {
                // Who made it after this worker claimed the operation has restored it already.
                if fence(&seen).is_some_and(|fence| fence > spec.fence) {
                    return Err(RuntimeError::Fenced);
                }
                // By its id: a container that has taken its place meanwhile stays.
                if let Some(id) = &seen.id {
                    self.take_away(id).await?;
                }
            }
        }
        self.create_container(spec).await
    }

    /// Counts what a container uses, in one look: the engine is not kept waiting for a second one.
    async fn count(&self, id: &DeviceId) -> Result<Option<Counted>, RuntimeError> {
        let options = StatsOptions {
            stream: false,
            one_shot: true,
        };
        let (tried, name) = ("measure a container", name(id));
        let engine = self.engine().await?;
        let mut stats = engine.stats(&name, Some(options));
        let stats = match tokio::time::timeout(QUICK, stats.next()).await {
            Ok(Some(Ok(stats))) => stats,
            Ok(Some(Err(error))) if status(&error) == Some(404) => return Ok(None),
            Ok(Some(Err(error))) => return Err(self.refused(tried, error)),
            Ok(None) => return Ok(None),
            Err(_) => {
                return Err(self.silent(tried, QUICK));
            }
        };
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let cpu = stats.cpu_stats.and_then(|cpu| cpu.cpu_usage?.total_usage);
        // A container that does not run has used nothing.
        let Some(cpu) = cpu.filter(|used| *used > 0) else {
            return Ok(None);
        };
        let memory = stats.memory_stats.unwrap_or_default();
        let details = memory.stats.unwrap_or_default();
        // What can be dropped at any moment is not in use: cgroup version 2, then 1.
        let inactive = ["inactive_file", "total_inactive_file"];
        let inactive = inactive.iter().find_map(|name| details.get(*name)).copied();
        let bytes = memory.usage.unwrap_or_default();
        let bytes = bytes.saturating_sub(inactive.unwrap_or_default());
        let networks = stats.networks.unwrap_or_default();
        let sum = |of: fn(&ContainerNetworkStats) -> Option<u64>| {
            number(networks.values().filter_map(of).sum())
        };
        Ok(Some(Counted {
            cpu: number(cpu),
            cores: None,
            memory_mb: bytes as f64 / 1_048_576.0,
            // See [`Engine::storage`]: it is too much for each look.
            storage_mb: None,
            rx: sum(|network| network.rx_bytes),
            tx: sum(|network| network.tx_bytes),
        }))
    }

    /// The images of this cluster that bear a label, the newest first.
    async fn images(&self, label: &str, value: &str) -> Result<Vec<ImageSummary>, RuntimeError> {
        let labels = match value {
            "" => vec![label.to_owned()],
            value => vec![format!("{label}={value}")],
        };
        let ours = format!("{CLUSTER_LABEL}={}", self.recipe.cluster);
        let labels = labels.into_iter().chain([ours]).collect();
        let options = ListImagesOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), labels)])),
            ..ListImagesOptions::default()
        };
        let engine = self.engine().await?;
        let list = engine.list_images(Some(options));
        let list = self.call("list images", SLOW, list).await?;
        let mut images = list.map_err(|error| self.refused("list images", error))?;
        images.sort_by_key(|image| std::cmp::Reverse(image.created));
        Ok(images)
    }

    /// Removes what bears a label, but for images that a container is made of: those lose their names alone. Whether there
    /// was anything to be removed.
    async fn remove_images(&self, label: &str, value: &str) -> Result<bool, RuntimeError> {
        let mut removed = false;
        for image in self.images(label, value).await? {
            // Engines of old say so of an image without a name.
            let names = image
                .repo_tags
                .into_iter()
                .filter(|name| !name.starts_with("<none>"));
            for reference in names {
                removed |= self.remove_image(&reference, true).await?;
            }
        }
        for image in self.images(label, value).await? {
            removed |= self.remove_image(&image.id, false).await?;
        }
        Ok(removed)
    }

    async fn remove_image(&self, image: &str, force: bool) -> Result<bool, RuntimeError> {
        let options = RemoveImageOptions {
            force,
            ..RemoveImageOptions::default()
        };
        let engine = self.engine().await?;
        let remove = engine.remove_image(image, Some(options), None);
        let tried = "remove an image";
        match self.call(tried, SLOW, remove).await? {
            // A container is made of it, or another image: it goes when the sweep finds it alone.
            Err(error) if status(&error) == Some(409) => Ok(false),
            answer => self.absent_is_fine(tried, answer.map(drop)).map(|()| true),
        }
    }

    /// Gives the image of a snapshot away, with all that it is made of.
    async fn export(
        &self,
        snapshot: &SnapshotId,
        outlet: &mut Outlet,
        within: Duration,
    ) -> Result<(), RuntimeError> {
        let patient = self.engine().await?.with_timeout(within);
        let mut pieces = patient.export_image(&reference(snapshot));
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| self.refused("export an image", error))?;
            if !outlet.pass(piece).await {
                // Whoever was to take it says why not.
                break;
            }
        }
        Ok(())
    }

    async fn import(
        &self,
        pieces: BoxStream<'static, Piece>,
        within: Duration,
    ) -> Result<(), RuntimeError> {
        let patient = self.engine().await?.with_timeout(within);
        let options = ImportImageOptions {
            quiet: true,
            ..ImportImageOptions::default()
        };
        let mut told = patient.import_image_stream(options, pieces, None);
        while let Some(told) = told.next().await {
            told.map_err(|error| self.refused("import an image", error))?;
        }
        Ok(())
    }

    /// The image that the container of a device is made of.
    fn image(&self, spec: &Spec) -> String {
        match &spec.made_of {
            Some(snapshot) => reference(snapshot),
            None => self.recipe.image.clone(),
        }
    }

    fn body(&self, spec: &Spec) -> ContainerCreateBody {
        let ports = bindings(spec).map(|(inside, outside)| {
            let binding = PortBinding {
                host_ip: Some(spec.address.to_string()),
                host_port: Some(outside.to_string()),
            };
            (inside.to_owned(), Some(vec![binding]))
        });
        let ports = HashMap::from(ports);
        let memory = i64::from(spec.memory_mb) * 1024 * 1024;
        ContainerCreateBody {
            image: Some(self.image(spec)),
            hostname: Some("cloudphone".into()),
            env: Some(
                Recipe::environment(spec)
                    .map(|(name, value)| format!("{name}={value}"))
                    .into(),
            ),
            cmd: self.recipe.boot(spec),
            labels: Some(HashMap::from([
                (DEVICE_LABEL.to_owned(), spec.id.to_string()),
                (CLUSTER_LABEL.to_owned(), self.recipe.cluster.clone()),
                (FENCE_LABEL.to_owned(), spec.fence.to_string()),
            ])),
            exposed_ports: Some(ports.keys().cloned().collect()),
            host_config: Some(HostConfig {
                port_bindings: Some(ports),
                nano_cpus: Some(i64::from(spec.cpu_cores) * 1_000_000_000),
                memory: Some(memory),
                // Swap would be beyond what the node promises.
                memory_swap: Some(memory),
                ..self.recipe.android.host()
            }),
            ..ContainerCreateBody::default()
        }
    }
}

impl Runtime for Docker {
    fn create<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.create_container(spec))
    }

    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.start_container(spec))
    }

    fn stop<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            let options = StopContainerOptions {
                t: Some(STOP_GRACE_SECONDS),
                ..StopContainerOptions::default()
            };
            let name = name(&spec.id);
            let engine = self.engine().await?;
            let stop = engine.stop_container(&name, Some(options));
            let tried = "stop a container";
            self.absent_is_fine(tried, self.call(tried, SLOW, stop).await?)
        })
    }

    fn remove<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.take_away(&name(id)).await?;
            self.remove_images(DEVICE_LABEL, id.as_str()).await?;
            Ok(())
        })
    }

    fn snapshot<'a>(
        &'a self,
        spec: &'a Spec,
        snapshot: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<i64, RuntimeError>> {
        Box::pin(self.commit(spec, snapshot))
    }

    fn restore<'a>(
        &'a self,
        spec: &'a Spec,
        _: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.remake(spec))
    }

    fn forget<'a>(&'a self, snapshot: &'a SnapshotId) -> BoxFuture<'a, Result<bool, RuntimeError>> {
        Box::pin(self.remove_images(SNAPSHOT_LABEL, snapshot.as_str()))
    }

    fn measure<'a>(
        &'a self,
        id: &'a DeviceId,
    ) -> BoxFuture<'a, Result<Option<Counted>, RuntimeError>> {
        Box::pin(self.count(id))
    }

    fn snapshots(&self) -> BoxFuture<'_, Result<Vec<SnapshotId>, RuntimeError>> {
        Box::pin(async move {
            let images = self.images(SNAPSHOT_LABEL, "").await?;
            let ids = images
                .iter()
                .filter_map(|image| image.labels.get(SNAPSHOT_LABEL));
            let mut ids: Vec<SnapshotId> = ids.filter_map(|id| id.parse().ok()).collect();
            ids.sort_unstable();
            ids.dedup();
            Ok(ids)
        })
    }

    fn inspect<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<Seen, RuntimeError>> {
        Box::pin(async move {
            let name = name(id);
            let engine = self.engine().await?;
            let inspect = engine.inspect_container(&name, None::<InspectContainerOptions>);
            match self.call("inspect a container", QUICK, inspect).await? {
                Ok(seen) => {
                    let state = seen.state.unwrap_or_default();
                    Ok(match (state.running, state.status) {
                        (Some(true), _) => Seen::Running,
                        (_, Some(ContainerStateStatusEnum::CREATED)) => Seen::Unused,
                        _ => Seen::Stopped,
                    })
                }
                Err(error) if status(&error) == Some(404) => Ok(Seen::Absent),
                Err(error) => Err(self.refused("inspect a container", error)),
            }
        })
    }
}

impl Engine for Docker {
    fn is_of(&self, node: &Node) -> bool {
        let connected = self.connected();
        node.endpoint.as_deref() == Some(&self.endpoint)
            && node.tls.as_ref().map(|tls| &tls.0) == self.tls.as_ref()
            && connected.is_none_or(|connected| node.engine_id.as_ref() == Some(&connected.id))
    }

    fn processors(&self) -> i64 {
        self.processors.load(Ordering::Relaxed)
    }

    fn presence(&self) -> &Presence {
        &self.presence
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let tried = "ask the engine whether it is there";
            let answer = match self.connected() {
                None => self.connect().await.map(drop),
                Some(connected) => {
                    let ping = self.call(tried, PING, connected.engine.ping()).await;
                    match ping.and_then(|ping| ping.map_err(|error| self.refused(tried, error))) {
                        Ok(_) => self.ask_again(connected).await,
                        Err(error) => Err(error),
                    }
                }
            };
            match answer {
                Ok(()) => self.presence.answered(),
                Err(_) => self.presence.missed(),
            }
            answer
        })
    }

    fn is_there(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            // An engine writes to its log of each connection that ends before its TLS has begun: that one is believed.
            let lately = self.connected().is_some() && self.presence.answered_within(LATELY);
            match lately && (self.tls.is_some() || knock::listens(&self.endpoint).await) {
                true => Ok(()),
                false => self.ping().await,
            }
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, RuntimeError>> {
        Box::pin(async move {
            let tried = "list the containers";
            let ours = format!("{CLUSTER_LABEL}={}", self.recipe.cluster);
            let options = ListContainersOptions {
                all: true,
                filters: Some(HashMap::from([("label".to_owned(), vec![ours])])),
                ..ListContainersOptions::default()
            };
            let engine = self.engine().await?;
            let list = self.call(tried, SLOW, engine.list_containers(Some(options)));
            let list = list.await?.map_err(|error| self.refused(tried, error))?;
            let ours = |container: ContainerSummary| {
                let labels = container.labels.unwrap_or_default();
                // The engine was asked for these alone; what is not ours is not touched on its word.
                if labels.get(CLUSTER_LABEL) != Some(&self.recipe.cluster) {
                    return None;
                }
                let state = container.state;
                let bound = container.ports.unwrap_or_default();
                let bound = |inside: u16| {
                    let mut ports = bound.iter().filter(|port| port.private_port == inside);
                    ports.find_map(|port| port.public_port)
                };
                Some(Container {
                    id: container.id?,
                    device: labels.get(DEVICE_LABEL)?.clone(),
                    running: state == Some(ContainerSummaryStateEnum::RUNNING),
                    ports: bound(5555).zip(bound(8080)).zip(bound(27183)).map(
                        |((adb, webrtc), scrcpy)| PortSet {
                            adb,
                            webrtc,
                            scrcpy,
                        },
                    ),
                })
            };
            Ok(list.into_iter().filter_map(ours).collect())
        })
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.take_away(id))
    }

    fn remove_kept<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.remove_images(DEVICE_LABEL, device.as_str()).await?;
            Ok(())
        })
    }

    fn has_image<'a>(
        &'a self,
        snapshot: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<bool, RuntimeError>> {
        Box::pin(async move {
            let (tried, reference) = ("inspect an image", reference(snapshot));
            let engine = self.engine().await?;
            let inspect = engine.inspect_image(&reference);
            match self.call(tried, QUICK, inspect).await? {
                Ok(_) => Ok(true),
                Err(error) if status(&error) == Some(404) => Ok(false),
                Err(error) => Err(self.refused(tried, error)),
            }
        })
    }

    fn give_image<'a>(
        &'a self,
        snapshot: &'a SnapshotId,
        mut outlet: Outlet,
        within: Duration,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.export(snapshot, &mut outlet, within).await?;
            outlet.finish();
            Ok(())
        })
    }

    fn take_image<'a>(
        &'a self,
        _: &'a SnapshotId,
        pieces: BoxStream<'static, Piece>,
        within: Duration,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.import(pieces, within))
    }

    fn bound_layers<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.refuse_layers(spec))
    }

    fn storage<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<Option<i64>, RuntimeError>> {
        Box::pin(async move {
            let (tried, name) = ("count the storage of a container", name(id));
            let engine = self.engine().await?;
            let options = InspectContainerOptions { size: true };
            let inspect = engine.inspect_container(&name, Some(options));
            // One that takes its time for many files is there all the same.
            let within = SLOW;
            let seen = tokio::time::timeout(within, inspect).await;
            match seen.map_err(|_| RuntimeError::Silent { tried, within })? {
                Ok(seen) => Ok(seen.size_rw),
                Err(error) if status(&error) == Some(404) => Ok(None),
                Err(error) => Err(self.refused(tried, error)),
            }
        })
    }

    fn check<'a>(&'a self, node: &'a Node) -> BoxFuture<'a, Result<Vec<Check>, RuntimeError>> {
        Box::pin(async move {
            let info = self.info().await?;
            Ok(check::of_engine(node, &info, self.recipe.is_android()))
        })
    }
}

/// Each port within the container, and the port of the node it is reached by.
fn bindings(spec: &Spec) -> [(&'static str, u16); 3] {
    [
        (ADB, spec.ports.adb),
        (WEBRTC, spec.ports.webrtc),
        (SCRCPY, spec.ports.scrcpy),
    ]
}

/// The name of the image that keeps a snapshot.
fn reference(snapshot: &SnapshotId) -> String {
    format!("{REPOSITORY}:{snapshot}")
}

/// The fencing token of the worker that made a container.
fn fence(seen: &ContainerInspectResponse) -> Option<i64> {
    let labels = seen.config.as_ref()?.labels.as_ref()?;
    labels.get(FENCE_LABEL)?.parse().ok()
}

/// The name of a device's container.
pub fn name(id: &DeviceId) -> String {
    // An id of ours has no colon, the one character that a name of a container may not have.
    format!("cp-{id}")
}

/// What an engine calls itself: with its data root, since engines of old that share a machine share the rest.
fn identity(info: SystemInfo) -> Option<String> {
    let id = info.id.filter(|id| !id.is_empty())?;
    Some(format!("{id}@{}", info.docker_root_dir?))
}

fn constraint(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error()?.constraint()
}

fn status(error: &bollard::errors::Error) -> Option<u16> {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}
