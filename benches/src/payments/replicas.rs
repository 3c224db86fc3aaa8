//! Processes that take notices of payments, each at a port of its own.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::ensure;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, sleep};

use super::{SECRET, START};
use crate::process::{Process, free_address};
use crate::stores::Private;

/// Processes that run.
pub struct Replicas {
    processes: Vec<Process>,
    /// Where they take notices.
    pub addresses: Vec<SocketAddr>,
    /// Where the first one serves users, if it does.
    pub users: Option<SocketAddr>,
}

impl Replicas {
    /// Starts replicas of ours.
    pub async fn start(stores: &Private, folder: &Path, count: usize) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("gateway");
        ensure!(
            program.exists(),
            "there is no {}: build the package gateway in the same profile first",
            program.display()
        );
        let program = program.display().to_string();
        let mut replicas = Self::none();
        for number in 0..count {
            let (billing, users) = (free_address().await?, free_address().await?);
            let home = folder.join(format!("replica-{number}"));
            let env = [
                ("REDIS_URL", stores.redis_url().to_owned()),
                ("DATABASE_URL", stores.database_url().to_owned()),
                ("KEY_PREFIX", "bench-payments".to_owned()),
                ("CLOUDPHONE_HOME", home.display().to_string()),
                ("BILLING_PORT", billing.port().to_string()),
                ("USERS_PORT", users.port().to_string()),
                (
                    "PAYMENT_WEBHOOK_SECRETS",
                    format!("whsec_{}", STANDARD.encode(SECRET)),
                ),
                ("RATE_LIMITS", "false".to_owned()),
                ("LOG_LEVEL", "warn".to_owned()),
            ];
            let arguments = ["serve", "--services", "users,billing"];
            replicas.add(folder, "gateway", &program, &arguments, &env, billing)?;
            replicas.users.get_or_insert(users);
        }
        replicas.until_up().await?;
        Ok(replicas)
    }

    /// Processes to be added.
    pub const fn none() -> Self {
        Self {
            processes: Vec::new(),
            addresses: Vec::new(),
            users: None,
        }
    }

    /// Starts one more, which is to serve at this address.
    pub fn add(
        &mut self,
        folder: &Path,
        name: &str,
        program: &str,
        arguments: &[&str],
        env: &[(&str, String)],
        address: SocketAddr,
    ) -> anyhow::Result<()> {
        let name = format!("{name}-{}", self.addresses.len());
        let cores = format!("0-{}", std::thread::available_parallelism()?.get() - 1);
        let process = Process::start(folder, &name, &cores, program, arguments, env)?;
        self.processes.push(process);
        self.addresses.push(address);
        Ok(())
    }

    /// Waits until everyone takes connections.
    pub async fn until_up(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + START;
        for (process, address) in self.processes.iter_mut().zip(&self.addresses) {
            while TcpStream::connect(address).await.is_err() {
                process.ensure_alive()?;
                ensure!(Instant::now() < until, "{address} is not served");
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Ends them.
    pub async fn end(self) -> anyhow::Result<()> {
        for process in self.processes {
            process.end().await?;
        }
        Ok(())
    }
}
