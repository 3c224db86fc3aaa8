//! Rate limits of sign-in and registration, over all instances. Without Redis they step aside; the lock of an account
//! does not.

use std::net::IpAddr;

use coordination::rate_limit::Limit;
use platform::Problem;
use platform::http::limit;
use sha2::{Digest, Sha256};

use crate::Users;

/// Allows 5 sign-ins a minute of an address and a user name.
///
/// # Errors
/// 429 with the time to wait.
pub async fn sign_in(state: &Users, address: IpAddr, name: &str) -> Result<(), Problem> {
    let sign_ins = Limit::per_minute(5).tier("login");
    check(state, &format!("{address}:{}", brief(name)), sign_ins).await
}

/// Allows 20 registrations a minute of an address.
///
/// # Errors
/// 429 with the time to wait.
pub async fn registration(state: &Users, address: IpAddr) -> Result<(), Problem> {
    let registrations = Limit::per_minute(20).tier("register");
    check(state, &address.to_string(), registrations).await
}

/// Allows 3 requests a minute for another password of an address, and as many for one mail address.
///
/// # Errors
/// 429 with the time to wait.
pub async fn reset(state: &Users, address: IpAddr, email: &str) -> Result<(), Problem> {
    let requests = Limit::per_minute(3).tier("reset");
    check(state, &address.to_string(), requests).await?;
    check(state, &brief(email), requests).await
}

/// Allows 20 tries a minute of an address with tokens that set another password.
///
/// # Errors
/// 429 with the time to wait.
pub async fn reset_token(state: &Users, address: IpAddr) -> Result<(), Problem> {
    let tries = Limit::per_minute(20).tier("reset-token");
    check(state, &address.to_string(), tries).await
}

/// Allows 10 captchas a minute of an address.
///
/// # Errors
/// 429 with the time to wait.
pub async fn captcha(state: &Users, address: IpAddr) -> Result<(), Problem> {
    let captchas = Limit::per_minute(10).tier("captcha");
    check(state, &address.to_string(), captchas).await
}

/// A name of any length and content as a short key without personal data.
pub fn brief(name: &str) -> String {
    hex::encode(&Sha256::digest(name)[..16])
}

async fn check(state: &Users, subject: &str, at_most: Limit) -> Result<(), Problem> {
    if !state.platform.settings.rate_limits {
        return Ok(());
    }
    limit(&state.limiter, subject, at_most).await
}
