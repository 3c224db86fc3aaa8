//! A replica of the gateway, and users who can sign in.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::process::{Process, free_address};
use crate::stores::Private;

/// The longest that is waited for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A replica that runs.
pub struct Replica {
    process: Process,
    client: Client,
    base: String,
    token: String,
    _folder: TempDir,
}

impl Replica {
    /// Starts it, and registers so many users.
    pub async fn start(stores: &Private, users: usize) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("gateway");
        ensure!(
            program.exists(),
            "there is no {}: build the package gateway in the same profile first",
            program.display()
        );
        let folder = TempDir::with_prefix("bench-")?;
        let (door, service) = (free_address().await?, free_address().await?);
        let env = [
            ("REDIS_URL", stores.redis_url().to_owned()),
            ("DATABASE_URL", stores.database_url().to_owned()),
            ("KEY_PREFIX", "bench-logins".to_owned()),
            ("CLOUDPHONE_HOME", folder.path().display().to_string()),
            ("GATEWAY_PORT", door.port().to_string()),
            ("USERS_PORT", service.port().to_string()),
            ("RATE_LIMITS", "false".to_owned()),
            ("LOG_LEVEL", "warn".to_owned()),
        ];
        let program = program.display().to_string();
        let arguments = ["serve", "--services", "gateway,users"];
        let cores = format!("0-{}", std::thread::available_parallelism()?.get() - 1);
        let process = Process::start(folder.path(), "gateway", &cores, &program, &arguments, &env)?;
        let mut replica = Self {
            process,
            client: Client::builder().timeout(PATIENCE).build()?,
            base: base(door),
            token: String::new(),
            _folder: folder,
        };
        for user in 0..users {
            replica.register(user).await?;
        }
        replica.token = replica.sign_in(0).await?;
        Ok(replica)
    }

    async fn register(&mut self, user: usize) -> anyhow::Result<()> {
        let mut body = credentials(user);
        body["email"] = json!(format!("bench-{user}@example.com"));
        let until = Instant::now() + PATIENCE;
        loop {
            self.process.ensure_alive()?;
            let register = self.client.post(format!("{}/auth/register", self.base));
            match register.json(&body).send().await {
                Ok(reply) if reply.status() == StatusCode::CREATED => return Ok(()),
                // It is not there yet.
                Ok(_) | Err(_) => sleep(Duration::from_millis(100)).await,
            }
            ensure!(
                Instant::now() < until,
                "user {user} could not be registered"
            );
        }
    }

    /// Signs a user in; the token.
    pub async fn sign_in(&self, user: usize) -> anyhow::Result<String> {
        let login = self.client.post(format!("{}/auth/login", self.base));
        let reply = login.json(&credentials(user)).send().await?;
        let reply: Value = reply.error_for_status()?.json().await?;
        let token = reply["token"].as_str().context("no token")?;
        Ok(token.to_owned())
    }

    /// Asks as the first user who that is.
    pub async fn who_am_i(&self) -> anyhow::Result<()> {
        let me = self.client.get(format!("{}/auth/me", self.base));
        let reply = me.bearer_auth(&self.token).send().await?;
        reply.error_for_status()?.bytes().await?;
        Ok(())
    }

    /// Ends it.
    pub async fn end(self) -> anyhow::Result<()> {
        self.process.end().await
    }
}

fn base(door: SocketAddr) -> String {
    format!("http://{door}/api")
}

fn credentials(user: usize) -> Value {
    json!({ "username": format!("bench-{user}"), "password": "correct horse 4 batteries" })
}
