//! Alipay: a payment is a code to be scanned (`alipay.trade.precreate`).
//! After <https://opendocs.alipay.com/open/02ekfg>; signed by RSA2.

use std::collections::{BTreeMap, HashMap};

use chrono::{FixedOffset, TimeDelta};
use contracts::{Money, Timestamp};
use futures::FutureExt;
use futures::future::BoxFuture;
use platform::{Clock, Platform};
use reqwest::Client;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::calls::{self, Answer};
use super::settings::AlipaySettings;
use super::{Begun, Failure, Provider, RefundStanding, Standing, sign, subject};
use crate::payment::Payment;
use crate::refund::Refund;
use crate::rsa::VerifyingKey;
use crate::webhook::settings::AlipayKeys;

/// Alipay reckons in the time of Beijing.
const BEIJING: Option<FixedOffset> = FixedOffset::east_opt(8 * 3600);
/// How long after its time a code may still be in use.
const GRACE: TimeDelta = TimeDelta::minutes(1);

pub struct Alipay {
    http: Client,
    clock: Clock,
    settings: AlipaySettings,
    /// Its keys; where none is set, TLS alone says that it is Alipay who answers.
    keys: Option<Vec<VerifyingKey>>,
}

/// An answer of Alipay's business.
enum Said {
    Done(Value),
    /// The trade is not there: before a code is scanned, it never is.
    NoTrade,
}

impl Alipay {
    pub fn new(
        platform: &Platform,
        settings: AlipaySettings,
        keys: Option<&AlipayKeys>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            keys: keys.map(|keys| keys.keys.clone()),
            http: calls::client()?,
            clock: platform.clock.clone(),
            settings,
        })
    }

    async fn call(&self, method: &str, content: Value) -> Result<Said, Failure> {
        let mut form = BTreeMap::from([
            ("app_id", self.settings.app_id.clone()),
            ("biz_content", content.to_string()),
            ("charset", "utf-8".to_owned()),
            ("format", "JSON".to_owned()),
            ("method", method.to_owned()),
            ("notify_url", self.settings.notify_url.clone()),
            ("sign_type", "RSA2".to_owned()),
            ("timestamp", local(self.clock.now())),
            ("version", "1.0".to_owned()),
        ]);
        let signed: Vec<String> = form
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        form.insert("sign", sign(&self.settings.key, &signed.join("&"))?);
        let request = self.http.post(self.settings.url.clone()).form(&form);
        let answer = calls::call(request).await?;
        if !answer.status.is_success() {
            // Faults of the business come with 200; anything else is the network's.
            return Err(Failure::Unclear(format!("status {}", answer.status)));
        }
        let said = self.believe(&answer, method)?;
        let sub_code = said["sub_code"].as_str().unwrap_or_default();
        let words = calls::bounded(&format!(
            "{} {sub_code} {}",
            said["code"].as_str().unwrap_or("no code"),
            said["sub_msg"].as_str().unwrap_or_default()
        ));
        match said["code"].as_str() {
            Some("10000") => Ok(Said::Done(said)),
            _ if sub_code == "ACQ.TRADE_NOT_EXIST" => Ok(Said::NoTrade),
            _ if sub_code.ends_with("SYSTEM_ERROR") => Err(Failure::Unclear(words)),
            Some("40001" | "40002" | "40003" | "40004" | "40006") => Err(Failure::Refused(words)),
            _ => Err(Failure::Unclear(words)),
        }
    }
}

impl Alipay {
    /// What an answer says, if it is signed: over the very text of what it says. Refusals of a call that Alipay could not
    /// attribute are not signed.
    fn believe(&self, answer: &Answer, method: &str) -> Result<Value, Failure> {
        let unclear = |_| Failure::Unclear("the answer is not one of Alipay's".to_owned());
        let body: HashMap<String, Box<RawValue>> =
            serde_json::from_slice(&answer.body).map_err(unclear)?;
        if let Some(refusal) = body.get("error_response") {
            return serde_json::from_str(refusal.get()).map_err(unclear);
        }
        let said = body.get(&format!("{}_response", method.replace('.', "_")));
        let said = said.ok_or_else(|| Failure::Unclear("the answer says nothing".to_owned()))?;
        if let Some(keys) = &self.keys {
            let sign = body
                .get("sign")
                .map(|sign| serde_json::from_str(sign.get()));
            let sign: String = sign.and_then(Result::ok).unwrap_or_default();
            let signed = said.get().as_bytes();
            if !keys.iter().any(|key| key.fits(signed, &sign)) {
                return Err(Failure::Unclear(
                    "the answer's signature does not fit".to_owned(),
                ));
            }
        }
        serde_json::from_str(said.get()).map_err(unclear)
    }
}

