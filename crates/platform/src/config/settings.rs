//! The settings that all services share.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use contracts::Service;
use coordination::cron::TimeZone;
use secrecy::{ExposeSecret, SecretString};

use super::{Env, ObjectsAt};
use crate::auth::Tokens;

/// What the process is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// On a developer's machine: private stores, the sandbox, generated secrets.
    Development,
    /// For customers: every secret and store is named, the sandbox is refused.
    Production,
}

impl FromStr for Profile {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "development" => Ok(Self::Development),
            "production" => Ok(Self::Production),
            _ => Err("a profile is development or production"),
        }
    }
}

impl Profile {
    /// The name as `/health` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Production => "production",
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text in a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("a log format is auto, text or json"),
        }
    }
}

/// Where the stores are.
#[derive(Clone, Debug)]
pub enum Stores {
    /// Private ones under [`Settings::home`], started when the first replica comes and stopped when the last one goes.
    Embedded,
    /// Those of an existing cluster.
    External {
        /// `redis://`, `redis-sentinel://` or `redis-cluster://`, each with `rediss` for TLS, and then with
        /// `?sslrootcert=` and a file where the system's authorities are not those to trust.
        redis: SecretString,
        /// `postgres://…`.
        database: SecretString,
    },
}

/// The settings that all services share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `PROFILE`: development (default) or production.
    pub profile: Profile,
    /// `SANDBOX`: opens the unsafe conveniences of the contract, to callers on loopback only. Default: true in
    /// development, false in production, where true is refused.
    pub sandbox: bool,
    /// `REDIS_URL` and `DATABASE_URL`: both, or neither for private stores. Production needs them.
    pub stores: Stores,
    /// `REDLOCK_URLS`: independent Redis masters for locks, comma-separated. Default: the one of `REDIS_URL`.
    pub redlock_urls: Vec<String>,
    /// `REDIS_WAIT_REPLICAS`: how many replicas of Redis must have confirmed a lease before it counts. Default 0.
    pub redis_wait_replicas: u32,
    /// `KEY_PREFIX`: begins every Redis key. Default `cloudphone`.
    pub key_prefix: String,
    /// `CLOUDPHONE_HOME`: private stores, run files and uploads. Default `.cloudphone`.
    pub home: PathBuf,
    /// Where packages and pictures are kept.
    pub objects: ObjectsAt,
    /// `LISTEN_ADDRESS`: where the well-known ports listen. Default 127.0.0.1 in development, 0.0.0.0 in production.
    pub listen_address: IpAddr,
    /// `ADVERTISE_ADDRESS`: the address by which other machines reach this one. Default: the listen address, or
    /// 127.0.0.1 where that is a wildcard.
    pub advertise_address: IpAddr,
    /// `ZONE`: where this machine stands, as `eu-1a`. A gateway prefers instances of its own zone. Default: nowhere.
    pub zone: Option<String>,
    /// `GATEWAY_PORT`, `USERS_PORT` and so on: the well-known ports, 30000 to 30006 by default.
    pub ports: [u16; Service::ALL.len()],
    /// `DATABASE_POOL_MIN` and `DATABASE_POOL_MAX`: connections a process holds. Default 5 to 20.
    pub database_pool: (u32, u32),
    /// `SHUTDOWN_GRACE_SECONDS`: how long requests and jobs may take to end. Default 30.
    pub shutdown_grace: Duration,
    /// `RECONNECT_SPREAD_SECONDS`: over how long clients are asked to spread their return when the sockets of a replica
    /// that leaves are closed. Default 5.
    pub reconnect_spread: Duration,
    /// `LOG_FORMAT`: auto (default), text or json. `LOG_LEVEL` or `RUST_LOG` chooses what is logged (default info).
    pub log_format: LogFormat,
    /// `CORS_ORIGINS`: origins that browsers may call from, comma-separated. Development adds localhost.
    pub cors_origins: Vec<String>,
    /// `RATE_LIMITS`: whether calls are counted and limited. Default: only in production.
    pub rate_limits: bool,
    /// `CRON_TIME_ZONE`: the zone of schedules that name none, as `Europe/Berlin`; the same on all replicas. Default UTC.
    pub cron_time_zone: TimeZone,
    /// `CRON_PAUSE_AFTER`: after how many failed runs in a row a job pauses itself, unless it says so by itself; 0 for
    /// never, which is the default.
    pub cron_pause_after: u32,
    /// `AUTH_SIGNING_KEY`: the 32-byte Ed25519 seed that signs tokens, base64; seeds of tokens that are believed besides come
    /// behind it, after commas. Generated and stored in development.
    pub auth_signing_key: Option<SecretString>,
    /// `SERVICE_SECRET`: proves one service to another, 32 bytes at least. Generated and stored in development.
    pub service_secret: Option<SecretString>,
}

