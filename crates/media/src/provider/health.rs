//! The check of providers: it keeps steps from those that are down, and lets them back when they are up again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Provider, db};
use crate::Media;

/// An answer that takes longer is a bad sign.
const SLOW: Duration = Duration::from_secs(3);

/// Checks all providers, one after the other; each takes at most 5 s.
///
/// # Errors
/// Where the database does not answer.
pub async fn check_all(state: &Media, cancelled: &CancellationToken) -> anyhow::Result<()> {
    for provider in state.providers.iter() {
        if cancelled.is_cancelled() {
            break;
        }
        check(state, provider).await?;
    }
    let mut conn = state.platform.db.acquire().await?;
    db::purge(&mut conn, state.platform.clock.now()).await?;
    Ok(())
}

/// Checks one.
///
/// # Errors
/// Where the database does not answer.
pub async fn check(state: &Media, provider: &Provider) -> sqlx::Result<()> {
    let name = provider.name();
    let outcome = provider.check().await;
    let (latency, error) = match &outcome {
        Ok(took) if *took > SLOW => (Some(*took), Some("it took longer than 3 s".to_owned())),
        Ok(took) => (Some(*took), None),
        Err(refusal) => (None, Some(refusal.to_string())),
    };
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.now();
    let (was, is) = db::checked(&mut conn, name, latency, error.as_deref(), now).await?;
    match (was == is, is.as_str()) {
        (true, _) => {}
        (false, "up") => info!("media provider {name} is up again"),
        (false, state) => warn!(
            "media provider {name} is {state}: {}",
            error.unwrap_or_default()
        ),
    }
    Ok(())
}
