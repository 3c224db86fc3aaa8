//! A replica of the gateway with all that devices need, and a client who is signed in.

use std::time::Duration;

use anyhow::{bail, ensure};
use futures::StreamExt;
use futures::stream;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::account::{expect, sign_in};
use crate::process::Process;
use crate::stores::Private;

/// The longest that is waited for anything.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the database is asked how far the devices are.
const LOOK: Duration = Duration::from_millis(10);
/// Deletions at once.
const DELETIONS: usize = 16;
/// What a user may have of everything.
const QUOTAS: &str =
    "maxDevices=-1,maxConcurrentDevices=-1,totalCpuCores=-1,totalMemoryGB=-1,totalStorageGB=-1";

/// A replica that runs.
pub struct Replica {
    process: Process,
    /// Its database, asked how far the devices are.
    pub db: PgPool,
    client: Client,
    base: String,
    token: String,
    _folder: TempDir,
}

impl Replica {
    /// Starts it with a node of this engine and one that simulates.
    pub async fn start(stores: &Private, engine: &str, parallel: usize) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("gateway");
        ensure!(
            program.exists(),
            "there is no {}: build the package gateway in the same profile first",
            program.display()
        );
        let db = stores.database().await?;
        let folder = TempDir::with_prefix("bench-")?;
        let nodes = json!([
            { "name": "docker", "endpoint": engine, "address": "127.0.0.1", "bind": "127.0.0.1" },
            { "name": "simulated", "runtime": "simulated", "address": "127.0.0.1" },
        ]);
        let ports = free_ports().await?;
        let mut env = vec![
            ("REDIS_URL", stores.redis_url().to_owned()),
            ("DATABASE_URL", stores.database_url().to_owned()),
            ("KEY_PREFIX", "bench-devices".to_owned()),
            ("CLOUDPHONE_HOME", folder.path().display().to_string()),
            ("DEVICE_NODES", nodes.to_string()),
            ("DEVICE_IMAGE", testkit::IMAGE.to_owned()),
            // Apart from those of the shell loop.
            ("DEVICE_ADB_PORTS", "10000-11999".to_owned()),
            ("DEVICE_WEBRTC_PORTS", "12000-13999".to_owned()),
            ("DEVICE_SCRCPY_PORTS", "14000-15999".to_owned()),
            ("DEVICE_PORT_QUARANTINE_SECONDS", "1".to_owned()),
            ("DEVICE_OPERATIONS_AT_ONCE", parallel.to_string()),
            ("QUOTA_LIMITS", QUOTAS.to_owned()),
            ("RATE_LIMITS", "false".to_owned()),
            ("LOG_LEVEL", "warn".to_owned()),
        ];
        let names = ["GATEWAY_PORT", "USERS_PORT", "DEVICES_PORT"];
        env.extend((names.into_iter().zip(&ports)).map(|(name, port)| (name, port.to_string())));
        let program = program.display().to_string();
        let arguments = ["serve", "--services", "gateway,users,devices"];
        let cores = format!("0-{}", std::thread::available_parallelism()?.get() - 1);
        let mut process =
            Process::start(folder.path(), "gateway", &cores, &program, &arguments, &env)?;
        let client = Client::builder().timeout(PATIENCE).build()?;
        let base = format!("http://127.0.0.1:{}/api", ports[0]);
        let token = sign_in(&mut process, &client, &base).await?;
        Ok(Self {
            process,
            db,
            client,
            base,
            token,
            _folder: folder,
        })
    }

    /// Asks for something.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        status: StatusCode,
    ) -> anyhow::Result<String> {
        let request = self.client.request(method, format!("{}{path}", self.base));
        let request = request.bearer_auth(&self.token);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        expect(request.send().await?, status).await
    }

    /// Creates a device.
    pub async fn create(&self, body: &Value) -> anyhow::Result<()> {
        let created = self.ask(Method::POST, "/devices", Some(body), StatusCode::CREATED);
        created.await.map(drop)
    }

    /// Waits until so many devices run.
    pub async fn all_run(&self, count: usize) -> anyhow::Result<()> {
        let query =
            "select count(*) from devices.devices where status = 'running' and released_at is null";
        self.until("all devices run", query, i64::try_from(count)?)
            .await
    }

    /// Deletes every device, and waits until nothing is left of them.
    pub async fn delete_all(&self) -> anyhow::Result<()> {
        let ids: Vec<String> =
            sqlx::query_scalar("select id from devices.devices where released_at is null")
                .fetch_all(&self.db)
                .await?;
        let mut deleted = stream::iter(ids)
            .map(|id| async move {
                let path = format!("/devices/{id}");
                self.ask(Method::DELETE, &path, None, StatusCode::OK).await
            })
            .buffer_unordered(DELETIONS);
        while let Some(deleted) = deleted.next().await {
            deleted?;
        }
        let query = "select count(*) from devices.devices where released_at is null";
        self.until("all devices are gone", query, 0).await
    }

    async fn until(&self, what: &str, query: &'static str, count: i64) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut found = -1;
        while Instant::now() < until {
            found = sqlx::query_scalar(query).fetch_one(&self.db).await?;
            if found == count {
                return Ok(());
            }
            sleep(LOOK).await;
        }
        bail!("waited in vain until {what}: {found} of {count}")
    }

    /// Ends it.
    pub async fn end(self) -> anyhow::Result<()> {
        self.db.close().await;
        self.process.end().await
    }
}

/// Free ports of loopback.
async fn free_ports() -> anyhow::Result<Vec<u16>> {
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(tokio::net::TcpListener::bind("127.0.0.1:0").await?);
    }
    let ports = held
        .iter()
        .map(|listener| listener.local_addr().map(|at| at.port()));
    Ok(ports.collect::<Result<_, _>>()?)
}
