//! API keys: secrets by which programs act for their user. What each may be used for is judged in every service, by the
//! platform.
//!
//! A secret follows from a random number, and is shown once. A request that is repeated with its `Idempotency-Key` is shown
//! the same, for that number is kept with the reply for a day; the secret itself is stored nowhere.

pub mod api;
pub mod change;
pub mod db;
mod jobs;
pub mod view;

use std::collections::HashSet;

use contracts::Timestamp;
use platform::CurrentUser;
use platform::auth::api_key::{is_scope, known};

use crate::error::{Error, Result};
use db::Held;
use view::Status;

pub use jobs::{run_jobs, spawn_jobs};

/// The most keys that a user has, those included that are revoked.
pub const MOST: i64 = 100;

/// 1 to 100 characters on one line.
pub fn name(text: &str, _: &()) -> garde::Result {
    let text = text.trim();
    let fits = (1..=100).contains(&text.chars().count()) && !text.contains(char::is_control);
    super::account::rule(
        fits,
        "must be 1 to 100 characters, none of them a control character",
    )
}

/// Different ones, each of which opens something. There are few of those, and so no list is long.
pub fn scopes(scopes: &[String], _: &()) -> garde::Result {
    if let Some(stranger) = scopes.iter().find(|scope| !is_scope(scope)) {
        let known: Vec<String> = known().into_iter().collect();
        let shown: String = stranger.chars().take(64).collect();
        return Err(garde::Error::new(format!(
            "{shown:?} is no scope; those there are: {}; and `*` in place of a resource, an action or both, such as \
             devices:*, *:read or *",
            known.join(", ")
        )));
    }
    let different: HashSet<&String> = scopes.iter().collect();
    let fits = !scopes.is_empty() && different.len() == scopes.len();
    super::account::rule(fits, "must be some scopes, each of them once")
}

/// Whether a key that its user or an admin asks for may still be changed.
fn changeable(held: Option<Held>, user: &CurrentUser) -> Result<Held> {
    let held = held.filter(|held| user.may_see(&held.user_id));
    let held = held.ok_or(Error::NoApiKey)?;
    match held.status {
        Status::Revoked => Err(Error::ApiKeyRevoked),
        Status::Active | Status::Inactive | Status::Expired => Ok(held),
    }
}

/// What a key becomes that is switched.
const fn toggled(status: Status) -> Result<Status> {
    match status {
        Status::Active => Ok(Status::Inactive),
        Status::Inactive => Ok(Status::Active),
        Status::Revoked => Err(Error::ApiKeyRevoked),
        Status::Expired => Err(Error::ApiKeyExpired),
    }
}

/// Whether a key gets a new secret: its own user alone learns it, or an admin could act in the user's name.
fn rotatable(held: &Held, user: &CurrentUser) -> Result<()> {
    match held.status {
        _ if held.user_id != user.id => Err(Error::NotItsUser),
        Status::Active | Status::Inactive => Ok(()),
        Status::Revoked => Err(Error::ApiKeyRevoked),
        Status::Expired => Err(Error::ApiKeyExpired),
    }
}

/// The status that is shown.
fn shown(status: Status, expires_at: Option<Timestamp>, now: Timestamp) -> Status {
    match status {
        Status::Active | Status::Inactive if expires_at.is_some_and(|at| at <= now) => {
            Status::Expired
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_on_one_line() {
        for (text, fits) in [
            ("ci", true),
            (" Ü ", true),
            ("", false),
            ("  ", false),
            ("a\nb", false),
        ] {
            assert_eq!(name(text, &()).is_ok(), fits, "{text:?}");
        }
        assert!(name(&"ü".repeat(100), &()).is_ok());
        assert!(name(&"u".repeat(101), &()).is_err());
    }

    #[test]
    fn a_key_has_some_scopes_and_each_once() {
        let all = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|scope| (*scope).to_owned()).collect();
            scopes(&list, &()).is_ok()
        };
        assert!(all(&["devices:read"]) && all(&["*"]) && all(&["devices:*", "*:read"]));
        assert!(!all(&[]) && !all(&["devices"]) && !all(&["*", "*"]) && !all(&["*", ""]));
    }

    #[test]
    fn a_scope_that_opens_nothing_is_refused_by_the_names_of_those_that_do() {
        let refused = scopes(&["devices:read".to_owned(), "device:reed".to_owned()], &());

        let told = refused.unwrap_err().to_string();
        for part in ["\"device:reed\" is no scope", "devices:read, devices:write"] {
            assert!(told.contains(part), "{told}");
        }
        let long = scopes(&["x".repeat(100_000)], &()).unwrap_err().to_string();
        assert!(long.len() < 1000, "{long}");
    }
}
