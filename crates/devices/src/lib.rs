//! Devices: their life cycle, the ports they are reached on, and what runs them.
//!
//! A device is a row in PostgreSQL. What shall be done with it waits in a queue there, which the workers of all replicas
//! share; Redis only makes the choice of ports quick. So any replica may die on any line, and another one goes on.

#[macro_use]
pub mod device;
pub mod access;
pub mod batch;
pub mod config;
pub mod error;
pub mod group;
pub mod installation;
mod lease;
pub mod lifecycle;
pub mod measure;
mod metrics;
pub mod moving;
pub mod node;
pub mod operation;
pub mod port;
pub mod quota;
pub mod reconcile;
mod routes;
pub mod runtime;
pub mod snapshot;
pub mod template;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use coordination::cron::{CatchUp, Job, Overlap};
use platform::Platform;
use platform::lifecycle::{Tasks, Tick};
use tokio::sync::Notify;

pub use config::Config;
pub use error::Error;
pub use node::check::check_nodes;
pub use quota::Quotas;
pub use routes::{openapi, quota_openapi, quota_router, router};

use access::Access;
use access::package::Packages;
use device::Status;
use node::Node;
use port::Ports;
use runtime::Runtimes;

/// How often a replica looks which nodes there are, and whether their engines answer.
const LOOK_AT_NODES: Duration = Duration::from_secs(2);
/// How often a replica looks which operations took too long.
const LOOK_AT_DEADLINES: Duration = Duration::from_secs(5);
/// Parts the reconciler from what else runs at the full minute.
const RECONCILE_JITTER: Duration = Duration::from_secs(10);
/// How often each replica looks for images of snapshots that there are not.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How often a replica looks which lifecycle rules are due, and which executions are left.
const LOOK_AT_RULES: Duration = Duration::from_secs(2);
/// How often devices are counted for the metrics.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// How often tickets are forgotten of which nothing can come any more.
const PURGE_EVERY: Duration = Duration::from_secs(60);

/// The state of the service.
#[derive(Clone)]
pub struct Devices {
    platform: Platform,
    config: Arc<Config>,
    ports: Ports,
    runtimes: Runtimes,
    access: Access,
    packages: Packages,
    quotas: Quotas,
    /// What items of batches wait for.
    batch_items: batch::Room,
    /// What commands of batches wait for: half of what this replica carries, so that single ones find room beside them.
    batch_commands: batch::Room,
    /// Wakes the worker of this replica; the others look by themselves.
    operations_due: Arc<Notify>,
    /// Wakes the worker of installations of this replica.
    installations_due: Arc<Notify>,
}

impl Devices {
    /// Puts the service together, and makes its nodes known.
    ///
    /// # Errors
    /// Where the database does not answer, or docker is demanded and cannot be used.
    pub async fn new(platform: &Platform, config: Config) -> anyhow::Result<Self> {
        let runtimes = Runtimes::new(platform, &config).await?;
        node::health::announce(platform, &config, &runtimes).await?;
        Ok(Self {
            ports: Ports::new(platform, &config),
            access: Access::new(&config.access),
            packages: Packages::new(platform),
            runtimes,
            quotas: Quotas::new(platform, &config),
            platform: platform.clone(),
            batch_items: batch::Room::new(batch::MOST_AT_ONCE),
            batch_commands: batch::Room::new(config.access.commands.div_ceil(2)),
            config: Arc::new(config),
            operations_due: Arc::default(),
            installations_due: Arc::default(),
        })
    }

