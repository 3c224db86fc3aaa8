//! Notices of Alipay: a form, RSA2 over its sorted fields. After <https://opendocs.alipay.com/open/270/105902>.

use std::collections::BTreeMap;

use contracts::Money;

use super::Outcome;
use super::message::{Message, RefundTold, Said, Stands};
use super::notice::{Notice, Status};
use super::rsa::VerifyingKey;
use super::settings::AlipayKeys;
use crate::rules::is_reference;
use crate::{Error, Result};

/// Fields of a form, more than Alipay ever sends.
const MOST_FIELDS: usize = 200;

/// Checks the signature under any of Alipay's keys.
///
/// # Errors
/// 401 where a field comes twice, there is no signature, or no key fits.
pub fn verify(body: &[u8], keys: &[VerifyingKey]) -> Result<()> {
    let fields = fields(body).ok_or(Error::BadSignature("the notice is not a form of Alipay"))?;
    let signature = text(&fields, "sign").ok_or(Error::BadSignature("the notice is not signed"))?;
    let kind = fields.get(&b"sign_type"[..]);
    if kind.is_some_and(|kind| kind != b"RSA2") {
        return Err(Error::BadSignature("sign_type is not RSA2"));
    }
    // Alipay's library for Java signs empty fields, the one for PHP leaves them out; what they say is the same.
    let signed = |with_empty: bool| {
        let parts = fields.iter().filter(|(name, value)| {
            !matches!(&***name, b"sign" | b"sign_type") && (with_empty || !value.is_empty())
        });
        let parts = parts.map(|(name, value)| [name, &b"="[..], value].concat());
        parts.collect::<Vec<_>>().join(&b'&')
    };
    let messages = [signed(true), signed(false)];
    let fits = messages
        .iter()
        .any(|message| keys.iter().any(|key| key.fits(message, signature)));
    if fits {
        Ok(())
    } else {
        Err(Error::BadSignature(
            "the signature fits none of Alipay's keys",
        ))
    }
}

/// The fields in the order of their names, as bytes: what is signed is text in the notice's charset, UTF-8 or GBK, and
/// what we read of it is ASCII in both.
fn fields(body: &[u8]) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut fields = BTreeMap::new();
    for pair in body.split(|byte| *byte == b'&') {
        let split = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (unescape(&pair[..split])?, unescape(&pair[split + 1..])?);
        // Of two fields with one name nobody could say which was meant.
        if fields.len() == MOST_FIELDS || fields.insert(name, value).is_some() {
            return None;
        }
    }
    Some(fields)
}

fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let mut bytes = text.iter();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'+' => b' ',
            b'%' => u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?,
            byte => *byte,
        });
    }
    Some(plain)
}

fn text<'a>(fields: &'a BTreeMap<Vec<u8>, Vec<u8>>, name: &str) -> Option<&'a str> {
    std::str::from_utf8(fields.get(name.as_bytes())?).ok()
}

/// Reads a believed body; `None` where it is no notice.
pub fn read(keys: &AlipayKeys, body: &[u8]) -> Option<Message> {
    let fields = fields(body)?;
    let field = |name: &str| text(&fields, name);
    let reference = |name: &str| {
        let text = field(name).filter(|text| is_reference(text));
        text.map(str::to_owned)
    };
    let money = |name: &str| field(name)?.parse::<Money>().ok();
    let status: String = field("trade_status")?.chars().take(64).collect();
    let is_ours = field("app_id") == Some(&keys.app_id)
        && keys
            .seller_id
            .as_deref()
            .is_none_or(|seller| field("seller_id") == Some(seller));
    let ends = match &*status {
        "TRADE_SUCCESS" | "TRADE_FINISHED" => Some(Status::Paid),
        "TRADE_CLOSED" => Some(Status::Cancelled),
        _ => None,
    };
    let refunded = match field("refund_fee") {
        None | Some("") => Money::ZERO,
        Some(_) => money("refund_fee")?,
    };
    let event_id = reference("notify_id")?;
    // The notice of a refund is one of the same trade: whatever its id, it is another event.
    let event_id = match reference("out_biz_no") {
        Some(number) if refunded > Money::ZERO => format!("{event_id}:{number}:{refunded}"),
        None if refunded > Money::ZERO => format!("{event_id}:{refunded}"),
        _ => event_id,
    };
    let said = if !is_ours {
        Said::Foreign {
            event: status,
            outcome: Outcome::MerchantMismatch,
        }
    // A trade keeps its status, or is closed, when some or all of it is given back.
    } else if refunded > Money::ZERO {
        Said::Refund {
            refund: RefundTold {
                payment_no: Some(reference("out_trade_no")?),
                transaction_id: reference("trade_no"),
                refund_no: reference("out_biz_no"),
                reference: reference("out_biz_no"),
                amount: refunded,
                is_total: true,
                stands: Stands::Succeeded,
            },
        }
    } else if let Some(ends) = ends {
        Said::Payment {
            notice: Notice {
                order_id: None,
                payment_no: Some(reference("out_trade_no")?),
                status: ends,
                transaction_id: reference("trade_no"),
                amount: match ends {
                    Status::Paid | Status::Success => Some(money("total_amount")?),
                    Status::Failed | Status::Cancelled => None,
                },
                event_id: None,
                provider: Some("alipay".to_owned()),
            },
        }
    } else {
        Said::Other { event: status }
    };
    Some(Message {
        provider: "alipay",
        event_id,
        said,
    })
}
