//! What the front door can be told.

use std::net::SocketAddr;
use std::time::Duration;

use coordination::Keys;
use platform::serve::tls::PairFiles;
use platform::{Env, Settings};

use crate::front::access::AccessLog;
use crate::front::cors::Origins;
use crate::front::deadlines::Deadlines;
use crate::front::limit::RateLimits;
use crate::front::locality::Locality;
use crate::front::repeat::Keyed;

/// How the front door behaves. The default is the development profile.
#[derive(Clone, Debug)]
pub struct FrontConfig {
    /// Which pages of other origins may call.
    pub origins: Origins,
    /// How often each address and user may ask, over all replicas; none in development.
    pub limits: Option<RateLimits>,
    /// The names of Redis keys.
    pub keys: Keys,
    /// The port beside the plain one that speaks TLS. Default: none.
    pub tls: Option<TlsPort>,
    /// `GATEWAY_HSTS_SECONDS`: for how long browsers that came by TLS shall ask this host by TLS alone, on all of its ports,
    /// the plain ones too. Default 0: they are not told.
    pub hsts: u32,
    /// `TRUST_FORWARDED`: whether a proxy of ours stands before every gateway, whose word on address, scheme and host
    /// counts. Default: no.
    pub trust_forwarded: bool,
    /// `GATEWAY_THREADS`: how many threads serve the door's connections. Default: one for each core.
    pub workers: usize,
    /// The largest body of a request that is not an upload.
    pub body_limit: u64,
    /// Until when the head of a reply must be there.
    pub reply_within: Duration,
    /// How long the head of the reply to a command on a device may take, which itself may take a minute.
    pub command_within: Duration,
    /// `GATEWAY_DEADLINES`: paths whose replies must begin earlier, as `/webhooks=5,/stats=2.5`. Default: the first one.
    pub deadlines: Deadlines,
    /// How many requests are let through at once.
    pub overload: Overload,
    /// Which routes may be sent again with their `Idempotency-Key`.
    pub keyed: Keyed,
    /// How long one try may take when the request may be tried elsewhere.
    pub try_within: Duration,
    /// Until when the head of the reply to a Socket.IO long poll must be there, which waits for something to happen.
    pub poll_within: Duration,
    /// How long an instance may take to accept a connection.
    pub connect_within: Duration,
    /// `GATEWAY_EJECTION_SECONDS`: how long an instance that fails or lags is left alone, times the number of times in
    /// a row. Default 5.
    pub ejection: Duration,
    /// How requests are spread over the instances of a service.
    pub balance: Balance,
    /// How long a body may stand still.
    pub stream_idle: Duration,
    /// How long a socket may be silent in both directions.
    pub socket_idle: Duration,
    /// How long an idle connection to an instance is kept: less than the servers keep theirs.
    pub keep_idle: Duration,
    /// How long sockets may take to end by themselves when the process leaves.
    pub drain_within: Duration,
    /// Over how long clients are asked to spread their return when their sockets are closed. `RECONNECT_SPREAD_SECONDS`.
    pub reconnect_spread: Duration,
    /// How long a Socket.IO session is remembered after its last request.
    pub session_ttl: Duration,
    /// `ACCESS_LOG_SAMPLE`: which share of ordinary requests gets a line in the access log, 0 to 1. Default: 1 in
    /// development, 0.01 in production. `ACCESS_LOG_SLOW_SECONDS`: what takes longer always gets one, as do errors and
    /// retried requests. Default 1. `ACCESS_LOG_PER_SECOND`: so many of these a second, and the others are only counted.
    /// Default 100.
    pub access: AccessLog,
    /// `DECISION_LOG_REQUESTS`: how many requests this replica remembers for `gateway explain`, and as many again of
    /// those that failed, were slow or were tried again. Default 4096.
    pub decisions: usize,
    /// `DECISION_LOG_SECONDS`: for how long at most. Default 900.
    pub remember: Duration,
}

/// A port that speaks TLS.
#[derive(Clone, Debug)]
pub struct TlsPort {
    /// `GATEWAY_TLS_PORT`, at `LISTEN_ADDRESS`. Default 30443.
    pub address: SocketAddr,
    /// `GATEWAY_TLS_CERT` and `GATEWAY_TLS_KEY`: both, or neither for a gateway without TLS.
    pub files: PairFiles,
    /// `GATEWAY_TLS_HANDSHAKES_PER_ADDRESS`: handshakes that one address may have under way at once where half of all
    /// places are taken; beyond them its oldest gives way. Of IPv6, a /64 counts as an address. Default 64.
    pub handshakes_per_address: usize,
}

