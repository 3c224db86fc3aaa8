//! What a notice says, in JSON or as a form.

use contracts::Money;
use garde::Validate;
use http::{HeaderMap, HeaderValue, header};
use platform::Problem;
use platform::http::FormOrJson;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::message::Said;
use crate::rules;

/// A notice of a payment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// The order, where the payment is not named.
    #[serde(default, deserialize_with = "text")]
    #[garde(custom(rules::reference))]
    pub order_id: Option<String>,
    /// The payment, where the order is not named.
    #[serde(default, deserialize_with = "text")]
    #[garde(custom(rules::reference))]
    pub payment_no: Option<String>,
    #[garde(skip)]
    pub status: Status,
    /// The provider's name of the payment.
    #[serde(default, deserialize_with = "text")]
    #[garde(custom(rules::reference))]
    pub transaction_id: Option<String>,
    /// Where it is sent, it must be what is due.
    #[garde(custom(rules::optional_amount))]
    pub amount: Option<Money>,
    /// The provider's name of the notice.
    #[serde(default, deserialize_with = "text")]
    #[garde(custom(rules::reference))]
    pub event_id: Option<String>,
    #[serde(default, deserialize_with = "text")]
    #[garde(custom(rules::reference))]
    pub provider: Option<String>,
}

/// The words by which a notice tells what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Paid,
    /// The same as `paid`.
    Success,
    Failed,
    Cancelled,
}

/// What a notice tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Told {
    Paid,
    Failed,
    Cancelled,
}

/// By what names a notice knows its payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub transaction_id: Option<String>,
    pub payment_no: Option<String>,
}

impl Names {
    /// Whether both may be about one payment: they do not name different ones.
    pub fn may_be(&self, other: &Self) -> bool {
        if let (Some(one), Some(two)) = (&self.transaction_id, &other.transaction_id) {
            return one == two;
        }
        match (&self.payment_no, &other.payment_no) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        }
    }
}

impl Told {
    /// The word in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Paid => "paid",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Notice {
    /// What it tells of.
    pub fn told(&self) -> Told {
        match self.status {
            Status::Paid | Status::Success => Told::Paid,
            Status::Failed => Told::Failed,
            Status::Cancelled => Told::Cancelled,
        }
    }

    /// By what names it knows its payment.
    pub fn names(&self) -> Names {
        Names {
            transaction_id: self.transaction_id.clone(),
            payment_no: self.payment_no.clone(),
        }
    }

    /// Whose event ids these are.
    pub fn provider(&self) -> &str {
        self.provider.as_deref().unwrap_or("generic")
    }

    /// What names the event: its header, its own id, or else what it says.
    pub fn event_key(&self, webhook_id: Option<&str>) -> String {
        if let Some(id) = webhook_id {
            return format!("id:{id}");
        }
        if let Some(id) = &self.event_id {
            return format!("event:{id}");
        }
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        let parts = [
            part(&self.order_id),
            part(&self.payment_no),
            part(&self.transaction_id),
            self.told().name().to_owned(),
        ];
        format!("said:{}", Value::from(parts.to_vec()))
    }
}

/// Reads the body of a notice, whose raw bytes were needed first.
///
/// # Errors
/// 400 with every field at fault, 415 for another media type.
pub fn read(headers: &HeaderMap, bytes: &[u8]) -> Result<Notice, Problem> {
    let notice: Notice = match form(headers, bytes) {
        Some(form) => FormOrJson::parse(&HeaderMap::new(), &form)?,
        None => FormOrJson::parse(headers, bytes)?,
    };
    if notice.order_id.is_none() && notice.payment_no.is_none() {
        return Err(Problem::invalid_field(
            "orderId",
            "is required, or paymentNo",
        ));
    }
    Ok(notice)
}

/// Reads a generic notice whose media type nobody kept.
pub fn said_before(bytes: &[u8]) -> Option<Said> {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-www-form-urlencoded"),
    );
    let notice = read(&headers, bytes).ok()?;
    Some(Said::Payment { notice })
}

