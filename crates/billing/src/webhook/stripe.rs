//! Notices of Stripe: HMAC-SHA256 over `t.body`. After <https://docs.stripe.com/webhooks#verify-manually>.

use contracts::{Money, Timestamp};
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sha2::Sha256;

use super::Outcome;
use super::message::{Message, RefundTold, Said, Stands};
use super::notice::{Notice, Status};
use super::settings::StripeKeys;
use super::signature::TOLERANCE;
use crate::rules::is_reference;
use crate::{Error, Result};

/// The header that holds the time and the signatures.
pub const HEADERS: [&str; 1] = ["stripe-signature"];

/// Checks the signature under any of the secrets.
///
/// # Errors
/// 401 where the header is missing or unreadable, the time is too far off, or no secret fits.
pub fn verify(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
    now: Timestamp,
) -> Result<()> {
    let header = headers.get(HEADERS[0]);
    let header = header.and_then(|value| value.to_str().ok());
    let header = header.ok_or(Error::BadSignature("the notice is not signed"))?;
    let (mut time, mut given) = (None, Vec::new());
    for part in header.split(',') {
        match part.trim().split_once('=') {
            Some(("t", seconds)) if time.is_none() => time = Some(seconds),
            Some(("v1", code)) => given.extend(unhex(code)),
            _ => {}
        }
    }
    let time = time.ok_or(Error::BadSignature("the signature has no time"))?;
    let seconds: i64 = time
        .parse()
        .map_err(|_| Error::BadSignature("the signature's time is not a number of seconds"))?;
    if now.utc().timestamp().abs_diff(seconds) > TOLERANCE.unsigned_abs() {
        return Err(Error::BadSignature(
            "the signature's time is more than 5 minutes off",
        ));
    }
    let mut fits = false;
    for secret in secrets {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())
            .expect("HMAC takes keys of any length");
        mac.update(format!("{time}.").as_bytes());
        mac.update(body);
        for code in &given {
            // Compared in constant time.
            fits |= mac.clone().verify_slice(code).is_ok();
        }
    }
    if fits {
        Ok(())
    } else {
        Err(Error::BadSignature(
            "the signature fits none of our secrets",
        ))
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    // As Stripe writes it: one text for one code.
    let is_hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 64 || !text.bytes().all(is_hex) {
        return None;
    }
    (0..32)
        .map(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok())
        .collect()
}

/// Reads a believed body; `None` where it is no event.
pub fn read(keys: &StripeKeys, body: &[u8]) -> Option<Message> {
    let event: Value = serde_json::from_slice(body).ok()?;
    let event_id = reference(&event["id"])?;
    let kind = event["type"].as_str()?.chars().take(64).collect::<String>();
    let object = &event["data"]["object"];
    let said = match &*kind {
        "checkout.session.completed" if object["payment_status"] != "paid" => None,
        "checkout.session.completed" | "checkout.session.async_payment_succeeded" => payment(
            object,
            Status::Paid,
            &object["payment_intent"],
            &object["amount_total"],
        ),
        "checkout.session.async_payment_failed" => payment(
            object,
            Status::Failed,
            &object["payment_intent"],
            &Value::Null,
        ),
        "checkout.session.expired" => payment(
            object,
            Status::Cancelled,
            &object["payment_intent"],
            &Value::Null,
        ),
        "payment_intent.succeeded" => payment(
            object,
            Status::Paid,
            &object["id"],
            &object["amount_received"],
        ),
        "payment_intent.payment_failed" => {
            payment(object, Status::Failed, &object["id"], &Value::Null)
        }
        "payment_intent.canceled" => {
            payment(object, Status::Cancelled, &object["id"], &Value::Null)
        }
        "refund.created" | "refund.updated" | "refund.failed" | "charge.refund.updated" => {
            refund(object)
        }
        // Interfaces from 2022-11-15 on leave the list out and send the events above.
        "charge.refunded" => refund(&object["refunds"]["data"][0]),
        _ => None,
    };
    let said = match said {
        // What names neither order nor payment of ours was sold by somebody else on the same account.
        None => Said::Other { event: kind },
        Some(_) if !keys.are_for(&event) => Said::Foreign {
            event: kind,
            outcome: Outcome::MerchantMismatch,
        },
        Some(_) if !is_yuan(&object["currency"]) => Said::Foreign {
            event: kind,
            outcome: Outcome::CurrencyMismatch,
        },
        Some(said) => said,
    };
    Some(Message {
        provider: "stripe",
        event_id,
        said,
    })
}

impl StripeKeys {
    fn are_for(&self, event: &Value) -> bool {
        let account = event["account"].as_str();
        event["livemode"].as_bool() == Some(self.livemode) && account == self.account.as_deref()
    }
}

fn payment(object: &Value, status: Status, transaction: &Value, fen: &Value) -> Option<Said> {
    let metadata = &object["metadata"];
    let order_id = reference(&metadata["order_id"]).or(reference(&object["client_reference_id"]));
    let payment_no = reference(&metadata["payment_no"]);
    if order_id.is_none() && payment_no.is_none() {
        return None;
    }
    let amount = match status {
        // Without an amount nobody can tell that it is the one due.
        Status::Paid | Status::Success => Some(amount(fen)?),
        Status::Failed | Status::Cancelled => None,
    };
    Some(Said::Payment {
        notice: Notice {
            order_id,
            payment_no,
            status,
            transaction_id: reference(transaction),
            amount,
            event_id: None,
            provider: Some("stripe".to_owned()),
        },
    })
}

fn refund(object: &Value) -> Option<Said> {
    let metadata = &object["metadata"];
    let transaction_id = reference(&object["payment_intent"]);
    let payment_no = reference(&metadata["payment_no"]);
    if transaction_id.is_none() && payment_no.is_none() {
        return None;
    }
    Some(Said::Refund {
        refund: RefundTold {
            payment_no,
            transaction_id,
            refund_no: reference(&metadata["refund_no"]),
            reference: Some(reference(&object["id"])?),
            amount: amount(&object["amount"])?,
            is_total: false,
            stands: match object["status"].as_str() {
                Some("succeeded") => Stands::Succeeded,
                Some("failed" | "canceled") => Stands::Failed,
                _ => Stands::Processing,
            },
        },
    })
}

fn is_yuan(currency: &Value) -> bool {
    let currency = currency.as_str().unwrap_or_default();
    currency.eq_ignore_ascii_case("cny")
}

fn amount(fen: &Value) -> Option<Money> {
    let fen = fen.as_i64()?;
    (1..=Money::MAX_INPUT.fen())
        .contains(&fen)
        .then_some(Money(fen))
}

fn reference(value: &Value) -> Option<String> {
    value
        .as_str()
        .filter(|text| is_reference(text))
        .map(str::to_owned)
}
