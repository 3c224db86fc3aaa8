//! The settings of the service.

use std::thread::available_parallelism;

use chrono::TimeDelta;
use platform::mail::MailSettings;
use platform::{Env, Profile};
use secrecy::SecretString;

use crate::password::Cost;
use crate::two_factor::Vault;

/// The settings of the service.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many passwords are hashed at once; each takes a core and the memory of its cost. `USERS_HASHES_AT_ONCE`, default: the cores.
    pub hashes_at_once: usize,
    /// How many more may wait before callers hear 503. `USERS_HASHES_WAITING`, default 64.
    pub hashes_waiting: usize,
    /// What a new hash costs: `USERS_HASH_MEMORY_KIB`, default 19,456, and `USERS_HASH_PASSES`, default 2, the least that OWASP
    /// recommends. Other hashes are made anew when their users sign in.
    pub hash_cost: Cost,
    /// How long a session may live, however often it is refreshed. `USERS_SESSION_DAYS`, default 30.
    pub session_lifetime: TimeDelta,
    /// By whom mail is sent.
    pub mail: MailSettings,
    /// The page on which a forgotten password is set, with `{token}` where the token comes. `PASSWORD_RESET_URL`; without it the
    /// mail names the token alone.
    pub reset_url: Option<String>,
    /// How long entries of the audit log are kept. `USERS_AUDIT_DAYS`, default 365.
    pub audit_lifetime: TimeDelta,
    /// Whether sign-in asks for a captcha. `USERS_CAPTCHA`, default: only in production.
    pub captcha: bool,
    /// Seal the secrets of second factors: 32 bytes in base64 each, with commas; the first one seals, all open.
    /// `TWO_FACTOR_KEYS`; made by the cluster in development. Production without them has no second factor.
    pub two_factor_keys: Option<SecretString>,
}

impl Config {
    /// Reads the settings; what is wrong with them is recorded in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        let cores = available_parallelism().map_or(2, usize::from);
        Self {
            hashes_at_once: env.within("USERS_HASHES_AT_ONCE", cores, (1, 1_024)),
            hashes_waiting: env.within("USERS_HASHES_WAITING", 64, (1, 65_536)),
            hash_cost: Cost {
                memory: env.within(
                    "USERS_HASH_MEMORY_KIB",
                    Cost::default().memory,
                    (8 * 1024, 1024 * 1024),
                ),
                passes: env.within("USERS_HASH_PASSES", Cost::default().passes, (1, 100)),
            },
            session_lifetime: TimeDelta::days(env.within("USERS_SESSION_DAYS", 30, (8, 365))),
            mail: MailSettings::from_env(env),
            reset_url: reset_url(env),
            audit_lifetime: TimeDelta::days(env.within("USERS_AUDIT_DAYS", 365, (31, 3_650))),
            captcha: captcha(env),
            two_factor_keys: two_factor_keys(env),
        }
    }
}

fn reset_url(env: &mut Env) -> Option<String> {
    let url = env.text("PASSWORD_RESET_URL")?;
    if !url.contains("{token}") {
        env.fault(
            "PASSWORD_RESET_URL",
            "must hold {token}, as in https://example.com/reset?token={token}",
        );
    }
    Some(url)
}

fn captcha(env: &mut Env) -> bool {
    let profile = env.value("PROFILE", Profile::Development);
    env.flag("USERS_CAPTCHA", profile == Profile::Production)
}

fn two_factor_keys(env: &mut Env) -> Option<SecretString> {
    let keys = env.secret("TWO_FACTOR_KEYS", 43)?;
    if let Err(error) = Vault::new(&keys) {
        env.fault("TWO_FACTOR_KEYS", format!("cannot be used: {error}"));
    }
    Some(keys)
}
