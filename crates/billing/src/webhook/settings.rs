//! By which keys the notices of providers are believed, and whose they have to be.

use platform::Env;
use secrecy::{ExposeSecret, SecretString};

use crate::rsa::VerifyingKey;

/// The providers whose notices are taken. One without keys is answered with 404.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub stripe: Option<StripeKeys>,
    pub alipay: Option<AlipayKeys>,
    pub wechatpay: Option<WechatPayKeys>,
}

#[derive(Clone, Debug)]
pub struct StripeKeys {
    /// `STRIPE_WEBHOOK_SECRETS`: of the endpoint, comma-separated, each of them believed.
    pub secrets: Vec<SecretString>,
    /// `STRIPE_LIVEMODE`: whether money is real. Default: true in production.
    pub livemode: bool,
    /// `STRIPE_ACCOUNT`: the connected account whose events these are, `acct_…`. Default: none, the account's own.
    pub account: Option<String>,
}

#[derive(Clone, Debug)]
pub struct AlipayKeys {
    /// `ALIPAY_PUBLIC_KEYS`: Alipay's, not ours; PEM or base64, comma-separated, each of them believed.
    pub keys: Vec<VerifyingKey>,
    /// `ALIPAY_APP_ID`.
    pub app_id: String,
    /// `ALIPAY_SELLER_ID`: compared where it is set.
    pub seller_id: Option<String>,
}

#[derive(Clone, Debug)]
pub struct WechatPayKeys {
    /// `WECHATPAY_PUBLIC_KEYS`: `SERIAL=PEM`, or base64 in the place of PEM, comma-separated: platform certificates by
    /// their serial, or public keys by their id.
    pub keys: Vec<(String, VerifyingKey)>,
    /// `WECHATPAY_API_V3_KEYS`: 32 bytes each, comma-separated, each of them tried.
    pub api_keys: Vec<SecretString>,
    /// `WECHATPAY_MCH_ID`.
    pub merchant: String,
    /// `WECHATPAY_APP_ID`.
    pub app_id: String,
}

impl Settings {
    /// Reads the settings; faults are collected in `env`.
    pub fn from_env(env: &mut Env, production: bool) -> Self {
        Self {
            stripe: stripe(env, production),
            alipay: alipay(env),
            wechatpay: wechatpay(env),
        }
    }
}

fn stripe(env: &mut Env, production: bool) -> Option<StripeKeys> {
    let secrets = list(env, "STRIPE_WEBHOOK_SECRETS");
    let livemode = env.flag("STRIPE_LIVEMODE", production);
    let account = env.text("STRIPE_ACCOUNT");
    if secrets
        .iter()
        .any(|secret| secret.expose_secret().len() < 16)
    {
        env.fault(
            "STRIPE_WEBHOOK_SECRETS",
            "a secret is shorter than 16 bytes",
        );
    }
    (!secrets.is_empty()).then_some(StripeKeys {
        secrets,
        livemode,
        account,
    })
}

fn alipay(env: &mut Env) -> Option<AlipayKeys> {
    const KEYS: &str = "ALIPAY_PUBLIC_KEYS";
    let mut keys = Vec::new();
    for (index, text) in env.list(KEYS).into_iter().enumerate() {
        match VerifyingKey::read(&text) {
            Some(key) => keys.push(key),
            None => env.fault(KEYS, format!("key {} is no RSA key", index + 1)),
        }
    }
    let app_id = env.text("ALIPAY_APP_ID");
    let seller_id = env.text("ALIPAY_SELLER_ID");
    if keys.is_empty() {
        return None;
    }
    if app_id.is_none() {
        env.fault("ALIPAY_APP_ID", format!("is required with {KEYS}"));
    }
    Some(AlipayKeys {
        keys,
        app_id: app_id?,
        seller_id,
    })
}

fn wechatpay(env: &mut Env) -> Option<WechatPayKeys> {
    const KEYS: &str = "WECHATPAY_PUBLIC_KEYS";
    const API: &str = "WECHATPAY_API_V3_KEYS";
    let mut keys = Vec::new();
    for (index, text) in env.list(KEYS).into_iter().enumerate() {
        let (serial, key) = text.split_once('=').unwrap_or_default();
        match VerifyingKey::read(key) {
            Some(key) if !serial.is_empty() => keys.push((serial.to_owned(), key)),
            _ => env.fault(KEYS, format!("key {} is not SERIAL=KEY", index + 1)),
        }
    }
    let api_keys = list(env, API);
    let merchant = env.text("WECHATPAY_MCH_ID");
    let app_id = env.text("WECHATPAY_APP_ID");
    if keys.is_empty() {
        return None;
    }
    let right = |key: &SecretString| key.expose_secret().len() == 32;
    if api_keys.is_empty() || !api_keys.iter().all(right) {
        env.fault(API, format!("is required with {KEYS}: 32 bytes each"));
    }
    for (name, value) in [
        ("WECHATPAY_MCH_ID", &merchant),
        ("WECHATPAY_APP_ID", &app_id),
    ] {
        if value.is_none() {
            env.fault(name, format!("is required with {KEYS}"));
        }
    }
    Some(WechatPayKeys {
        keys,
        api_keys,
        merchant: merchant?,
        app_id: app_id?,
    })
}

