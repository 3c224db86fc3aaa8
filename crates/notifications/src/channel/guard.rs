//! Which addresses the webhook of a user may lead to.

use anyhow::ensure;
use platform::Platform;
pub use platform::outbound::{Refusal, Rules};

use crate::Config;

/// The rules of a replica.
///
/// # Errors
/// Where the loopback is allowed outside the sandbox.
pub fn rules(platform: &Platform, config: &Config) -> anyhow::Result<Rules> {
    let sandbox = platform.settings.sandbox;
    ensure!(
        sandbox || !config.webhook_loopback,
        "NOTIFICATIONS_WEBHOOK_LOOPBACK is for the sandbox"
    );
    Ok(Rules {
        plain: sandbox,
        loopback: config.webhook_loopback,
    })
}
