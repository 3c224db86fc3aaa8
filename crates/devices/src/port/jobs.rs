//! Keeps the leases of existing devices alive, and takes back those that nobody holds any more.

use anyhow::Context;
use coordination::PortError;
use platform::lifecycle::Tick;
use tracing::warn;

use super::{Ports, db};

/// How many sets are renewed in one round trip.
const BATCH: i64 = 500;
/// How many further sweeps one turn makes while there is more.
const SWEEPS: u32 = 16;

impl Ports {
    /// Renews the leases of every device of the node, puts right what Redis forgot, and sweeps what is left. Any
    /// replica may do it, at any time.
    pub async fn keep(&self) -> anyhow::Result<Tick> {
        if self.renew_all().await? > 0 {
            self.reconcile().await?;
            let lost = self.renew_all().await?;
            anyhow::ensure!(lost == 0, "{lost} devices do not hold their ports in Redis");
        }
        // Only after every device has been renewed: what is expired now belongs to nobody.
        let mut swept = self.pool.sweep(&self.node).await;
        for _ in 0..SWEEPS {
            if !matches!(&swept, Ok(sweep) if sweep.more && sweep.lost == 0) {
                break;
            }
            swept = self.pool.sweep(&self.node).await;
        }
        match swept {
            Ok(sweep) => {
                if sweep.lost > 0 {
                    warn!(
                        "Redis dropped {} ports of node {} from its index: building it anew",
                        sweep.lost, self.node
                    );
                    self.reconcile()
                        .await
                        .context("building the port index anew")?;
                }
                let mut conn = self.platform.db.acquire().await?;
                db::forget_quarantine(&mut conn, BATCH).await?;
                Ok(if sweep.more { Tick::More } else { Tick::Idle })
            }
            Err(PortError::IndexMissing { .. }) => {
                self.rebuild().await.context("rebuilding the port index")?;
                Ok(Tick::Idle)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Renews all leases; how many are not their devices'.
    async fn renew_all(&self) -> anyhow::Result<usize> {
        let (mut last, mut lost) = (String::new(), 0);
        loop {
            let held = {
                let mut conn = self.platform.db.acquire().await?;
                db::held_after(&mut conn, &self.node, &last, BATCH).await?
            };
            let Some((id, _)) = held.last() else {
                return Ok(lost);
            };
            last = id.clone();
            let renewed = match self.pool.renew_many(&self.node, &held, self.lease).await {
                Err(PortError::IndexMissing { .. }) => {
                    self.rebuild().await.context("rebuilding the port index")?;
                    self.pool.renew_many(&self.node, &held, self.lease).await?
                }
                renewed => renewed?,
            };
            for ((id, ports), _) in held.iter().zip(renewed).filter(|(_, held)| !held) {
                // It may have been deleted meanwhile.
                let mut conn = self.platform.db.acquire().await?;
                let id = id.parse().context("a device id in the database")?;
                if db::holds(&mut conn, &id).await? {
                    warn!(device.id = %id, "device {id} did not hold its ports {ports:?} in Redis any more");
                    lost += 1;
                }
            }
        }
    }
}