impl Provider for Alipay {
    fn name(&self) -> &'static str {
        "alipay"
    }

    fn begin<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<Begun, Failure>> {
        async move {
            let content = json!({
                "out_trade_no": payment.payment_no,
                "total_amount": payment.amount.to_string(),
                "subject": subject(payment),
                "time_expire": local(payment.expires_at),
            });
            match self.call("alipay.trade.precreate", content).await? {
                Said::Done(said) => Ok(Begun {
                    reference: None,
                    payment_url: None,
                    qr_code: said["qr_code"].as_str().map(str::to_owned),
                }),
                Said::NoTrade => Err(Failure::Unclear("no trade was made".to_owned())),
            }
        }
        .boxed()
    }

    fn ask<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<Standing, Failure>> {
        async move {
            let content = json!({ "out_trade_no": payment.payment_no });
            match self.call("alipay.trade.query", content).await? {
                Said::Done(said) => standing(&said),
                Said::NoTrade => Ok(Standing::Missing),
            }
        }
        .boxed()
    }

    fn close<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let content = json!({ "out_trade_no": payment.payment_no });
            match self.call("alipay.trade.close", content).await? {
                Said::Done(_) => Ok(()),
                // A code that nobody has scanned can be until its time is over, and there is nothing to close.
                Said::NoTrade if self.clock.now() > payment.expires_at + GRACE => Ok(()),
                Said::NoTrade => Err(Failure::Unclear("its code can still be scanned".to_owned())),
            }
        }
        .boxed()
    }

    fn refund<'a>(
        &'a self,
        refund: &'a Refund,
        of: &'a Payment,
    ) -> BoxFuture<'a, Result<RefundStanding, Failure>> {
        async move {
            let content = json!({
                "out_trade_no": of.payment_no,
                "refund_amount": refund.amount.to_string(),
                "out_request_no": refund.number(),
                "refund_reason": refund.reason.chars().take(100).collect::<String>(),
            });
            match self.call("alipay.trade.refund", content).await? {
                Said::Done(said) if said["fund_change"] == "Y" => {
                    Ok(RefundStanding::Succeeded { reference: None })
                }
                // No money moved by this call: an earlier one moved it, or it is on its way.
                Said::Done(_) => Ok(RefundStanding::Processing { reference: None }),
                Said::NoTrade => Err(Failure::Refused("the trade is not there".to_owned())),
            }
        }
        .boxed()
    }

    fn ask_refund<'a>(
        &'a self,
        refund: &'a Refund,
        of: &'a Payment,
    ) -> BoxFuture<'a, Result<RefundStanding, Failure>> {
        async move {
            let content =
                json!({ "out_trade_no": of.payment_no, "out_request_no": refund.number() });
            match self
                .call("alipay.trade.fastpay.refund.query", content)
                .await?
            {
                Said::Done(said) if said["refund_status"] == "REFUND_SUCCESS" => {
                    Ok(RefundStanding::Succeeded { reference: None })
                }
                Said::Done(_) | Said::NoTrade => Ok(RefundStanding::Missing),
            }
        }
        .boxed()
    }

    fn shown(&self) -> Vec<(&'static str, String)> {
        vec![
            ("apiUrl", self.settings.url.to_string()),
            ("appId", self.settings.app_id.clone()),
            ("notifyUrl", self.settings.notify_url.clone()),
        ]
    }
}

fn standing(said: &Value) -> Result<Standing, Failure> {
    match said["trade_status"].as_str() {
        Some("TRADE_SUCCESS" | "TRADE_FINISHED") => {
            let amount = said["total_amount"]
                .as_str()
                .and_then(|text| text.parse().ok());
            let (Some(transaction_id), Some(amount)) = (said["trade_no"].as_str(), amount) else {
                return Err(Failure::Unclear("paid, without trade or amount".to_owned()));
            };
            let amount: Money = amount;
            Ok(Standing::Paid {
                transaction_id: transaction_id.to_owned(),
                amount,
            })
        }
        Some("TRADE_CLOSED") => Ok(Standing::Closed),
        Some("WAIT_BUYER_PAY") => Ok(Standing::Open),
        _ => Err(Failure::Unclear(
            "a trade without a known status".to_owned(),
        )),
    }
}

fn local(moment: Timestamp) -> String {
    let moment = moment.utc();
    match BEIJING {
        Some(beijing) => moment.with_timezone(&beijing).naive_local(),
        None => moment.naive_utc(),
    }
    .format("%Y-%m-%d %H:%M:%S")
    .to_string()
}