/// A form as JSON: only the amount is a number, so that `12e4` stays the id it is.
fn form(headers: &HeaderMap, bytes: &[u8]) -> Option<Vec<u8>> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let is_form = kind
        .to_ascii_lowercase()
        .starts_with("application/x-www-form-urlencoded");
    // `curl -d '{…}'` sends JSON and calls it a form.
    if !is_form || bytes.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let field = |(name, text): (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)| {
        let number = serde_json::from_str::<Value>(&text).ok();
        let value = match number.filter(|value| name == "amount" && value.is_number()) {
            Some(number) => number,
            None => Value::String(text.into_owned()),
        };
        (name.into_owned(), value)
    };
    let object: Map<String, Value> = form_urlencoded::parse(bytes).map(field).collect();
    serde_json::to_vec(&object).ok()
}

/// A name, which some senders write as a number.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Option::<Value>::deserialize(deserializer)? {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => {
            Ok(Some(number.to_string()))
        }
        Some(_) => Err(serde::de::Error::custom("must be a text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form_headers() -> HeaderMap {
        let mut headers = HeaderMap::new();
        let kind = "application/x-www-form-urlencoded".parse().unwrap();
        headers.insert(header::CONTENT_TYPE, kind);
        headers
    }

    #[test]
    fn a_form_says_the_same_as_json() {
        let form = read(&form_headers(), b"orderId=12e4&status=success&amount=99.00").unwrap();
        let json = read(
            &HeaderMap::new(),
            br#"{"orderId":"12e4","status":"paid","amount":99}"#,
        )
        .unwrap();
        let mistaken = read(&form_headers(), br#"{"orderId":"12e4","status":"paid"}"#).unwrap();

        assert_eq!(form.order_id, json.order_id);
        assert_eq!((form.told(), form.amount), (json.told(), json.amount));
        assert_eq!(form.event_key(None), mistaken.event_key(None));
    }

    #[test]
    fn every_fault_is_told() {
        for (body, fields) in [
            (r#"{"status":"paid"}"#, vec!["orderId"]),
            (
                r#"{"orderId":"o","status":"perhaps","amount":0.001}"#,
                vec!["amount", "status"],
            ),
            (
                r#"{"orderId":{},"status":"no","amount":-1}"#,
                vec!["amount", "orderId", "status"],
            ),
        ] {
            let problem = read(&HeaderMap::new(), body.as_bytes()).unwrap_err();

            let mut told: Vec<_> = problem.fields().collect();
            told.sort_unstable();
            assert_eq!(told, fields, "{body}");
        }
    }

    #[test]
    fn any_body_is_a_notice_that_the_store_can_take_or_refused_by_field() {
        const WORDS: [&str; 24] = [
            "orderId",
            "status",
            "amount",
            "paymentNo",
            "transactionId",
            "eventId",
            "provider",
            "paid",
            "success",
            "failed",
            "12e4",
            "0.01",
            "=",
            "&",
            "o-1",
            "{",
            "}",
            ":",
            "\"",
            "orderId=o&status=paid",
            "%00",
            "\"orderId\":1,\"status\":\"paid\"",
            "99",
            "x",
        ];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(64)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let json = testkit::any::json(bytes, &WORDS).to_string();
                for headers in [HeaderMap::new(), form_headers()] {
                    for body in [text.as_bytes(), json.as_bytes(), bytes] {
                        match read(&headers, body) {
                            Ok(notice) => {
                                assert!(notice.order_id.is_some() || notice.payment_no.is_some());
                                let texts = [
                                    &notice.order_id,
                                    &notice.payment_no,
                                    &notice.transaction_id,
                                    &notice.event_id,
                                    &notice.provider,
                                ];
                                for said in texts.into_iter().flatten() {
                                    assert!(
                                        (1..=128).contains(&said.chars().count())
                                            && !said.contains('\0'),
                                        "{text}"
                                    );
                                }
                                assert!(
                                    notice
                                        .amount
                                        .is_none_or(|amount| (Money(1)..=Money::MAX_INPUT)
                                            .contains(&amount)),
                                    "{text}"
                                );
                                assert!(!notice.event_key(None).contains('\0'));
                            }
                            Err(problem) => assert!(problem.fields().count() > 0, "{text}"),
                        }
                    }
                }
            });
    }
}
