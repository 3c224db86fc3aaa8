//! A cluster of replicas with stores of its own.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use embedded::Addresses;
use fred::clients::Pool;
use sqlx::PgPool;
use tempfile::TempDir;

use crate::address::Address;
use crate::eventually::eventually;
use crate::private::PrivateStores;
use crate::replica::{Recipe, Replica};
use crate::{http, program, stores};

/// The gateway's port; the services follow it.
const GATEWAY: u16 = 30000;
/// What replicas get of our own environment; stores configured for other tests are not for them.
const INHERITED: &[&str] = &[
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "LLVM_PROFILE_FILE",
    "DOCKER_HOST",
];
/// How long the stores may take to end after the last replica.
const STORES_END: Duration = Duration::from_secs(20);

/// A cluster that is not started yet.
pub struct Builder {
    replicas: usize,
    program: Option<PathBuf>,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    redis: Option<String>,
}

/// A running cluster. When it is dropped, all its processes have ended; after a failure its files stay.
pub struct Cluster {
    // The order counts: replicas end before the stores do, and the stores before their files go.
    replicas: Vec<Replica>,
    recipe: Recipe,
    stores: Option<PrivateStores>,
    home: Option<TempDir>,
    address: Address,
}

impl Builder {
    /// Sets a variable of every replica's environment.
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.insert(name.to_owned(), value.to_string());
        self
    }

    /// Sets the arguments of every replica; without them it serves everything.
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args = args.into_iter().map(str::to_owned).collect();
        self
    }

    /// Sets how many replicas there are.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Runs another program than `gateway`.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Gives every replica this Redis, and a private PostgreSQL that the test holds.
    pub fn redis(mut self, url: impl Into<String>) -> Self {
        self.redis = Some(url.into());
        self
    }

    /// Starts the replicas and waits until all are ready.
    pub async fn start(self) -> anyhow::Result<Cluster> {
        let home = TempDir::with_prefix("cloudphone-")
            .context("could not create a folder for the cluster")?;
        let address = Address::take()?;
        let mut env: BTreeMap<String, String> = INHERITED
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
            .collect();
        for (name, value) in [
            ("CLOUDPHONE_HOME", home.path().display().to_string()),
            ("LISTEN_ADDRESS", address.ip.to_string()),
            ("ADVERTISE_ADDRESS", address.ip.to_string()),
            ("DEVICE_NODE_ADDRESS", address.ip.to_string()),
            ("LOG_FORMAT", "json".to_owned()),
        ] {
            env.insert(name.to_owned(), value);
        }
        let mut stores = None;
        if let Some(redis) = self.redis {
            let private = PrivateStores::join(home.path()).await?;
            let database = private.addresses().database_url.clone();
            env.insert("REDIS_URL".to_owned(), redis);
            env.insert("DATABASE_URL".to_owned(), database);
            stores = Some(private);
        }
        env.extend(self.env);
        let program = self.program.map_or_else(program::gateway, Ok)?;
        let recipe = Recipe {
            program,
            args: self.args,
            env,
            home: home.path().to_owned(),
        };
        let mut cluster = Cluster {
            replicas: Vec::new(),
            recipe,
            stores,
            home: Some(home),
            address,
        };
        for _ in 0..self.replicas {
            cluster.launch(&[], [])?;
        }
        for replica in &cluster.replicas {
            replica.ready().await?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }
}

impl Cluster {
    /// Starts a cluster of some replicas and waits until all are ready.
    pub async fn start(replicas: usize) -> anyhow::Result<Self> {
        Self::builder(replicas).start().await
    }

    /// Describes a cluster that differs from the usual one.
    pub fn builder(replicas: usize) -> Builder {
        Builder {
            replicas,
            program: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            redis: None,
        }
    }

    /// A replica, by its number from 0.
    pub fn replica(&self, number: usize) -> &Replica {
        &self.replicas[number]
    }

    /// All replicas, those that have ended too.
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// Starts one more replica and waits until it is ready.
    pub async fn add_replica(&mut self) -> anyhow::Result<&Replica> {
        self.add_replica_with(&[], []).await
    }

    /// Starts one more replica with other arguments, where there are any, and further variables, and waits until it
    /// is ready.
    pub async fn add_replica_with<const N: usize>(
        &mut self,
        args: &[&str],
        env: [(&str, &str); N],
    ) -> anyhow::Result<&Replica> {
        let number = self.launch(args, env)?;
        self.replicas[number].ready().await?;
        Ok(&self.replicas[number])
    }

    /// Waits until every running replica is ready, and `/health/readiness` says so.
    pub async fn ready(&self) -> anyhow::Result<()> {
        for replica in self.replicas.iter().filter(|replica| replica.is_running()) {
            replica.ready().await?;
        }
        let (client, url) = (http::fresh(), self.url(GATEWAY, "/health/readiness"));
        eventually(Duration::from_secs(20), "readiness", async || {
            let status = client.get(&url).send().await?.status();
            anyhow::ensure!(status == 200, "{url} answered {status}");
            Ok(())
        })
        .await;
        Ok(())
    }

    /// The loopback address that the cluster listens on, and its devices.
    pub fn address(&self) -> Ipv4Addr {
        self.address.ip
    }

    /// A URL of the service on a well-known port; `path` begins with a slash.
    pub fn url(&self, port: u16, path: &str) -> String {
        format!("http://{}:{port}{path}", self.address.ip)
    }

    /// The same for a WebSocket.
    pub fn websocket_url(&self, port: u16, path: &str) -> String {
        format!("ws://{}:{port}{path}", self.address.ip)
    }

    /// The cluster's folder.
    pub fn home(&self) -> &Path {
        &self.recipe.home
    }

    /// The URLs of the cluster's stores.
    pub fn stores(&self) -> anyhow::Result<Addresses> {
        if let (Some(redis), Some(database)) = (
            self.recipe.env.get("REDIS_URL"),
            self.recipe.env.get("DATABASE_URL"),
        ) {
            return Ok(Addresses {
                redis_url: redis.clone(),
                database_url: database.clone(),
            });
        }
        let home = self.home();
        embedded::addresses(home)
            .with_context(|| format!("no stores have been started in {}", home.display()))
    }

    /// Connects to the cluster's PostgreSQL.
    pub async fn database(&self) -> anyhow::Result<PgPool> {
        stores::database(&self.stores()?.database_url).await
    }

    /// Connects to the cluster's Redis.
    pub async fn redis(&self) -> anyhow::Result<Pool> {
        stores::redis(&self.stores()?.redis_url).await
    }

    /// The lines of all replicas that contain a text.
    pub fn logs_containing(&self, text: &str) -> Vec<String> {
        self.replicas
            .iter()
            .flat_map(|replica| replica.logs_containing(text))
            .collect()
    }

    fn launch<const N: usize>(
        &mut self,
        args: &[&str],
        env: [(&str, &str); N],
    ) -> anyhow::Result<usize> {
        let number = self.replicas.len();
        let mut recipe = self.recipe.clone();
        if !args.is_empty() {
            recipe.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        }
        recipe
            .env
            .extend(env.map(|(name, value)| (name.to_owned(), value.to_owned())));
        self.replicas.push(Replica::start(number, recipe)?);
        Ok(number)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.replicas.clear();
        self.stores = None;
        let started = Instant::now();
        while embedded::is_running(self.home()) {
            if started.elapsed() > STORES_END {
                eprintln!("the stores in {} still run", self.home().display());
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        if thread::panicking()
            && let Some(home) = self.home.take()
        {
            eprintln!(
                "the cluster's logs and data stay in {}",
                home.keep().display()
            );
        }
    }
}
