//! Where the providers are, and with which keys they are called.

use platform::Env;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

use crate::rsa::SigningKey;

/// The providers that are called. One without its key is not.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub stripe: Option<StripeSettings>,
    pub alipay: Option<AlipaySettings>,
    pub wechatpay: Option<WechatPaySettings>,
}

#[derive(Clone, Debug)]
pub struct StripeSettings {
    /// `STRIPE_API_KEY`.
    pub api_key: SecretString,
    /// `STRIPE_API_URL`. Default `https://api.stripe.com`.
    pub url: Url,
    /// `PAYMENT_RETURN_URL`: where a payer goes on, with `{orderId}` and `{paymentNo}` filled in.
    pub return_url: String,
}

#[derive(Clone, Debug)]
pub struct AlipaySettings {
    /// `ALIPAY_APP_ID`.
    pub app_id: String,
    /// `ALIPAY_PRIVATE_KEY`.
    pub key: SigningKey,
    /// `ALIPAY_API_URL`. Default `https://openapi.alipay.com/gateway.do`.
    pub url: Url,
    /// `PAYMENT_NOTIFY_URL` and `/webhooks/alipay`.
    pub notify_url: String,
}

#[derive(Clone, Debug)]
pub struct WechatPaySettings {
    /// `WECHATPAY_APP_ID`.
    pub app_id: String,
    /// `WECHATPAY_MCH_ID`.
    pub merchant: String,
    /// `WECHATPAY_PRIVATE_KEY`.
    pub key: SigningKey,
    /// `WECHATPAY_KEY_SERIAL`: the serial of our certificate.
    pub serial: String,
    /// `WECHATPAY_API_URL`. Default `https://api.mch.weixin.qq.com`.
    pub url: Url,
    /// `PAYMENT_NOTIFY_URL` and `/webhooks/wechatpay`.
    pub notify_url: String,
}

impl Settings {
    /// Reads the settings; faults are collected in `env`. A provider is called once its private key is there, and then
    /// needs the rest too.
    pub fn from_env(env: &mut Env) -> Self {
        let notify = env.text("PAYMENT_NOTIFY_URL");
        let notify = notify.map(|url| url.trim_end_matches('/').to_owned());
        Self {
            stripe: stripe(env),
            alipay: alipay(env, notify.as_deref()),
            wechatpay: wechatpay(env, notify.as_deref()),
        }
    }
}

fn stripe(env: &mut Env) -> Option<StripeSettings> {
    let api_key = env.secret("STRIPE_API_KEY", 16);
    let url = url(env, "STRIPE_API_URL", "https://api.stripe.com");
    let return_url = env.text("PAYMENT_RETURN_URL");
    let api_key = api_key?;
    let return_url = needed(env, return_url, "PAYMENT_RETURN_URL", "STRIPE_API_KEY")?;
    if let Err(error) = Url::parse(&return_url) {
        env.fault("PAYMENT_RETURN_URL", format!("is not an address: {error}"));
    }
    Some(StripeSettings {
        api_key,
        url: url?,
        return_url,
    })
}

fn alipay(env: &mut Env, notify: Option<&str>) -> Option<AlipaySettings> {
    const KEY: &str = "ALIPAY_PRIVATE_KEY";
    let key = key(env, KEY);
    let app_id = env.text("ALIPAY_APP_ID");
    let url = url(
        env,
        "ALIPAY_API_URL",
        "https://openapi.alipay.com/gateway.do",
    );
    let key = key?;
    let app_id = needed(env, app_id, "ALIPAY_APP_ID", KEY);
    let notify = needed(env, notify.map(str::to_owned), "PAYMENT_NOTIFY_URL", KEY);
    Some(AlipaySettings {
        app_id: app_id?,
        key,
        url: url?,
        notify_url: format!("{}/webhooks/alipay", notify?),
    })
}

fn wechatpay(env: &mut Env, notify: Option<&str>) -> Option<WechatPaySettings> {
    const KEY: &str = "WECHATPAY_PRIVATE_KEY";
    let key = key(env, KEY);
    let app_id = env.text("WECHATPAY_APP_ID");
    let merchant = env.text("WECHATPAY_MCH_ID");
    let serial = env.text("WECHATPAY_KEY_SERIAL");
    let url = url(env, "WECHATPAY_API_URL", "https://api.mch.weixin.qq.com");
    let key = key?;
    let app_id = needed(env, app_id, "WECHATPAY_APP_ID", KEY);
    let merchant = needed(env, merchant, "WECHATPAY_MCH_ID", KEY);
    let serial = needed(env, serial, "WECHATPAY_KEY_SERIAL", KEY);
    let notify = needed(env, notify.map(str::to_owned), "PAYMENT_NOTIFY_URL", KEY);
    Some(WechatPaySettings {
        app_id: app_id?,
        merchant: merchant?,
        key,
        serial: serial?,
        url: url?,
        notify_url: format!("{}/webhooks/wechatpay", notify?),
    })
}

fn needed(env: &mut Env, value: Option<String>, name: &str, by: &str) -> Option<String> {
    if value.is_none() {
        env.fault(name, format!("is required with {by}"));
    }
    value
}

fn key(env: &mut Env, name: &str) -> Option<SigningKey> {
    let text = env.secret(name, 1)?;
    let key = SigningKey::read(text.expose_secret());
    if key.is_none() {
        env.fault(
            name,
            "is not an RSA key of 2048 bits or more, PEM or base64",
        );
    }
    key
}

/// Money is asked for by TLS; only this machine may be called without.
fn url(env: &mut Env, name: &str, default: &str) -> Option<Url> {
    let text = env.text(name).unwrap_or_else(|| default.to_owned());
    match Url::parse(&text) {
        Ok(url) if url.scheme() == "https" || is_loopback(&url) => Some(url),
        Ok(_) => {
            env.fault(name, "must begin with https://, save on this machine");
            None
        }
        Err(error) => {
            env.fault(name, format!("is not an address: {error}"));
            None
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    url.scheme() == "http" && matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"))
}
