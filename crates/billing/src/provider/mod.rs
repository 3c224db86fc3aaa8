//! Payment providers: what we ask of them, and what each of their answers may mean.
//!
//! Every call names what it is about by our own number (`payment_no`, `refund_no`), which providers take as the key of
//! idempotency. So a call whose answer was lost is made again, and has its effect once.

mod alipay;
mod calls;
pub mod sandbox;
mod settings;
mod stripe;
mod wechatpay;

use std::sync::Arc;

use contracts::Money;
use futures::future::BoxFuture;
use platform::Platform;

pub use self::calls::client;
pub use self::settings::Settings;
use crate::Config;
use crate::payment::{Method, Payment};
use crate::refund::Refund;
use crate::rsa::SigningKey;

/// Somebody who collects money for us and gives it back.
pub trait Provider: Send + Sync {
    /// The name in the store, in metrics and in the answers of admin routes.
    fn name(&self) -> &'static str;

    /// Begins a payment, or finds the one begun before under the same number.
    fn begin<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<Begun, Failure>>;

    /// Tells how a payment stands.
    fn ask<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<Standing, Failure>>;

    /// Ends a payment that nobody has carried out, so that nobody can any more. Refused where it was paid meanwhile.
    fn close<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<(), Failure>>;

    /// Gives money back to where it came from, once for each refund number.
    fn refund<'a>(
        &'a self,
        refund: &'a Refund,
        of: &'a Payment,
    ) -> BoxFuture<'a, Result<RefundStanding, Failure>>;

    /// Tells how a refund stands.
    fn ask_refund<'a>(
        &'a self,
        refund: &'a Refund,
        of: &'a Payment,
    ) -> BoxFuture<'a, Result<RefundStanding, Failure>>;

    /// What an admin may know of its settings: no secret, at most the end of one.
    fn shown(&self) -> Vec<(&'static str, String)>;
}

/// A payment that was begun: where its payer goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    /// The provider's name of it, where later calls need that.
    pub reference: Option<String>,
    /// A page at the provider.
    pub payment_url: Option<String>,
    /// What a QR code has to say.
    pub qr_code: Option<String>,
}

/// How a payment stands at its provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The provider has never heard of it, or nobody has scanned its code yet.
    Missing,
    /// It can still be paid.
    Open,
    /// The money has come.
    Paid {
        transaction_id: String,
        amount: Money,
    },
    /// It failed, and nothing will come by it.
    Failed(String),
    /// It was given up, or its time is over; nothing will come by it.
    Closed,
}

/// How a refund stands at its provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefundStanding {
    /// The provider has never heard of it.
    Missing,
    /// On its way.
    Processing { reference: Option<String> },
    /// The money has gone back.
    Succeeded { reference: Option<String> },
    /// It will not go back by this refund.
    Failed(String),
}

/// Why a provider did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It said no, and will say so again.
    #[error("refused: {0}")]
    Refused(String),
    /// No answer, or none that tells whether it was done: ask again.
    #[error("unclear: {0}")]
    Unclear(String),
}

/// Which provider carries out which method.
#[derive(Clone, Default)]
pub struct Providers(Vec<(Method, Arc<dyn Provider>)>);

impl Providers {
    /// The providers that are configured; in the sandbox the provider of the sandbox stands in for the others.
    ///
    /// # Errors
    /// Where no HTTP client can be made.
    pub fn new(platform: &Platform, config: &Config) -> anyhow::Result<Self> {
        let (settings, keys) = (&config.providers, &config.webhooks);
        let mut providers: Vec<(Method, Arc<dyn Provider>)> = Vec::new();
        if let Some(settings) = &settings.stripe {
            let stripe = stripe::Stripe::new(platform, settings.clone())?;
            providers.push((Method::Stripe, Arc::new(stripe)));
        }
        if let Some(settings) = &settings.alipay {
            let alipay = alipay::Alipay::new(platform, settings.clone(), keys.alipay.as_ref())?;
            providers.push((Method::Alipay, Arc::new(alipay)));
        }
        if let Some(settings) = &settings.wechatpay {
            let keys = keys.wechatpay.as_ref();
            let wechatpay = wechatpay::WechatPay::new(platform, settings.clone(), keys)?;
            providers.push((Method::Wechat, Arc::new(wechatpay)));
        }
        if platform.settings.sandbox {
            let sandbox: Arc<dyn Provider> = Arc::new(sandbox::Sandbox::new(platform));
            for method in Method::OUTSIDE {
                if !providers.iter().any(|(taken, _)| *taken == method) {
                    providers.push((method, sandbox.clone()));
                }
            }
        }
        Ok(Self(providers))
    }

    /// Who carries out a method. Nobody: somebody else does, and tells us at `/webhooks/payment`.
    pub fn of(&self, method: Method) -> Option<&dyn Provider> {
        let found = self.0.iter().find(|(theirs, _)| *theirs == method);
        found.map(|(_, provider)| &**provider)
    }

    /// The provider of a name.
    pub fn named(&self, name: &str) -> Option<&dyn Provider> {
        let found = self.0.iter().find(|(_, provider)| provider.name() == name);
        found.map(|(_, provider)| &**provider)
    }
}

/// What a payer reads. The same for each attempt to begin a payment, as keys of idempotency want it.
fn subject(payment: &Payment) -> String {
    format!("Cloud phone {}", payment.payment_no)
}

fn sign(key: &SigningKey, text: &str) -> Result<String, Failure> {
    let signature = key.sign(text);
    signature.ok_or_else(|| Failure::Unclear("could not sign".to_owned()))
}