    /// Starts the worker, the hosting of simulated devices, the renewal of port leases, and the handling of paid orders and of
    /// deleted accounts.
    ///
    /// # Errors
    /// Where a store does not answer at start.
    pub async fn spawn_jobs(&self, tasks: &Tasks) -> anyhow::Result<()> {
        platform::events::spawn_consumer(&self.platform, tasks, quota::grant::Grants).await?;
        let leavers = device::leaver::Leavers(self.platform.clock.clone());
        platform::events::spawn_consumer(&self.platform, tasks, leavers).await?;
        operation::worker::spawn(self.clone(), tasks);
        installation::worker::spawn(self.clone(), tasks);
        self.runtimes.simulated.spawn(tasks);
        let state = self.clone();
        let period = (self.config.node_down_after / 4).min(LOOK_AT_NODES);
        tasks.every("devices.nodes", period, move || {
            let state = state.clone();
            async move { Ok(node::health::tend(&state).await?) }
        });
        let state = self.clone();
        let period = (self.config.operation_deadline / 4).min(LOOK_AT_DEADLINES);
        tasks.every("devices.overdue", period, move || {
            let state = state.clone();
            async move { Ok(operation::overdue::end(&state).await?) }
        });
        let state = self.clone();
        tasks.every("devices.moves", LOOK_AT_NODES, move || {
            let state = state.clone();
            async move { Ok(moving::jobs::look(&state).await?) }
        });
        let state = self.clone();
        tasks.every("devices.ports", self.config.port_lease / 3, move || {
            let state = state.clone();
            async move { state.keep_ports().await }
        });
        let state = self.clone();
        tasks.every("devices.tunnels", access::tunnels::LOOK_EVERY, move || {
            let state = state.clone();
            async move { state.look_after_tunnels().await }
        });
        let state = self.clone();
        tasks.every("devices.access_purge", PURGE_EVERY, move || {
            let state = state.clone();
            async move { access::purge::purge(&state).await }
        });
        let state = self.clone();
        tasks.every("devices.snapshot_images", SWEEP_EVERY, move || {
            let state = state.clone();
            async move { snapshot::jobs::sweep(&state).await }
        });
        let state = self.clone();
        tasks.every(
            "devices.measure",
            self.config.measure_every / 3,
            move || {
                let state = state.clone();
                async move { measure::collect::step(&state).await }
            },
        );
        let state = self.clone();
        tasks.every("devices.storage", measure::storage::LOOK_EVERY, move || {
            let state = state.clone();
            async move { measure::storage::step(&state).await }
        });
        let state = self.clone();
        tasks.every("devices.lifecycle", LOOK_AT_RULES, move || {
            let state = state.clone();
            async move { state.run_lifecycle().await }
        });
        let state = self.clone();
        tasks.every("devices.count", COUNT_EVERY, move || {
            let state = state.clone();
            async move { state.count().await }
        });
        Ok(())
    }

    /// The jobs that one replica at a time runs. They need not guard their runs: each of their transactions locks the rows
    /// that it changes, and finds done what another one did.
    pub fn cron_jobs(&self) -> Vec<Job> {
        let state = self.clone();
        let retention = Job::new("devices-snapshot-retention", "17 * * * *", move |run| {
            let state = state.clone();
            async move { snapshot::jobs::retire_aged(&state, &run.cancelled).await }
        });
        let state = self.clone();
        let copies = Job::new("devices-snapshot-copies", "* * * * *", move |run| {
            let state = state.clone();
            async move { snapshot::copies::keep(&state, &run.cancelled).await }
        });
        let state = self.clone();
        let measurements = Job::new("devices-metrics", "* * * * *", move |run| {
            let state = state.clone();
            async move { measure::jobs::tidy(&state, &run.cancelled).await }
        });
        let state = self.clone();
        let usage = Job::new("devices-usage", "7 * * * *", move |run| {
            let state = state.clone();
            async move { device::usage::tell(&state, run.slot, &run.cancelled).await }
        });
        let state = self.clone();
        let quotas = Job::new("devices-quota-limits", "*/5 * * * *", move |run| {
            let state = state.clone();
            async move { quota::enforce::stop_beyond(&state, &run.cancelled).await }
        });
        let state = self.clone();
        let clearing = Job::new("devices-clearing", "31 * * * *", move |run| {
            let state = state.clone();
            async move { device::clearing::clear(&state, &run.cancelled).await }
        });
        let state = self.clone();
        let schedule = self.config.reconcile_schedule.clone();
        let reconciler = Job::new("device-reconciler", schedule, move |run| {
            let state = state.clone();
            async move { reconcile::job::run(&state, &run.cancelled).await }
        });
        vec![
            retention,
            measurements,
            // An hour that nobody was told of is made good for two days.
            usage.catch_up(CatchUp::All(TimeDelta::days(2))),
            clearing,
            // What is missing now is made; an image may take longer than a minute.
            copies.catch_up(CatchUp::None).overlap(Overlap::Skip),
            // What stands now is looked at: what a round missed is the same for the next one.
            quotas.catch_up(CatchUp::None).overlap(Overlap::Skip),
            // What a round missed the next one finds.
            reconciler
                .catch_up(CatchUp::None)
                .overlap(Overlap::Skip)
                .jitter(RECONCILE_JITTER),
        ]
    }

