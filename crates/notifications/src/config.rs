//! The settings of this service.

use std::time::Duration;

use chrono::TimeDelta;
use platform::Env;
use platform::mail::MailSettings;
use reqwest::Url;
use secrecy::SecretString;

/// The settings of this service.
#[derive(Clone, Debug)]
pub struct Config {
    /// How often every instance compares its live sockets with the store, for what Redis lost.
    /// `NOTIFICATIONS_SWEEP_SECONDS`, default 1.
    pub sweep_every: Duration,
    /// How often the sessions of live sockets are checked, beside the news that one has ended.
    /// `NOTIFICATIONS_SESSION_CHECK_SECONDS`, default 5.
    pub check_sessions_every: Duration,
    /// How often an instance writes who is online on it; who was on one that died is gone after four times this.
    /// `NOTIFICATIONS_PRESENCE_SECONDS`, default 1.
    pub presence_every: Duration,
    /// For how long a worker holds a delivery; an attempt takes a third of it at most.
    /// `NOTIFICATIONS_DELIVERY_LEASE_SECONDS`, default 45.
    pub delivery_lease: Duration,
    /// The pause after the first attempt of a delivery that failed; it doubles with each further one.
    /// `NOTIFICATIONS_RETRY_SECONDS`, default 5.
    pub retry_pause: Duration,
    /// For how long a delivery is tried. `NOTIFICATIONS_DELIVERY_PATIENCE_SECONDS`, default 86400.
    pub delivery_patience: Duration,
    /// After how many days notifications are deleted, with their deliveries, and broadcasts that are over.
    /// `NOTIFICATIONS_RETENTION_DAYS`, default 90.
    pub retention: TimeDelta,
    /// Whether webhooks may lead to this machine, in the sandbox alone. `NOTIFICATIONS_WEBHOOK_LOOPBACK`, default false.
    pub webhook_loopback: bool,
    /// By whom mail is sent.
    pub mail: MailSettings,
    /// Who takes text messages; without it none are sent.
    pub sms: Option<SmsProvider>,
}

/// Who takes text messages.
#[derive(Clone, Debug)]
pub struct SmsProvider {
    /// Called for each. `SMS_URL`.
    pub url: Url,
    /// Signs the calls. `SMS_SECRET`, at least 16 bytes.
    pub secret: SecretString,
}

impl Config {
    /// Reads the settings; faults are collected in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        Self {
            sweep_every: env.seconds("NOTIFICATIONS_SWEEP_SECONDS", Duration::from_secs(1)),
            check_sessions_every: env.seconds(
                "NOTIFICATIONS_SESSION_CHECK_SECONDS",
                Duration::from_secs(5),
            ),
            presence_every: env.seconds("NOTIFICATIONS_PRESENCE_SECONDS", Duration::from_secs(1)),
            delivery_lease: env.seconds(
                "NOTIFICATIONS_DELIVERY_LEASE_SECONDS",
                Duration::from_secs(45),
            ),
            retry_pause: env.seconds("NOTIFICATIONS_RETRY_SECONDS", Duration::from_secs(5)),
            delivery_patience: env.seconds(
                "NOTIFICATIONS_DELIVERY_PATIENCE_SECONDS",
                Duration::from_secs(86_400),
            ),
            retention: TimeDelta::days(env.within("NOTIFICATIONS_RETENTION_DAYS", 90, (1, 36_500))),
            webhook_loopback: env.flag("NOTIFICATIONS_WEBHOOK_LOOPBACK", false),
            mail: MailSettings::from_env(env),
            sms: sms(env),
        }
    }
}

fn sms(env: &mut Env) -> Option<SmsProvider> {
    let url = env.optional("SMS_URL");
    let secret = env.secret("SMS_SECRET", 16);
    match (url, secret) {
        (Some(url), Some(secret)) => Some(SmsProvider { url, secret }),
        (Some(_), None) => {
            env.fault("SMS_SECRET", "is needed where SMS_URL is set");
            None
        }
        (None, _) => None,
    }
}
