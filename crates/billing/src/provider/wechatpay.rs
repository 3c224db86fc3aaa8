//! WeChat Pay, interface 3: a payment is a code to be scanned (Native).
//! After <https://pay.weixin.qq.com/doc/v3/merchant/4012791874>.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use contracts::Money;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, StatusCode};
use platform::{Clock, Platform};
use reqwest::Client;
use serde_json::{Value, json};

use super::calls::{self, Answer};
use super::settings::WechatPaySettings;
use super::{Begun, Failure, Provider, RefundStanding, Standing, sign, subject};
use crate::payment::Payment;
use crate::refund::Refund;
use crate::rsa::VerifyingKey;
use crate::webhook;
use crate::webhook::settings::WechatPayKeys;

pub struct WechatPay {
    http: Client,
    clock: Clock,
    settings: WechatPaySettings,
    /// Its keys; where none is set, TLS alone says that it is WeChat Pay who answers.
    keys: Option<Vec<(String, VerifyingKey)>>,
}

impl WechatPay {
    pub fn new(
        platform: &Platform,
        settings: WechatPaySettings,
        keys: Option<&WechatPayKeys>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            keys: keys.map(|keys| keys.keys.clone()),
            http: calls::client()?,
            clock: platform.clock.clone(),
            settings,
        })
    }

    /// Calls a path with its query; our numbers need no escapes in it.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, Failure> {
        let body = body.map_or_else(String::new, |body| body.to_string());
        let url = self.settings.url.join(path);
        let url = url.map_err(|_| Failure::Refused("WECHATPAY_API_URL".to_owned()))?;
        let timestamp = self.clock.now().utc().timestamp();
        let nonce = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
        let signed = format!("{method}\n{path}\n{timestamp}\n{nonce}\n{body}\n");
        let signature = sign(&self.settings.key, &signed)?;
        let credential = format!(
            "WECHATPAY2-SHA256-RSA2048 mchid=\"{}\",nonce_str=\"{nonce}\",signature=\"{signature}\",timestamp=\"{timestamp}\",serial_no=\"{}\"",
            self.settings.merchant, self.settings.serial
        );
        let request = self
            .http
            .request(method, url)
            .header(http::header::AUTHORIZATION, credential)
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::CONTENT_TYPE, "application/json")
            // Without an agent of its own a call is refused.
            .header(http::header::USER_AGENT, "cloudphone")
            .body(body);
        let answer = calls::call(request).await?;
        if let Some(keys) = self.keys.as_ref().filter(|_| answer.status.is_success()) {
            let now = self.clock.now();
            webhook::wechatpay::verify(&answer.headers, &answer.body, keys, now).map_err(
                |error| Failure::Unclear(format!("the answer is not believed: {error}")),
            )?;
        }
        Ok(answer)
    }
}

