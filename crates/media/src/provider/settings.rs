//! Where providers are, what they make, and under which secret.

use std::collections::HashSet;
use std::time::Duration;

use platform::Env;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

use super::scf::ScfSettings;
use crate::task::{LOCAL, TaskType};

const SHORTEST_SECRET: usize = 16;

/// A provider.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderSettings {
    /// What it is called; it stands in rows, so it is not reused for another one.
    #[serde(rename = "ref")]
    pub reference: String,
    /// What it makes.
    pub types: Vec<TaskType>,
    /// Lower ones are asked first. What is done here has 0.
    #[serde(default = "one")]
    pub priority: i32,
    /// The share among providers of one priority.
    #[serde(default = "one")]
    pub weight: u32,
    /// Steps at once, from all replicas.
    #[serde(default = "fifty")]
    pub limit: i64,
    /// Seconds that it may take to accept a step.
    #[serde(default = "fifteen")]
    timeout_seconds: f64,
    /// Under which both sides sign, at least 16 bytes.
    pub secret: SecretString,
    /// How it is called.
    #[serde(flatten)]
    pub function: FunctionSettings,
}

/// How a function is called.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "snake_case",
    rename_all_fields = "camelCase"
)]
pub enum FunctionSettings {
    /// At a URL.
    Http {
        /// Where.
        #[serde(deserialize_with = "url")]
        url: Url,
    },
    /// A cloud function of Tencent Cloud.
    Scf(ScfSettings),
}

impl FunctionSettings {
    /// What kind of function it is.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Http { .. } => "http",
            Self::Scf(_) => "scf",
        }
    }
}

impl ProviderSettings {
    /// How long it may take to accept a step.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_seconds.clamp(0.1, 300.0))
    }

    /// Reads `MEDIA_PROVIDERS`; faults are collected in `env`, without what was written there.
    pub fn from_env(env: &mut Env) -> Vec<Self> {
        const NAME: &str = "MEDIA_PROVIDERS";
        let Some(text) = env.secret(NAME, 2) else {
            return Vec::new();
        };
        let providers: Vec<Self> = match serde_json::from_str(text.expose_secret()) {
            Ok(providers) => providers,
            Err(error) => {
                let message = format!(
                    "is not a list of providers: line {} column {}",
                    error.line(),
                    error.column()
                );
                env.fault(NAME, message);
                return Vec::new();
            }
        };
        let mut names = HashSet::from([LOCAL]);
        for one in &providers {
            let name = &one.reference;
            if name.is_empty() || name.len() > 64 || !names.insert(name) {
                env.fault(
                    NAME,
                    "each ref is 1 to 64 characters, none twice, and none is local",
                );
            }
            if one.secret.expose_secret().len() < SHORTEST_SECRET {
                env.fault(
                    NAME,
                    format!("the secret of {name} is shorter than {SHORTEST_SECRET} bytes"),
                );
            }
        }
        providers
    }
}

pub fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    let url: Url = text.parse().map_err(serde::de::Error::custom)?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err(serde::de::Error::custom("no http address")),
    }
}

fn one<T: From<u8>>() -> T {
    T::from(1)
}

fn fifty() -> i64 {
    50
}

fn fifteen() -> f64 {
    15.0
}
