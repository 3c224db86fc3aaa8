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
    let signature = fields
        .get("sign")
        .ok_or(Error::BadSignature("the notice is not signed"))?;
    if fields.get("sign_type").is_some_and(|kind| kind != "RSA2") {
        return Err(Error::BadSignature("sign_type is not RSA2"));
    }
    // Some of Alipay's own libraries sign empty fields and some leave them out; what they say is the same.
    let signed = |with_empty: bool| {
        let parts = fields
            .iter()
            .filter(|(name, value)| {
                !matches!(&***name, "sign" | "sign_type") && (with_empty || !value.is_empty())
            })
            .map(|(name, value)| format!("{name}={value}"));
        parts.collect::<Vec<_>>().join("&")
    };
    let messages = [signed(true), signed(false)];
    let fits = messages.iter().any(|message| {
        keys.iter()
            .any(|key| key.fits(message.as_bytes(), signature))
    });
    if fits {
        Ok(())
    } else {
        Err(Error::BadSignature(
            "the signature fits none of Alipay's keys",
        ))
    }
}

fn fields(body: &[u8]) -> Option<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(body) {
        // Of two fields with one name nobody could say which was meant.
        if fields.len() == MOST_FIELDS || fields.insert(name.into(), value.into()).is_some() {
            return None;
        }
    }
    Some(fields)
}

/// Reads a believed body; `None` where it is no notice.
pub fn read(keys: &AlipayKeys, body: &[u8]) -> Option<Message> {
    let fields = fields(body)?;
    let field = |name: &str| fields.get(name).map(String::as_str);
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
    let said = if !is_ours {
        Said::Foreign {
            event: status,
            outcome: Outcome::MerchantMismatch,
        }
    // A trade keeps its status, or is closed, when some or all of it is given back.
    } else if let Some(total) = money("refund_fee").filter(|total| *total > Money::ZERO) {
        Said::Refund {
            refund: RefundTold {
                payment_no: Some(reference("out_trade_no")?),
                transaction_id: reference("trade_no"),
                refund_no: reference("out_biz_no"),
                reference: reference("out_biz_no"),
                amount: total,
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
        event_id: reference("notify_id")?,
        said,
    })
}
