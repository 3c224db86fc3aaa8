//! Notices of WeChat Pay, interface 3: RSA over time, nonce and body, the resource in AES-256-GCM.
//! After <https://pay.weixin.qq.com/doc/v3/merchant/4012071382>.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use contracts::{Money, Timestamp};
use http::HeaderMap;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::Outcome;
use super::message::{Message, RefundTold, Said, Stands};
use super::notice::{Notice, Status};
use super::rsa::VerifyingKey;
use super::settings::WechatPayKeys;
use super::signature::TOLERANCE;
use crate::rules::is_reference;
use crate::{Error, Result};

/// The headers that hold time, nonce, signature, and which key it is by.
pub const HEADERS: [&str; 4] = [
    "wechatpay-timestamp",
    "wechatpay-nonce",
    "wechatpay-signature",
    "wechatpay-serial",
];

/// Checks the signature under the key that the notice names.
///
/// # Errors
/// 401 where a header is missing, the time is too far off, the key is not one of ours, or it does not fit.
pub fn verify(
    headers: &HeaderMap,
    body: &[u8],
    keys: &[(String, VerifyingKey)],
    now: Timestamp,
) -> Result<()> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let [Some(time), Some(nonce), Some(signature), Some(serial)] = HEADERS.map(header) else {
        return Err(Error::BadSignature("the notice is not signed"));
    };
    let seconds: i64 = time
        .parse()
        .map_err(|_| Error::BadSignature("Wechatpay-Timestamp is not a number of seconds"))?;
    if now.utc().timestamp().abs_diff(seconds) > TOLERANCE.unsigned_abs() {
        return Err(Error::BadSignature(
            "Wechatpay-Timestamp is more than 5 minutes off",
        ));
    }
    let key = keys.iter().find(|(known, _)| known == serial);
    let (_, key) = key.ok_or(Error::BadSignature("Wechatpay-Serial is none of our keys"))?;
    let mut message = format!("{time}\n{nonce}\n").into_bytes();
    message.extend_from_slice(body);
    message.push(b'\n');
    if key.fits(&message, signature) {
        Ok(())
    } else {
        Err(Error::BadSignature("the signature does not fit"))
    }
}

/// Reads a believed body; `None` where it is no notice, or none of our keys opens it.
pub fn read(keys: &WechatPayKeys, body: &[u8]) -> Option<Message> {
    let envelope: Value = serde_json::from_slice(body).ok()?;
    let event_id = reference(&envelope["id"])?;
    let kind: String = envelope["event_type"].as_str()?.chars().take(64).collect();
    let resource = open(&keys.api_keys, &envelope["resource"])?;
    let merchant = resource["mchid"].as_str();
    let app = resource["appid"].as_str();
    let currency = &resource["amount"]["currency"];
    let foreign = |outcome| Said::Foreign {
        event: kind.clone(),
        outcome,
    };
    // Refunds name no application and no currency.
    let is_ours = match app {
        Some(app) => app == keys.app_id,
        None => kind.starts_with("REFUND."),
    };
    let said = if merchant != Some(&keys.merchant) || !is_ours {
        foreign(Outcome::MerchantMismatch)
    } else if currency.as_str().is_some_and(|currency| currency != "CNY") {
        foreign(Outcome::CurrencyMismatch)
    } else if kind == "TRANSACTION.SUCCESS" {
        let paid = resource["trade_state"] == "SUCCESS";
        Said::Payment {
            notice: Notice {
                order_id: None,
                payment_no: Some(reference(&resource["out_trade_no"])?),
                status: if paid { Status::Paid } else { Status::Failed },
                transaction_id: reference(&resource["transaction_id"]),
                amount: match paid {
                    true => Some(amount(&resource["amount"]["total"])?),
                    false => None,
                },
                event_id: None,
                provider: Some("wechatpay".to_owned()),
            },
        }
    } else if kind.starts_with("REFUND.") {
        Said::Refund {
            refund: RefundTold {
                payment_no: Some(reference(&resource["out_trade_no"])?),
                transaction_id: reference(&resource["transaction_id"]),
                refund_no: reference(&resource["out_refund_no"]),
                reference: reference(&resource["refund_id"]),
                amount: amount(&resource["amount"]["refund"])?,
                is_total: false,
                stands: match resource["refund_status"].as_str() {
                    Some("SUCCESS") => Stands::Succeeded,
                    Some("CLOSED") => Stands::Failed,
                    // It goes on once somebody has looked at it in the merchant's console.
                    _ => Stands::Processing,
                },
            },
        }
    } else {
        Said::Other { event: kind }
    };
    Some(Message {
        provider: "wechatpay",
        event_id,
        said,
    })
}

/// Opens the resource under any of the keys.
fn open(keys: &[SecretString], resource: &Value) -> Option<Value> {
    if resource["algorithm"] != "AEAD_AES_256_GCM" {
        return None;
    }
    let sealed = STANDARD.decode(resource["ciphertext"].as_str()?).ok()?;
    let nonce = resource["nonce"].as_str()?.as_bytes();
    let associated = resource["associated_data"].as_str().unwrap_or_default();
    keys.iter().find_map(|key| {
        let key = UnboundKey::new(&AES_256_GCM, key.expose_secret().as_bytes()).ok()?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut opened = sealed.clone();
        let plain = LessSafeKey::new(key)
            .open_in_place(nonce, Aad::from(associated.as_bytes()), &mut opened)
            .ok()?;
        serde_json::from_slice(plain).ok()
    })
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
