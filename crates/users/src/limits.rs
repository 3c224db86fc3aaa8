//! Rate limits of sign-in and registration, over all instances. Without Redis they step aside; the lock of an account
//! does not.

use std::net::IpAddr;

use coordination::rate_limit::Limit;
use http::StatusCode;
use platform::Problem;
use platform::problem::causes;
use sha2::{Digest, Sha256};
use tracing::debug;

use crate::Users;

/// Allows 5 sign-ins a minute of an address and a user name.
///
/// # Errors
/// 429 with the time to wait.
pub async fn sign_in(state: &Users, address: IpAddr, name: &str) -> Result<(), Problem> {
    // A name of any length and content makes a short key without personal data.
    let name = hex::encode(&Sha256::digest(name)[..16]);
    check(
        state,
        &format!("login:{address}:{name}"),
        Limit::per_minute(5),
    )
    .await
}

/// Allows 20 registrations a minute of an address.
///
/// # Errors
/// 429 with the time to wait.
pub async fn registration(state: &Users, address: IpAddr) -> Result<(), Problem> {
    check(state, &format!("register:{address}"), Limit::per_minute(20)).await
}

async fn check(state: &Users, key: &str, limit: Limit) -> Result<(), Problem> {
    if !state.platform.settings.rate_limits {
        return Ok(());
    }
    match state.limiter.check(key, limit).await {
        Ok(decision) if !decision.allowed => Err(Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "RATE_LIMITED",
            "too many requests; try again later",
        )
        .retry_after(decision.retry_after)),
        Ok(_) => Ok(()),
        Err(error) => {
            debug!("a rate limit is not kept: {}", causes(&error));
            Ok(())
        }
    }
}
