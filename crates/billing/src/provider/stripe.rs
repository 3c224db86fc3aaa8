//! Stripe: a payment is a Checkout Session, whose page takes cards and the wallets that the account allows.
//! After <https://docs.stripe.com/api/checkout/sessions> and <https://docs.stripe.com/api/refunds>.

use chrono::TimeDelta;
use contracts::Money;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::StatusCode;
use platform::{Clock, Platform};
use reqwest::{Client, RequestBuilder, Url};
use secrecy::ExposeSecret;
use serde_json::Value;

use super::calls::{self, Answer};
use super::settings::StripeSettings;
use super::{Begun, Failure, Provider, RefundStanding, Standing, subject};
use crate::payment::Payment;
use crate::refund::Refund;

/// The version of the interface that these requests and answers are written in.
const VERSION: &str = "2024-06-20";
/// How long Stripe surely knows an idempotency key, and how long a session lives at most: a day, less an hour.
const KEYS_LIVE: TimeDelta = TimeDelta::hours(23);

pub struct Stripe {
    http: Client,
    clock: Clock,
    settings: StripeSettings,
}

impl Stripe {
    pub fn new(platform: &Platform, settings: StripeSettings) -> anyhow::Result<Self> {
        Ok(Self {
            http: calls::client()?,
            clock: platform.clock.clone(),
            settings,
        })
    }

    fn url(&self, segments: &[&str]) -> Result<Url, Failure> {
        let mut url = self.settings.url.clone();
        url.path_segments_mut()
            .map_err(|()| Failure::Refused("STRIPE_API_URL can have no path".to_owned()))?
            .pop_if_empty()
            .extend(segments);
        Ok(url)
    }

    async fn call(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let answer = self.answer(request).await?;
        said(&answer)
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Answer, Failure> {
        let request = request
            .bearer_auth(self.settings.api_key.expose_secret())
            .header("stripe-version", VERSION);
        calls::call(request).await
    }

    /// Makes the session, or gets the one that was made with the same key.
    async fn session(&self, payment: &Payment) -> Result<Value, Failure> {
        let back = self
            .settings
            .return_url
            .replace("{orderId}", payment.order_id.as_str())
            .replace("{paymentNo}", &payment.payment_no);
        let (order, number) = (payment.order_id.as_str(), payment.payment_no.as_str());
        let (fen, currency) = (
            payment.amount.fen().to_string(),
            payment.currency.to_ascii_lowercase(),
        );
        let subject = subject(payment);
        let form = [
            ("mode", "payment"),
            ("client_reference_id", order),
            ("line_items[0][quantity]", "1"),
            ("line_items[0][price_data][currency]", &currency),
            ("line_items[0][price_data][unit_amount]", &fen),
            ("line_items[0][price_data][product_data][name]", &subject),
            ("metadata[order_id]", order),
            ("metadata[payment_no]", number),
            ("payment_intent_data[metadata][order_id]", order),
            ("payment_intent_data[metadata][payment_no]", number),
            ("success_url", &back),
            ("cancel_url", &back),
        ];
        let request = self
            .http
            .post(self.url(&["v1", "checkout", "sessions"])?)
            .header("idempotency-key", number)
            .form(&form);
        self.call(request).await
    }

    async fn refund_made(&self, refund: &Refund, of: &Payment) -> Result<RefundStanding, Failure> {
        let intent = of.transaction_id.as_deref();
        let intent =
            intent.ok_or_else(|| Failure::Refused("the payment has no transaction".to_owned()))?;
        let form = [
            ("payment_intent", intent),
            ("amount", &refund.amount.fen().to_string()),
            ("metadata[refund_no]", refund.number()),
            ("metadata[payment_no]", &of.payment_no),
        ];
        let request = self
            .http
            .post(self.url(&["v1", "refunds"])?)
            .header("idempotency-key", refund.number())
            .form(&form);
        Ok(refund_standing(&self.call(request).await?))
    }

    async fn refund_found(&self, refund: &Refund, of: &Payment) -> Result<RefundStanding, Failure> {
        if let Some(reference) = &refund.provider_reference {
            let request = self.http.get(self.url(&["v1", "refunds", reference])?);
            return Ok(refund_standing(&self.call(request).await?));
        }
        let Some(intent) = &of.transaction_id else {
            return Ok(RefundStanding::Missing);
        };
        // A payment has few refunds: never more than a page.
        let request = self
            .http
            .get(self.url(&["v1", "refunds"])?)
            .query(&[("payment_intent", intent.as_str()), ("limit", "100")]);
        let list = self.call(request).await?;
        let refunds = list["data"].as_array().map_or(&[][..], Vec::as_slice);
        let ours = |made: &&Value| made["metadata"]["refund_no"] == refund.number();
        Ok(refunds
            .iter()
            .find(ours)
            .map_or(RefundStanding::Missing, refund_standing))
    }
}

impl Provider for Stripe {
    fn name(&self) -> &'static str {
        "stripe"
    }

