//! The handler in Node, `peers/express-payments.cjs`.

use std::path::Path;

use super::SECRET;
use super::replicas::Replicas;
use crate::peers;
use crate::process::free_address;
use crate::stores::Private;

/// Connections to PostgreSQL of one process; enough for its turn's clients.
const CONNECTIONS: &str = "32";

/// Starts processes of it.
pub async fn start(stores: &Private, folder: &Path, count: usize) -> anyhow::Result<Replicas> {
    let script = peers::folder()?.join("express-payments.cjs");
    let script = script.display().to_string();
    let mut processes = Replicas::none();
    for _ in 0..count {
        let address = free_address().await?;
        let env = [
            ("PORT", address.port().to_string()),
            ("DATABASE_URL", stores.database_url().to_owned()),
            ("SECRET", String::from_utf8(SECRET.to_vec())?),
            ("CONNECTIONS", CONNECTIONS.to_owned()),
            ("NODE_ENV", "production".to_owned()),
        ];
        processes.add(folder, "express", "node", &[&script], &env, address)?;
    }
    processes.until_up().await?;
    Ok(processes)
}