impl Provider for WechatPay {
    fn name(&self) -> &'static str {
        "wechatpay"
    }

    fn begin<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<Begun, Failure>> {
        async move {
            let body = json!({
                "appid": self.settings.app_id,
                "mchid": self.settings.merchant,
                "description": subject(payment),
                "out_trade_no": payment.payment_no,
                "time_expire": payment.expires_at.utc().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
                "notify_url": self.settings.notify_url,
                "amount": { "total": payment.amount.fen(), "currency": payment.currency },
            });
            let path = "/v3/pay/transactions/native";
            let said = done(self.call(Method::POST, path, Some(body)).await?)?;
            Ok(Begun {
                reference: None,
                payment_url: None,
                qr_code: said["code_url"].as_str().map(str::to_owned),
            })
        }
        .boxed()
    }

    fn ask<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<Standing, Failure>> {
        async move {
            let path = format!(
                "/v3/pay/transactions/out-trade-no/{}?mchid={}",
                payment.payment_no, self.settings.merchant
            );
            let answer = self.call(Method::GET, &path, None).await?;
            if is_missing(&answer) {
                return Ok(Standing::Missing);
            }
            standing(&done(answer)?)
        }
        .boxed()
    }

    fn close<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let path = format!(
                "/v3/pay/transactions/out-trade-no/{}/close",
                payment.payment_no
            );
            let body = json!({ "mchid": self.settings.merchant });
            let answer = self.call(Method::POST, &path, Some(body)).await?;
            if answer.status == StatusCode::NO_CONTENT
                || is_missing(&answer)
                || code(&answer) == "ORDER_CLOSED"
            {
                return Ok(());
            }
            done(answer).map(drop)
        }
        .boxed()
    }

    fn refund<'a>(
        &'a self,
        refund: &'a Refund,
        of: &'a Payment,
    ) -> BoxFuture<'a, Result<RefundStanding, Failure>> {
        async move {
            let body = json!({
                "out_trade_no": of.payment_no,
                "out_refund_no": refund.number(),
                "reason": refund.reason.chars().take(26).collect::<String>(),
                "amount": { "refund": refund.amount.fen(), "total": of.amount.fen(), "currency": of.currency },
            });
            let path = "/v3/refund/domestic/refunds";
            Ok(refund_standing(&done(
                self.call(Method::POST, path, Some(body)).await?,
            )?))
        }
        .boxed()
    }

    fn ask_refund<'a>(
        &'a self,
        refund: &'a Refund,
        _: &'a Payment,
    ) -> BoxFuture<'a, Result<RefundStanding, Failure>> {
        async move {
            let path = format!("/v3/refund/domestic/refunds/{}", refund.number());
            let answer = self.call(Method::GET, &path, None).await?;
            if is_missing(&answer) {
                return Ok(RefundStanding::Missing);
            }
            Ok(refund_standing(&done(answer)?))
        }
        .boxed()
    }

    fn shown(&self) -> Vec<(&'static str, String)> {
        vec![
            ("apiUrl", self.settings.url.to_string()),
            ("appId", self.settings.app_id.clone()),
            ("merchantId", self.settings.merchant.clone()),
            ("keySerial", self.settings.serial.clone()),
            ("notifyUrl", self.settings.notify_url.clone()),
        ]
    }
}

fn code(answer: &Answer) -> String {
    let body = answer.json().unwrap_or_default();
    body["code"].as_str().unwrap_or_default().to_owned()
}

fn is_missing(answer: &Answer) -> bool {
    answer.status == StatusCode::NOT_FOUND
        && matches!(
            &*code(answer),
            "ORDER_NOT_EXIST" | "ORDERNOTEXIST" | "RESOURCE_NOT_EXISTS"
        )
}

fn done(answer: Answer) -> Result<Value, Failure> {
    if answer.status.is_success() {
        return answer.json();
    }
    let body = answer.json().unwrap_or_default();
    let code = body["code"].as_str().unwrap_or("no code");
    let words = format!("{code} {}", body["message"].as_str().unwrap_or_default());
    // Both tell to call again with the same number.
    if matches!(code, "SYSTEM_ERROR" | "FREQUENCY_LIMITED") {
        return Err(Failure::Unclear(calls::bounded(&words)));
    }
    Err(answer.failure(&words))
}

fn standing(said: &Value) -> Result<Standing, Failure> {
    match said["trade_state"].as_str() {
        // One that was given back was paid before.
        Some("SUCCESS" | "REFUND") => {
            let transaction = said["transaction_id"].as_str();
            let (Some(transaction_id), Some(fen)) = (transaction, said["amount"]["total"].as_i64())
            else {
                return Err(Failure::Unclear(
                    "paid, without transaction or amount".to_owned(),
                ));
            };
            Ok(Standing::Paid {
                transaction_id: transaction_id.to_owned(),
                amount: Money(fen),
            })
        }
        Some("NOTPAY" | "USERPAYING" | "ACCEPT") => Ok(Standing::Open),
        Some("CLOSED" | "REVOKED") => Ok(Standing::Closed),
        Some("PAYERROR") => {
            let reason = said["trade_state_desc"].as_str();
            Ok(Standing::Failed(calls::bounded(reason.unwrap_or("failed"))))
        }
        _ => Err(Failure::Unclear("a trade without a known state".to_owned())),
    }
}

fn refund_standing(said: &Value) -> RefundStanding {
    let reference = said["refund_id"].as_str().map(str::to_owned);
    match said["status"].as_str() {
        Some("SUCCESS") => RefundStanding::Succeeded { reference },
        Some("CLOSED") => RefundStanding::Failed("closed by the provider".to_owned()),
        // It could not reach the payer's account; somebody has to look at it there, and then it goes on.
        _ => RefundStanding::Processing { reference },
    }
}