    fn begin<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<Begun, Failure>> {
        async move {
            let session = self.session(payment).await?;
            Ok(Begun {
                reference: text(&session["id"]),
                payment_url: text(&session["url"]),
                qr_code: None,
            })
        }
        .boxed()
    }

    fn ask<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<Standing, Failure>> {
        async move {
            let session = match &payment.provider_reference {
                Some(reference) => {
                    let path = ["v1", "checkout", "sessions", reference];
                    self.call(self.http.get(self.url(&path)?)).await?
                }
                // The answer that named it was lost. Its key finds it as long as it can be paid.
                None if self.clock.now() < payment.created_at + KEYS_LIVE => {
                    self.session(payment).await?
                }
                None => return Ok(Standing::Missing),
            };
            standing(&session)
        }
        .boxed()
    }

    fn close<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let reference = match &payment.provider_reference {
                Some(reference) => reference.clone(),
                None if self.clock.now() < payment.created_at + KEYS_LIVE => {
                    let session = self.session(payment).await?;
                    text(&session["id"])
                        .ok_or_else(|| Failure::Unclear("a session without an id".to_owned()))?
                }
                None => return Ok(()),
            };
            let path = ["v1", "checkout", "sessions", &reference, "expire"];
            self.call(self.http.post(self.url(&path)?)).await?;
            Ok(())
        }
        .boxed()
    }

    fn refund<'a>(
        &'a self,
        refund: &'a Refund,
        of: &'a Payment,
    ) -> BoxFuture<'a, Result<RefundStanding, Failure>> {
        self.refund_made(refund, of).boxed()
    }

    fn ask_refund<'a>(
        &'a self,
        refund: &'a Refund,
        of: &'a Payment,
    ) -> BoxFuture<'a, Result<RefundStanding, Failure>> {
        self.refund_found(refund, of).boxed()
    }

    fn shown(&self) -> Vec<(&'static str, String)> {
        let key = self.settings.api_key.expose_secret();
        let end: String = key.chars().skip(key.chars().count() - 4).collect();
        vec![
            ("apiUrl", self.settings.url.to_string()),
            ("apiKey", format!("…{end}")),
            ("returnUrl", self.settings.return_url.clone()),
        ]
    }
}

/// The body of an answer that is not a refusal.
fn said(answer: &Answer) -> Result<Value, Failure> {
    if answer.status.is_success() {
        return answer.json();
    }
    let body = answer.json().unwrap_or_default();
    let error = &body["error"];
    let words = error["message"].as_str().or(error["code"].as_str());
    // A key that was used with other parameters, or one of no account: nothing that waiting mends. Other faults with
    // 400 are final for this call too.
    if answer.status == StatusCode::NOT_FOUND {
        return Err(Failure::Refused("404 no such object".to_owned()));
    }
    Err(answer.failure(words.unwrap_or("without a reason")))
}

fn standing(session: &Value) -> Result<Standing, Failure> {
    let transaction = text(&session["payment_intent"]);
    match (
        session["status"].as_str(),
        session["payment_status"].as_str(),
    ) {
        (_, Some("paid")) => {
            let (Some(transaction_id), Some(fen)) = (transaction, session["amount_total"].as_i64())
            else {
                return Err(Failure::Unclear(
                    "paid, without payment or amount".to_owned(),
                ));
            };
            Ok(Standing::Paid {
                transaction_id,
                amount: Money(fen),
            })
        }
        (Some("expired"), _) => Ok(Standing::Closed),
        (Some("open" | "complete"), _) => Ok(Standing::Open),
        _ => Err(Failure::Unclear(
            "a session without a known status".to_owned(),
        )),
    }
}

fn refund_standing(refund: &Value) -> RefundStanding {
    let reference = text(&refund["id"]);
    match refund["status"].as_str() {
        Some("succeeded") => RefundStanding::Succeeded { reference },
        Some("failed" | "canceled") => {
            let reason = refund["failure_reason"].as_str();
            RefundStanding::Failed(calls::bounded(reason.unwrap_or("given up at the provider")))
        }
        _ => RefundStanding::Processing { reference },
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
