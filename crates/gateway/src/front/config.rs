//! What the front door can be told.

use std::time::Duration;

use coordination::{Keys, Limit};
use platform::{Env, Settings};

use crate::front::access::AccessLog;
use crate::front::cors::Origins;

/// How the front door behaves. The default is the development profile.
#[derive(Clone, Debug)]
pub struct FrontConfig {
    /// Which pages of other origins may call.
    pub origins: Origins,
    /// The limit per client address, over all replicas; none in development.
    pub limit: Option<Limit>,
    /// The names of Redis keys.
    pub keys: Keys,
    /// `TRUST_FORWARDED`: whether a proxy of ours stands before every gateway, whose word on address, scheme and host
    /// counts. Default: no.
    pub trust_forwarded: bool,
    /// The largest body of a request that is not an upload.
    pub body_limit: u64,
    /// Until when the head of a reply must be there.
    pub reply_within: Duration,
    /// How long one try may take when the request may be tried elsewhere.
    pub try_within: Duration,
    /// The same for a Socket.IO long poll, which waits for something to happen.
    pub poll_within: Duration,
    /// How long an instance may take to accept a connection.
    pub connect_within: Duration,
    /// How long an instance that failed again and again is left alone, times the number of times in a row.
    pub ejection: Duration,
    /// How long a body may stand still.
    pub stream_idle: Duration,
    /// How long a socket may be silent in both directions.
    pub socket_idle: Duration,
    /// How long an idle connection to an instance is kept: less than the servers keep theirs.
    pub keep_idle: Duration,
    /// How long sockets may take to end by themselves when the process leaves.
    pub drain_within: Duration,
    /// How long a Socket.IO session is remembered after its last request.
    pub session_ttl: Duration,
    /// `ACCESS_LOG_SAMPLE`: which share of ordinary requests gets a line in the access log, 0 to 1. Default: 1 in
    /// development, 0.01 in production. `ACCESS_LOG_SLOW_SECONDS`: what takes longer always gets one, as do errors and
    /// retried requests. Default 1.
    pub access: AccessLog,
    /// `DECISION_LOG_REQUESTS`: how many requests this replica remembers for `gateway explain`, and as many again of
    /// those that failed, were slow or were tried again. Default 4096.
    pub decisions: usize,
    /// `DECISION_LOG_SECONDS`: for how long at most. Default 900.
    pub remember: Duration,
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
            limit: settings
                .rate_limits
                .then(|| Limit::per_second(100).burst(200)),
            keys: keys.clone(),
            trust_forwarded: env.flag("TRUST_FORWARDED", false),
            access: AccessLog {
                sample: env.within(
                    "ACCESS_LOG_SAMPLE",
                    if settings.is_production() { 0.01 } else { 1.0 },
                    (0.0, 1.0),
                ),
                slow: env.seconds("ACCESS_LOG_SLOW_SECONDS", usual.access.slow),
            },
            decisions: env.within("DECISION_LOG_REQUESTS", usual.decisions, (0, 1_000_000)),
            remember: env.seconds("DECISION_LOG_SECONDS", usual.remember),
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
            limit: None,
            keys: Keys::new("cp"),
            trust_forwarded: false,
            body_limit: 1024 * 1024,
            reply_within: Duration::from_secs(8),
            try_within: Duration::from_secs(5),
            poll_within: Duration::from_secs(50),
            connect_within: Duration::from_secs(1),
            ejection: Duration::from_secs(5),
            stream_idle: Duration::from_secs(75),
            socket_idle: Duration::from_secs(600),
            keep_idle: Duration::from_secs(50),
            drain_within: Duration::from_secs(2),
            session_ttl: Duration::from_secs(120),
            access: AccessLog {
                sample: 1.0,
                slow: Duration::from_secs(1),
            },
            decisions: 4096,
            remember: Duration::from_secs(900),
        }
    }
}