impl Settings {
    /// Reads the settings; faults are collected in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        let profile = env.value("PROFILE", Profile::Development);
        let production = profile == Profile::Production;
        let sandbox = env.flag("SANDBOX", !production);
        if production && sandbox {
            env.fault(
                "SANDBOX",
                "must not be true with PROFILE=production: it opens routes without authentication",
            );
        }
        let stores = stores(env, production);
        let redlock_urls = env.list("REDLOCK_URLS");
        let listen_address: IpAddr = env.value(
            "LISTEN_ADDRESS",
            if production {
                Ipv4Addr::UNSPECIFIED
            } else {
                Ipv4Addr::LOCALHOST
            }
            .into(),
        );
        let reachable = if listen_address.is_unspecified() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            listen_address
        };
        let ports = Service::ALL.map(|service| {
            env.within(
                &format!("{}_PORT", service.name().to_uppercase()),
                service.port(),
                (1, u16::MAX),
            )
        });
        let database_pool = (
            env.within("DATABASE_POOL_MIN", 5, (0, 1000)),
            env.within("DATABASE_POOL_MAX", 20, (1, 1000)),
        );
        if database_pool.0 > database_pool.1 {
            env.fault(
                "DATABASE_POOL_MIN",
                format!(
                    "{} is above DATABASE_POOL_MAX, {}",
                    database_pool.0, database_pool.1
                ),
            );
        }
        let auth_signing_key = env.secret("AUTH_SIGNING_KEY", 43);
        if let Some(Err(error)) = auth_signing_key.as_ref().map(Tokens::new) {
            env.fault("AUTH_SIGNING_KEY", format!("cannot be used: {error}"));
        }
        let service_secret = env.secret("SERVICE_SECRET", 32);
        if production {
            for (name, missing) in [
                ("AUTH_SIGNING_KEY", auth_signing_key.is_none()),
                ("SERVICE_SECRET", service_secret.is_none()),
            ] {
                if missing {
                    env.fault(
                        name,
                        "is required with PROFILE=production (`openssl rand -base64 32` makes one)",
                    );
                }
            }
        }
        let home = PathBuf::from(
            env.text("CLOUDPHONE_HOME")
                .unwrap_or_else(|| ".cloudphone".into()),
        );
        Self {
            profile,
            sandbox,
            stores,
            redlock_urls,
            redis_wait_replicas: env.within("REDIS_WAIT_REPLICAS", 0, (0, 10)),
            key_prefix: env
                .text("KEY_PREFIX")
                .unwrap_or_else(|| "cloudphone".into()),
            objects: ObjectsAt::from_env(env, &home),
            home,
            listen_address,
            advertise_address: env.value("ADVERTISE_ADDRESS", reachable),
            zone: env.text("ZONE"),
            ports,
            database_pool,
            shutdown_grace: env.seconds("SHUTDOWN_GRACE_SECONDS", Duration::from_secs(30)),
            reconnect_spread: env.seconds("RECONNECT_SPREAD_SECONDS", Duration::from_secs(5)),
            log_format: env.value("LOG_FORMAT", LogFormat::Auto),
            cors_origins: env.list("CORS_ORIGINS"),
            rate_limits: env.flag("RATE_LIMITS", production),
            cron_time_zone: env.value("CRON_TIME_ZONE", TimeZone::UTC),
            cron_pause_after: env.within("CRON_PAUSE_AFTER", 0, (0, 1_000_000)),
            auth_signing_key,
            service_secret,
        }
    }

    /// The address at which a service listens for everybody.
    pub fn address(&self, service: Service) -> SocketAddr {
        let index = Service::ALL
            .iter()
            .position(|other| *other == service)
            .unwrap_or_default();
        SocketAddr::new(self.listen_address, self.ports[index])
    }

    /// Whether the process is run for customers.
    pub fn is_production(&self) -> bool {
        self.profile == Profile::Production
    }
}

/// A store's URL; one of another kind is a fault by itself and counts as given, so that it is told once.
fn store_url(env: &mut Env, name: &str, schemes: &[&str]) -> Option<SecretString> {
    let url = env.secret(name, 1)?;
    let scheme = url
        .expose_secret()
        .split_once("://")
        .map(|(scheme, _)| scheme);
    if !scheme.is_some_and(|scheme| schemes.contains(&scheme)) {
        env.fault(
            name,
            format!("must begin with {}://", schemes.join(":// or ")),
        );
    }
    Some(url)
}

fn stores(env: &mut Env, production: bool) -> Stores {
    let redis = store_url(
        env,
        "REDIS_URL",
        &[
            "redis",
            "rediss",
            "redis-sentinel",
            "rediss-sentinel",
            "redis-cluster",
            "rediss-cluster",
        ],
    );
    let database = store_url(env, "DATABASE_URL", &["postgres", "postgresql"]);
    match (redis, database) {
        (Some(redis), Some(database)) => Stores::External { redis, database },
        (None, None) if !production => Stores::Embedded,
        (redis, database) => {
            for (name, missing) in [
                ("REDIS_URL", redis.is_none()),
                ("DATABASE_URL", database.is_none()),
            ] {
                if missing {
                    let reason = if production {
                        "is required with PROFILE=production"
                    } else {
                        "is missing: set both REDIS_URL and DATABASE_URL, or neither for private stores"
                    };
                    env.fault(name, reason);
                }
            }
            Stores::Embedded
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn production_names_everything_that_is_missing_at_once() {
        let mut env = Env::of([
            ("PROFILE", "production"),
            ("SANDBOX", "true"),
            ("DATABASE_POOL_MIN", "30"),
            (
                "AUTH_SIGNING_KEY",
                "not base64, but long enough to be taken for a key",
            ),
        ]);

        Settings::from_env(&mut env);

        let text = env.finish().unwrap_err().to_string();
        for name in [
            "SANDBOX",
            "REDIS_URL",
            "DATABASE_URL",
            "AUTH_SIGNING_KEY",
            "SERVICE_SECRET",
            "DATABASE_POOL_MIN",
        ] {
            assert!(text.contains(name), "{name} is not told in {text}");
        }
    }

    #[test]
    fn nothing_configured_is_a_development_machine() {
        let mut env = Env::of([]);

        let settings = Settings::from_env(&mut env);

        assert!(
            env.finish().is_ok() && settings.sandbox && matches!(settings.stores, Stores::Embedded)
        );
        assert_eq!(
            settings.address(Service::Billing).to_string(),
            "127.0.0.1:30005"
        );
    }
}
