//! Notices of Stripe: HMAC-SHA256 over `t.body`. After <https://docs.stripe.com/webhooks#verify-manually>.

use contracts::Timestamp;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sha2::Sha256;

use super::Outcome;
use super::message::{Message, RefundTold, Said, Stands, amount, reference};
use super::notice::{Notice, Status};
use super::settings::StripeKeys;
use super::signature::TOLERANCE;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use contracts::Money;

    use super::*;
    use crate::webhook::message::tests::check_bounds;

    /// In the shape of Stripe's events; the code by Python's `hmac`, for no signed event is published.
    const SECRET: &str = "whsec_test_secret";
    const BODY: &[u8] = b"{\n  \"id\": \"evt_test_webhook\",\n  \"object\": \"event\"\n}";
    const TIME: i64 = 1_492_774_577;
    const CODE: &str = "c2f890decbc5ede7c5060bb9a6d31e0626a4342bacb9aeae2adb1bcea72f9812";

    fn secrets() -> Vec<SecretString> {
        vec!["whsec_of_before".into(), SECRET.into()]
    }

    fn check(header: &str, body: &[u8], seconds: i64) -> bool {
        let mut headers = HeaderMap::new();
        let Ok(value) = header.parse() else {
            return false;
        };
        headers.insert(HEADERS[0], value);
        let now = chrono::DateTime::from_timestamp(seconds, 0).unwrap();
        verify(&headers, body, &secrets(), now.into()).is_ok()
    }

    fn keys() -> StripeKeys {
        StripeKeys {
            secrets: secrets(),
            livemode: false,
            account: None,
        }
    }

    fn said(event: &Value) -> Said {
        read(&keys(), event.to_string().as_bytes()).unwrap().said
    }

    #[test]
    fn a_code_of_the_second_scheme_is_believed_under_any_secret_for_five_minutes() {
        let other = "0".repeat(64);
        for (header, seconds, is_believed) in [
            (format!("t={TIME},v1={CODE}"), TIME, true),
            (
                format!("t={TIME},v1={other},v1={CODE},v0={other}"),
                TIME,
                true,
            ),
            (format!("t={TIME}, v1={CODE}"), TIME + 300, true),
            (format!("t={TIME},v1={CODE}"), TIME + 301, false),
            (format!("t={TIME},v1={CODE}"), TIME - 301, false),
            (format!("t={TIME},v0={CODE}"), TIME, false),
            (format!("t={},v1={CODE}", TIME + 1), TIME, false),
            (format!("v1={CODE}"), TIME, false),
            (format!("t={TIME}"), TIME, false),
            (format!("t={TIME},v1={}", CODE.to_uppercase()), TIME, false),
            (format!("t={TIME},v1=+{}", &CODE[1..]), TIME, false),
            ("t=-9223372036854775808,v1=".to_owned(), TIME, false),
            (String::new(), TIME, false),
        ] {
            assert_eq!(check(&header, BODY, seconds), is_believed, "{header}");
        }
    }

    #[test]
    fn every_flipped_bit_of_body_and_header_is_refused() {
        let header = format!("t={TIME},v1={CODE}");
        assert!(check(&header, BODY, TIME));

        for bit in 0..BODY.len() * 8 {
            let mut body = BODY.to_vec();
            body[bit / 8] ^= 1 << (bit % 8);
            assert!(!check(&header, &body, TIME), "bit {bit} of the body");
        }
        for bit in 0..header.len() * 8 {
            let mut bytes = header.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(flipped) = String::from_utf8(bytes) {
                assert!(!check(&flipped, BODY, TIME), "bit {bit} of the header");
            }
        }
    }

    #[test]
    fn each_event_says_what_it_means() {
        let intent = |kind: &str| {
            json!({ "id": "evt_1", "type": kind, "livemode": false, "data": { "object": {
                "id": "pi_1", "currency": "cny", "amount_received": 9_900, "metadata": { "payment_no": "PAY1" } } } })
        };
        let session = |kind: &str, status: &str| {
            json!({ "id": "evt_1", "type": kind, "livemode": false, "data": { "object": {
                "id": "cs_1", "currency": "cny", "amount_total": 9_900, "payment_intent": "pi_1",
                "payment_status": status, "client_reference_id": "order-1", "metadata": {} } } })
        };
        for (event, expected) in [
            (intent("payment_intent.succeeded"), Some(Status::Paid)),
            (
                intent("payment_intent.payment_failed"),
                Some(Status::Failed),
            ),
            (intent("payment_intent.canceled"), Some(Status::Cancelled)),
            (intent("payment_intent.processing"), None),
            (intent("charge.dispute.created"), None),
            (
                session("checkout.session.completed", "paid"),
                Some(Status::Paid),
            ),
            (session("checkout.session.completed", "unpaid"), None),
            (
                session("checkout.session.async_payment_succeeded", "paid"),
                Some(Status::Paid),
            ),
            (
                session("checkout.session.async_payment_failed", "unpaid"),
                Some(Status::Failed),
            ),
            (
                session("checkout.session.expired", "unpaid"),
                Some(Status::Cancelled),
            ),
        ] {
            let told = match said(&event) {
                Said::Payment { notice } => {
                    assert_eq!(notice.transaction_id.as_deref(), Some("pi_1"));
                    assert!(notice.status != Status::Paid || notice.amount == Some(Money(9_900)));
                    Some(notice.status)
                }
                Said::Other { .. } => None,
                said => panic!("{said:?}"),
            };
            assert_eq!(told, expected, "{event}");
        }
    }

    #[test]
    fn another_mode_account_or_currency_is_foreign() {
        let good = json!({ "id": "evt_1", "type": "payment_intent.succeeded", "livemode": false, "data": { "object": {
            "id": "pi_1", "currency": "cny", "amount_received": 9_900, "metadata": { "order_id": "o" } } } });
        let outcome = |change: fn(&mut Value)| {
            let mut event = good.clone();
            change(&mut event);
            match said(&event) {
                Said::Foreign { outcome, .. } => Some(outcome),
                _ => None,
            }
        };

        assert_eq!(outcome(|_| {}), None);
        let mismatch = Some(Outcome::MerchantMismatch);
        assert_eq!(outcome(|event| event["livemode"] = true.into()), mismatch);
        assert_eq!(outcome(|event| event["livemode"] = Value::Null), mismatch);
        assert_eq!(
            outcome(|event| event["account"] = "acct_1".into()),
            mismatch
        );
        let dollars = |event: &mut Value| event["data"]["object"]["currency"] = "usd".into();
        assert_eq!(outcome(dollars), Some(Outcome::CurrencyMismatch));
    }

    #[test]
    fn a_refund_is_the_same_one_in_each_event_that_tells_of_it() {
        let refund = json!({ "id": "re_1", "object": "refund", "amount": 900, "currency": "cny", "payment_intent": "pi_1",
            "status": "succeeded", "metadata": {} });
        let updated = json!({ "id": "evt_1", "type": "refund.updated", "livemode": false, "data": { "object": refund } });
        let charge = json!({ "id": "evt_2", "type": "charge.refunded", "livemode": false, "data": { "object": {
            "id": "ch_1", "currency": "cny", "amount_refunded": 900, "refunds": { "data": [refund] } } } });
        let listless = json!({ "id": "evt_3", "type": "charge.refunded", "livemode": false, "data": { "object": {
            "id": "ch_1", "currency": "cny", "amount_refunded": 900 } } });

        let Said::Refund { refund } = said(&updated) else {
            panic!("no refund");
        };
        assert_eq!(refund.reference.as_deref(), Some("re_1"));
        assert_eq!(
            (refund.amount, refund.stands),
            (Money(900), Stands::Succeeded)
        );
        assert_eq!(said(&charge), Said::Refund { refund });
        assert!(matches!(said(&listless), Said::Other { .. }));
    }

    #[test]
    fn any_body_is_read_within_bounds_or_not_at_all() {
        const WORDS: [&str; 24] = [
            "id",
            "evt_1",
            "type",
            "data",
            "object",
            "metadata",
            "order_id",
            "payment_no",
            "livemode",
            "currency",
            "cny",
            "amount_received",
            "amount",
            "payment_intent",
            "status",
            "succeeded",
            "refund.updated",
            "payment_intent.succeeded",
            "checkout.session.completed",
            "payment_status",
            "paid",
            "client_reference_id",
            "amount_total",
            "charge.refunded",
        ];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(96)
            .for_each(|bytes: &[u8]| {
                let kind = WORDS[usize::from(bytes.first().copied().unwrap_or_default()) % WORDS.len()];
                let object = testkit::any::json(bytes, &WORDS);
                let event = json!({ "id": "evt_1", "type": kind, "livemode": false, "data": { "object": object } });
                for body in [event.to_string().as_bytes(), object.to_string().as_bytes(), bytes] {
                    if let Some(message) = read(&keys(), body) {
                        check_bounds(&message);
                    }
                    assert!(!check(&String::from_utf8_lossy(bytes), body, TIME));
                }
            });
    }
}