impl TlsPort {
    fn from_env(env: &mut Env, settings: &Settings) -> Option<Self> {
        let port = env.within("GATEWAY_TLS_PORT", 30443, (1, u16::MAX));
        let handshakes = env.within("GATEWAY_TLS_HANDSHAKES_PER_ADDRESS", 64, (1, 1024));
        let [certificate, key] = ["GATEWAY_TLS_CERT", "GATEWAY_TLS_KEY"].map(|name| {
            let path = env.text(name);
            if path.as_ref().is_some_and(|path| path.contains("-----")) {
                env.fault(name, "must be the path of a PEM file, not what it holds");
            }
            path
        });
        let (certificate, key) = match (certificate, key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => return None,
            (given, _) => {
                let missing = match given {
                    Some(_) => "GATEWAY_TLS_KEY",
                    None => "GATEWAY_TLS_CERT",
                };
                env.fault(missing, "is missing: TLS needs a certificate and its key");
                return None;
            }
        };
        if settings.ports.contains(&port) {
            env.fault("GATEWAY_TLS_PORT", format!("{port} is a service's port"));
        }
        Some(Self {
            address: SocketAddr::new(settings.listen_address, port),
            files: PairFiles {
                certificate: certificate.into(),
                key: key.into(),
            },
            handshakes_per_address: handshakes,
        })
    }
}

/// How requests are spread over the instances of a service.
#[derive(Clone, Debug)]
pub struct Balance {
    /// `GATEWAY_SLOW_START_SECONDS`: how long the share of an instance grows that is new or back. Default 10; 0 gives it
    /// its whole share at once.
    pub slow_start: Duration,
    /// `GATEWAY_PREFER_NEAR`: whether instances on the gateway's own machine, then those in its `ZONE`, are preferred as
    /// long as they are well and not much busier. Default: yes. From here the distance of an instance is measured.
    pub locality: Option<Locality>,
    /// `GATEWAY_EJECTION_MAX_PERCENT`: the part of a service's instances that may be left alone at a time; one of
    /// several always may. Default 50; with 0 none is.
    pub most_ejected_percent: usize,
    /// `GATEWAY_PANIC_PERCENT`: where fewer of the instances than this are not left alone, all of them share the load
    /// again. Default 50; with 0 never.
    pub panic_percent: usize,
    /// `GATEWAY_OUTLIER_FACTOR`: an instance is left alone when half of its replies begin so many times later than its
    /// siblings'. Default 4; 0 for never.
    pub outlier_factor: u32,
    /// `GATEWAY_OUTLIER_MILLISECONDS`: and so many milliseconds later at least. Default 100.
    pub outlier_margin: Duration,
    /// How often the instances are compared.
    pub outlier_every: Duration,
}

impl Balance {
    fn from_env(env: &mut Env, zone: Option<String>) -> Self {
        let usual = Self::default();
        let near = env.flag("GATEWAY_PREFER_NEAR", true);
        let slow_start = usual.slow_start.as_secs_f64();
        let slow_start = env.within("GATEWAY_SLOW_START_SECONDS", slow_start, (0.0, 3600.0));
        let percent = (0, 100);
        let margin = env.within("GATEWAY_OUTLIER_MILLISECONDS", 100, (1, 60_000));
        Self {
            slow_start: Duration::from_secs_f64(slow_start),
            locality: near.then(|| Locality::here(zone)),
            most_ejected_percent: env.within(
                "GATEWAY_EJECTION_MAX_PERCENT",
                usual.most_ejected_percent,
                percent,
            ),
            panic_percent: env.within("GATEWAY_PANIC_PERCENT", usual.panic_percent, percent),
            outlier_factor: env.within("GATEWAY_OUTLIER_FACTOR", usual.outlier_factor, (0, 1000)),
            outlier_margin: Duration::from_millis(margin),
            outlier_every: usual.outlier_every,
        }
    }
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            slow_start: Duration::from_secs(10),
            locality: None,
            most_ejected_percent: 50,
            panic_percent: 50,
            outlier_factor: 4,
            outlier_margin: Duration::from_millis(100),
            outlier_every: Duration::from_secs(5),
        }
    }
}