fn list(env: &mut Env, name: &str) -> Vec<SecretString> {
    env.list(name).into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAqObrdC7hrgAVM98tK0nv3hSQRGGKT4lBsQjHiGjeYZjOPIPHR5knm2jnnz/YGIXIofVHkA/tAlBAd5DrY7YpvI4tP5EONLtZKC2ghBMx7McI2wRD0xiqzxOQr1FuhZGJ8/AUokBzJrzY+aGX2xcOrxFYRlFilvVLTXg4LWjR1tdPkO6+i7wQZAIVMClPkwVRZEbaERRHlKqTzv2gGv5rDU8gRoe1LeaN+6BlbTqHWkQcNCUNrA8C6l17XAXGKDsm/9TFWwO8EPHHHCaQdjtV5/FdcWIt+L8SR1ss7EXTjYDFtxcKVv9rEoY1lX8T4mX+GbXfZHraG5NCF1+XioL5JwIDAQAB";
    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn read(variables: &[(&str, &str)]) -> (Settings, Option<String>) {
        let mut env: Env = variables.iter().copied().collect();
        let settings = Settings::from_env(&mut env, true);
        let faults = env.finish().err().map(|faults| faults.to_string());
        (settings, faults)
    }

    #[test]
    fn each_provider_has_the_keys_it_is_given() {
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{KEY}\n-----END PUBLIC KEY-----\n");
        let wechat = format!("PUB_KEY_ID_01={pem},7132D7=\n{KEY}");
        let (settings, faults) = read(&[
            (
                "STRIPE_WEBHOOK_SECRETS",
                &format!("whsec_{SECRET}, whsec_new{SECRET}"),
            ),
            ("STRIPE_ACCOUNT", "acct_1"),
            ("ALIPAY_PUBLIC_KEYS", &format!("{pem},{KEY}")),
            ("ALIPAY_APP_ID", "2021"),
            ("WECHATPAY_PUBLIC_KEYS", &wechat),
            ("WECHATPAY_API_V3_KEYS", SECRET),
            ("WECHATPAY_MCH_ID", "1900"),
            ("WECHATPAY_APP_ID", "wx"),
        ]);

        assert_eq!(faults, None);
        let shown = format!("{settings:?}");
        assert!(!shown.contains(SECRET), "{shown}");
        let stripe = settings.stripe.unwrap();
        assert_eq!((stripe.secrets.len(), stripe.livemode), (2, true));
        assert_eq!(stripe.account.as_deref(), Some("acct_1"));
        assert_eq!(settings.alipay.unwrap().keys.len(), 2);
        let serials: Vec<_> = settings
            .wechatpay
            .unwrap()
            .keys
            .into_iter()
            .map(|(serial, _)| serial)
            .collect();
        assert_eq!(serials, ["PUB_KEY_ID_01", "7132D7"]);
        assert!(read(&[]).0.stripe.is_none());
    }

    #[test]
    fn what_is_wrong_or_missing_is_named_and_not_shown() {
        for (variables, named) in [
            (
                vec![("STRIPE_WEBHOOK_SECRETS", "5h0rt")],
                vec!["STRIPE_WEBHOOK_SECRETS"],
            ),
            (
                vec![("ALIPAY_PUBLIC_KEYS", "5h0rt")],
                vec!["ALIPAY_PUBLIC_KEYS"],
            ),
            (vec![("ALIPAY_PUBLIC_KEYS", KEY)], vec!["ALIPAY_APP_ID"]),
            (
                vec![("WECHATPAY_PUBLIC_KEYS", "serial=5h0rt")],
                vec!["WECHATPAY_PUBLIC_KEYS"],
            ),
            (
                vec![
                    ("WECHATPAY_PUBLIC_KEYS", &*format!("1={KEY}")),
                    ("WECHATPAY_API_V3_KEYS", "5h0rt"),
                ],
                vec![
                    "WECHATPAY_API_V3_KEYS",
                    "WECHATPAY_MCH_ID",
                    "WECHATPAY_APP_ID",
                ],
            ),
        ] {
            let faults = read(&variables).1.unwrap_or_default();
            for name in named {
                assert!(faults.contains(name), "{name}: {faults}");
            }
            assert!(
                !faults.contains("5h0rt") && !faults.contains(KEY),
                "{faults}"
            );
        }
    }
}