    /// What must never happen to devices, for the cluster's list of invariants.
    pub fn invariants(&self) -> Vec<coordination::Check> {
        vec![port::invariants::check(&self.platform)]
    }

    /// The ports of the nodes.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// The ports of a node. Who listens on them is looked at only where they are this machine's for certain: its engine is
    /// reached by a socket, and is the one that the node has.
    fn ports_of(&self, node: &Node) -> Ports {
        let engine = self.runtimes.engines.of(&node.name);
        match engine.is_ok_and(|engine| !engine.presence().answers()) {
            true => self.ports.of_name(&node.name),
            false => self.ports.of(node),
        }
    }

    /// The quotas of users.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// What runs devices on this replica.
    pub fn runtimes(&self) -> &Runtimes {
        &self.runtimes
    }

    /// Ends the tunnels of this replica whose access has ended.
    ///
    /// # Errors
    /// None: where the database does not answer, they stay for a while.
    pub async fn look_after_tunnels(&self) -> anyhow::Result<Tick> {
        self.access.tunnels.look(self).await
    }

    /// Closes all tunnels with a reason, so that clients come back through another replica; those that still come are closed
    /// too.
    pub async fn close_tunnels(&self) {
        self.access.tunnels.leave().await;
    }

    /// How many tunnels are open through this replica.
    pub fn open_tunnels(&self) -> usize {
        self.access.tunnels.count()
    }

    /// Carries out every operation that is due; how many there were.
    ///
    /// # Errors
    /// Where the queue cannot be read.
    pub async fn run_operations(&self) -> sqlx::Result<usize> {
        operation::worker::run_due(self).await
    }

    /// Carries out every installation that is due; how many there were.
    ///
    /// # Errors
    /// Where the queue cannot be read.
    pub async fn run_installations(&self) -> sqlx::Result<usize> {
        installation::worker::run_due(self).await
    }

    /// Begins the lifecycle rules that are due, and goes on with one execution.
    ///
    /// # Errors
    /// Where the database does not answer; another replica or the next look goes on.
    pub async fn run_lifecycle(&self) -> anyhow::Result<Tick> {
        lifecycle::run::step(self).await
    }

    /// Keeps the port leases of every node.
    ///
    /// # Errors
    /// Where that of one fails; those of the others are kept all the same.
    pub async fn keep_ports(&self) -> anyhow::Result<Tick> {
        let nodes = node::db::all(&mut *self.platform.db.acquire().await?).await?;
        let (mut tick, mut failed) = (Tick::Idle, None);
        for node in nodes {
            match self.ports.of(&node).keep().await {
                Ok(Tick::More) => tick = Tick::More,
                Ok(Tick::Idle) => {}
                Err(error) => {
                    let context = format!("keeping the ports of node {}", node.name);
                    failed = Some(error.context(context));
                }
            }
        }
        failed.map_or(Ok(tick), Err)
    }

    /// Measures devices and ports, over the whole cluster.
    async fn count(&self) -> anyhow::Result<Tick> {
        let mut conn = self.platform.db.acquire().await?;
        let counts = device::db::count_by_status(&mut conn, None).await?;
        for status in Status::ALL {
            let count = counts.iter().find(|(name, _)| name == status.as_str());
            metrics::devices(status.as_str(), count.map_or(0, |(_, count)| *count));
        }
        metrics::used(measure::db::totals(&mut conn).await?);
        let held = port::db::count_held(&mut conn).await?;
        for kind in coordination::PortKind::ALL {
            metrics::ports_allocated(kind, held);
        }
        Ok(Tick::Idle)
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Devices").finish_non_exhaustive()
    }
}
