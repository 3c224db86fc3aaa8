//! The settings of billing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::TimeDelta;
use contracts::Money;
use platform::{Env, Profile};
use secrecy::SecretSlice;

use crate::usage::price::UnitPrice;
use crate::{provider, webhook};

/// The shortest and longest webhook key, in bytes, that the Standard Webhooks specification allows.
const KEY_LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;

/// The settings of billing.
#[derive(Clone, Debug)]
pub struct Config {
    /// `BILLING_ORDER_MINUTES`: how long an order can be paid; fractions allowed. Default 30.
    pub order_lifetime: TimeDelta,
    /// `BILLING_EXPIRY_SCHEDULE`: when orders past their time are closed, five or six cron fields. Default
    /// `*/5 * * * *`.
    pub expiry_schedule: String,
    /// `BILLING_COMPLETION_SCHEDULE`: when paid orders whose term is over are completed. Default `7 * * * *`.
    pub completion_schedule: String,
    /// `BILLING_DEBT_SCHEDULE`: when hours of devices that are owed are collected. Default `*/10 * * * *`.
    pub debt_schedule: String,
    /// `BILLING_DEVICE_MINUTE_PRICE`: what a minute of a running device costs beside its plan, in yuan with four decimals at
    /// most. Default 0.
    pub device_minute_price: UnitPrice,
    /// `BILLING_VERIFY_SCHEDULE`: when the ledger is proved. Default `17 3 * * *`.
    pub verify_schedule: String,
    /// `PAYMENT_WEBHOOK_SECRETS`: keys that sign payment notices, `whsec_` and base64, comma-separated; each of them is
    /// believed, so that keys can be rotated. Required in production.
    pub webhook_keys: Vec<SecretSlice<u8>>,
    /// `PAYMENT_ASK_SCHEDULE`: when providers are asked about payments and refunds that they have not ended. Default
    /// `* * * * *`.
    pub ask_schedule: String,
    /// `PAYMENT_REFUND_APPROVAL_ABOVE`: refunds by which more yuan of a payment go back to where it came from wait
    /// for a second admin. By
    /// default none does.
    pub refund_approval_above: Option<Money>,
    /// The providers that are called.
    pub providers: provider::Settings,
    /// The providers whose notices are believed.
    pub webhooks: webhook::Settings,
}

impl Config {
    /// Reads the settings; faults are collected in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        let minutes = env.within("BILLING_ORDER_MINUTES", 30.0, (0.001, 525_600.0));
        let mut text = |name, default: &str| env.text(name).unwrap_or_else(|| default.to_owned());
        let expiry_schedule = text("BILLING_EXPIRY_SCHEDULE", "*/5 * * * *");
        let completion_schedule = text("BILLING_COMPLETION_SCHEDULE", "7 * * * *");
        let debt_schedule = text("BILLING_DEBT_SCHEDULE", "*/10 * * * *");
        let verify_schedule = text("BILLING_VERIFY_SCHEDULE", "17 3 * * *");
        let ask_schedule = text("PAYMENT_ASK_SCHEDULE", "* * * * *");
        const MINUTE: &str = "BILLING_DEVICE_MINUTE_PRICE";
        let price = env.within(MINUTE, 0.0, (0.0, 1_000.0));
        let device_minute_price = UnitPrice::from_yuan(price).unwrap_or_else(|| {
            env.fault(MINUTE, "has four decimals at most");
            UnitPrice::default()
        });
        let webhook_keys = webhook_keys(env);
        let refund_approval_above = env.optional("PAYMENT_REFUND_APPROVAL_ABOVE");
        let providers = provider::Settings::from_env(env);
        let production = is_production(env);
        let webhooks = webhook::Settings::from_env(env, production);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a year has few milliseconds"
        )]
        let order_lifetime = TimeDelta::milliseconds((minutes * 60_000.0) as i64);
        Self {
            order_lifetime,
            expiry_schedule,
            completion_schedule,
            debt_schedule,
            device_minute_price,
            verify_schedule,
            webhook_keys,
            ask_schedule,
            refund_approval_above,
            providers,
            webhooks,
        }
    }
}

fn webhook_keys(env: &mut Env) -> Vec<SecretSlice<u8>> {
    const NAME: &str = "PAYMENT_WEBHOOK_SECRETS";
    let mut keys = Vec::new();
    for (index, text) in env.list(NAME).into_iter().enumerate() {
        match STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(&text)) {
            Ok(key) if KEY_LENGTHS.contains(&key.len()) => keys.push(key.into()),
            _ => env.fault(
                NAME,
                format!(
                    "secret {} is not `whsec_` and the base64 of 24 to 64 bytes",
                    index + 1
                ),
            ),
        }
    }
    if is_production(env) && keys.is_empty() {
        env.fault(
            NAME,
            "is required with PROFILE=production: payment notices are signed with it",
        );
    }
    keys
}

/// A profile that cannot be read is a fault of the shared settings, told there.
fn is_production(env: &mut Env) -> bool {
    let profile = env.text("PROFILE");
    profile.is_some_and(|profile| profile.parse() == Ok(Profile::Production))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_keys_are_read_and_a_bad_one_is_told_without_being_shown() {
        let good = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
        let mut env = Env::of([
            (
                "PAYMENT_WEBHOOK_SECRETS",
                &format!("{good}, whsec_c2hvcnQ="),
            ),
            ("BILLING_ORDER_MINUTES", "0.02"),
        ]);

        let config = Config::from_env(&mut env);

        assert_eq!(config.webhook_keys.len(), 1);
        assert_eq!(config.order_lifetime, TimeDelta::milliseconds(1_200));
        let text = env.finish().unwrap_err().to_string();
        assert!(
            text.contains("secret 2") && !text.contains("c2hvcnQ"),
            "{text}"
        );
    }

    #[test]
    fn production_needs_a_key() {
        let mut env = Env::of([("PROFILE", "production")]);

        Config::from_env(&mut env);

        let text = env.finish().unwrap_err().to_string();
        assert!(text.contains("PAYMENT_WEBHOOK_SECRETS"), "{text}");
    }
}