/// How many requests are let through at once, and what becomes of the others.
#[derive(Clone, Debug)]
pub struct Overload {
    /// `GATEWAY_CONCURRENCY`: requests that wait for the head of their reply at once; uploads, sockets and polls of open
    /// sessions do not count. Default 1024.
    pub places: usize,
    /// `GATEWAY_CONCURRENCY_PERCENT`: the part of the places, and of the queue, that one service may take. Default 50.
    pub service_percent: usize,
    /// `GATEWAY_UPLOADS`: uploads under way at once; once half of them are, an eighth for each address. Default 256.
    pub uploads: usize,
    /// `GATEWAY_QUEUE`: requests that wait for a place. Default 1024.
    pub queue: usize,
    /// `GATEWAY_QUEUE_MILLISECONDS`: how long one waits for a place. Default 1000.
    pub queue_within: Duration,
}

impl Overload {
    fn from_env(env: &mut Env) -> Self {
        let within = env.within("GATEWAY_QUEUE_MILLISECONDS", 1000, (1, 8000));
        Self {
            places: env.within("GATEWAY_CONCURRENCY", 1024, (1, 1_000_000)),
            service_percent: env.within("GATEWAY_CONCURRENCY_PERCENT", 50, (1, 100)),
            uploads: env.within("GATEWAY_UPLOADS", 256, (1, 1_000_000)),
            queue: env.within("GATEWAY_QUEUE", 1024, (0, 1_000_000)),
            queue_within: Duration::from_millis(within),
        }
    }

    /// One service's part of a number of places.
    pub fn of_a_service(&self, whole: usize) -> usize {
        (whole * self.service_percent).div_ceil(100)
    }
}

impl Default for Overload {
    fn default() -> Self {
        Self {
            places: 1024,
            service_percent: 50,
            uploads: 256,
            queue: 1024,
            queue_within: Duration::from_secs(1),
        }
    }
}

impl FrontConfig {
    /// Reads what is the front door's own, and takes the rest from the shared settings.
    pub fn from_env(env: &mut Env, settings: &Settings, keys: &Keys) -> Self {
        let usual = Self::default();
        Self {
            origins: Origins {
                local: !settings.is_production(),
                listed: settings.cors_origins.clone(),
            },
            limits: RateLimits::from_env(env, settings),
            keys: keys.clone(),
            tls: TlsPort::from_env(env, settings),
            hsts: env.within("GATEWAY_HSTS_SECONDS", 0, (0, 10 * 365 * 24 * 3600)),
            trust_forwarded: env.flag("TRUST_FORWARDED", false),
            workers: env.within("GATEWAY_THREADS", cores(), (1, 1024)),
            ejection: env.seconds("GATEWAY_EJECTION_SECONDS", Duration::from_secs(5)),
            balance: Balance::from_env(env, settings.zone.clone()),
            deadlines: env.value("GATEWAY_DEADLINES", Deadlines::default()),
            overload: Overload::from_env(env),
            access: AccessLog {
                sample: env.within(
                    "ACCESS_LOG_SAMPLE",
                    if settings.is_production() { 0.01 } else { 1.0 },
                    (0.0, 1.0),
                ),
                slow: env.seconds("ACCESS_LOG_SLOW_SECONDS", usual.access.slow),
                most: env.within("ACCESS_LOG_PER_SECOND", usual.access.most, (0, 1_000_000)),
            },
            decisions: env.within("DECISION_LOG_REQUESTS", usual.decisions, (0, 1_000_000)),
            remember: env.seconds("DECISION_LOG_SECONDS", usual.remember),
            reconnect_spread: settings.reconnect_spread,
            ..usual
        }
    }
}

impl Default for FrontConfig {
    fn default() -> Self {
        Self {
            origins: Origins {
                local: true,
                listed: Vec::new(),
            },
            limits: None,
            keys: Keys::new("cp"),
            tls: None,
            hsts: 0,
            trust_forwarded: false,
            workers: 1,
            body_limit: 1024 * 1024,
            reply_within: Duration::from_secs(8),
            command_within: Duration::from_secs(70),
            keyed: Keyed::default(),
            try_within: Duration::from_secs(5),
            poll_within: Duration::from_secs(50),
            connect_within: Duration::from_secs(1),
            ejection: Duration::from_secs(5),
            balance: Balance::default(),
            deadlines: Deadlines::default(),
            overload: Overload::default(),
            stream_idle: Duration::from_secs(75),
            socket_idle: Duration::from_secs(600),
            keep_idle: Duration::from_secs(50),
            drain_within: Duration::from_secs(2),
            reconnect_spread: Duration::from_secs(5),
            session_ttl: Duration::from_secs(120),
            access: AccessLog {
                sample: 1.0,
                slow: Duration::from_secs(1),
                most: 100,
            },
            decisions: 4096,
            remember: Duration::from_secs(900),
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
