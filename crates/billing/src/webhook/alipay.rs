//! Notices of Alipay: a form, RSA2 over its sorted fields. After <https://opendocs.alipay.com/open/270/105902>.

use std::collections::BTreeMap;

use contracts::Money;

use super::Outcome;
use super::message::{Message, RefundTold, Said, Stands};
use super::notice::{Notice, Status};
use super::settings::AlipayKeys;
use crate::rsa::VerifyingKey;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::webhook::message::tests::check_bounds;

    /// A notice that Alipay sent, and its key, from the tests of Alipay's library for Node.js (`test/alipay.test.ts`,
    /// "verify sign should delete `sign_type`").
    const KEY: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAqObrdC7hrgAVM98tK0nv3hSQRGGKT4lBsQjHiGjeYZjOPIPHR5knm2jnnz/YGIXIofVHkA/tAlBAd5DrY7YpvI4tP5EONLtZKC2ghBMx7McI2wRD0xiqzxOQr1FuhZGJ8/AUokBzJrzY+aGX2xcOrxFYRlFilvVLTXg4LWjR1tdPkO6+i7wQZAIVMClPkwVRZEbaERRHlKqTzv2gGv5rDU8gRoe1LeaN+6BlbTqHWkQcNCUNrA8C6l17XAXGKDsm/9TFWwO8EPHHHCaQdjtV5/FdcWIt+L8SR1ss7EXTjYDFtxcKVv9rEoY1lX8T4mX+GbXfZHraG5NCF1+XioL5JwIDAQAB";
    const NOTICE: [(&str, &str); 24] = [
        ("gmt_create", "2019-08-15 15:56:22"),
        ("charset", "utf-8"),
        ("seller_email", "z97-yuquerevenue@service.aliyun.com"),
        ("subject", "语雀空间 500人规模"),
        (
            "sign",
            "QfTb8tqE1BMhS5qAnXtvsF3/jBkEvu9q9en0pdbBUDDjvKycZhQb7h8GDs4FKfi049PynaNuatxSgLb/nLWZpXyyh0LEWdK2S6Ri7nPwrVgOs08zugLO20vOQz44y3ti2Ncm8/wZts1Fr2gZ7pShnVX3d1B50hbsXnObT1r/U8ONNQjWXd0HIul4TG+Q3fm3svmSvFEy0WnzuhcyHPX5Gm4ELNctL6Qd5YniGJFNcc7kopHYtI/XD9YCKCH6Ct02rzUs9i11C9CsadtZn+WhxF26Dqt9sGEFajkJ8cxUTLi8+VCpLHsgPE8P0y095uQcDdK0YjCh4x7wVSov+lrmOQ==",
        ),
        ("buyer_id", "2088102534368455"),
        ("invoice_amount", "0.10"),
        ("notify_id", "2019081500222155624068450559358070"),
        (
            "fund_bill_list",
            r#"[{"amount":"0.10","fundChannel":"ALIPAYACCOUNT"}]"#,
        ),
        ("notify_type", "trade_status_sync"),
        ("trade_status", "TRADE_SUCCESS"),
        ("receipt_amount", "0.10"),
        ("buyer_pay_amount", "0.10"),
        ("sign_type", "RSA2"),
        ("app_id", "2019073166072302"),
        ("seller_id", "2088531891668739"),
        ("gmt_payment", "2019-08-15 15:56:24"),
        ("notify_time", "2019-08-15 15:56:25"),
        ("version", "1.0"),
        ("out_trade_no", "20190815155618536-564-57"),
        ("total_amount", "0.10"),
        ("trade_no", "2019081522001468450512505578"),
        ("auth_app_id", "2019073166072302"),
        ("buyer_logon_id", "xud***@126.com"),
    ];

    fn form(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(fields);
        form.finish().into_bytes()
    }

    fn published() -> Vec<u8> {
        form(&[&NOTICE[..], &[("point_amount", "0.00")]].concat())
    }

    fn keys() -> AlipayKeys {
        AlipayKeys {
            keys: vec![VerifyingKey::read(KEY).unwrap()],
            app_id: "2019073166072302".to_owned(),
            seller_id: Some("2088531891668739".to_owned()),
        }
    }

    /// The published notice with other fields in the place of its own.
    fn said(changes: &[(&str, &str)]) -> Option<Message> {
        let changed: BTreeSet<_> = changes.iter().map(|(name, _)| *name).collect();
        let mut fields: Vec<_> = NOTICE.to_vec();
        fields.retain(|(name, _)| !changed.contains(name));
        fields.extend_from_slice(changes);
        read(&keys(), &form(&fields))
    }

    #[test]
    fn a_notice_of_alipay_itself_is_believed_and_read() {
        let body = published();

        verify(&body, &keys().keys).unwrap();
        let message = read(&keys(), &body).unwrap();

        assert_eq!(message.event_id, "2019081500222155624068450559358070");
        let Said::Payment { notice } = message.said else {
            panic!("{message:?}");
        };
        assert_eq!(
            notice.payment_no.as_deref(),
            Some("20190815155618536-564-57")
        );
        assert_eq!(
            (notice.status, notice.amount),
            (Status::Paid, Some(Money(10)))
        );
        assert!(verify(&body, &[]).is_err());
        let mut empty = body.clone();
        empty.extend_from_slice(b"&passback_params=");
        verify(&empty, &keys().keys).unwrap();
        let mut twice = body;
        twice.extend_from_slice(b"&total_amount=0.10");
        assert!(verify(&twice, &keys().keys).is_err());
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let body = published();
        let meant = |body: &[u8]| {
            let pairs = form_urlencoded::parse(body).into_owned();
            pairs.collect::<BTreeSet<_>>()
        };
        let mut refused = 0;
        for bit in 0..body.len() * 8 {
            let mut bad = body.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Escapes may be written in either case: then it says the same.
            if meant(&bad) == meant(&body) {
                continue;
            }
            assert!(verify(&bad, &keys().keys).is_err(), "bit {bit}");
            refused += 1;
        }
        assert!(refused > body.len() * 7, "{refused}");
    }

    #[test]
    fn the_charset_is_none_of_our_business() {
        // 测试 in GBK.
        let found = fields(b"subject=%B2%E2%CA%D4&out_trade_no=PAY1").unwrap();

        assert_eq!(found[&b"subject"[..]], b"\xb2\xe2\xca\xd4");
        assert_eq!(text(&found, "out_trade_no"), Some("PAY1"));
        for bad in [
            &b"a=%"[..],
            b"a=%4",
            b"a=%zz",
            b"a",
            b"",
            b"a=1&",
            b"a=1&a=2",
        ] {
            assert_eq!(fields(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn each_trade_status_says_what_it_means() {
        for (status, expected) in [
            ("TRADE_SUCCESS", Some(Status::Paid)),
            ("TRADE_FINISHED", Some(Status::Paid)),
            ("TRADE_CLOSED", Some(Status::Cancelled)),
            ("WAIT_BUYER_PAY", None),
        ] {
            let told = match said(&[("trade_status", status)]).unwrap().said {
                Said::Payment { notice } => Some(notice.status),
                Said::Other { .. } => None,
                said => panic!("{said:?}"),
            };
            assert_eq!(told, expected, "{status}");
        }
        for foreign in [("app_id", "1"), ("seller_id", "1"), ("app_id", "")] {
            let said = said(&[foreign]).unwrap().said;
            let Said::Foreign { outcome, .. } = said else {
                panic!("{said:?}");
            };
            assert_eq!(outcome, Outcome::MerchantMismatch);
        }
    }

    #[test]
    fn amounts_are_read_as_they_are_written_or_not_at_all() {
        for (text, fen) in [
            ("0.10", Some(10)),
            ("0.1", Some(10)),
            ("99", Some(9_900)),
            ("8388608.01", Some(838_860_801)),
            ("0.001", None),
            ("1e2", None),
            ("-1", None),
            ("+1", None),
            (" 1", None),
            ("1.", None),
            ("", None),
            ("NaN", None),
        ] {
            let read = said(&[("total_amount", text)]).map(|message| match message.said {
                Said::Payment { notice } => notice.amount.unwrap().fen(),
                said => panic!("{said:?}"),
            });
            assert_eq!(read, fen, "{text}");
        }
    }

    #[test]
    fn a_refund_of_the_same_trade_is_an_event_of_its_own() {
        let paid = said(&[]).unwrap();
        let first = said(&[("refund_fee", "0.04"), ("out_biz_no", "r1")]).unwrap();
        let second = said(&[
            ("refund_fee", "0.10"),
            ("out_biz_no", "r2"),
            ("trade_status", "TRADE_CLOSED"),
        ])
        .unwrap();

        let ids = BTreeSet::from([&paid.event_id, &first.event_id, &second.event_id]);
        assert_eq!(ids.len(), 3, "{ids:?}");
        let Said::Refund { refund } = &second.said else {
            panic!("{second:?}");
        };
        assert_eq!((refund.amount, refund.is_total), (Money(10), true));
        assert!(said(&[("refund_fee", "some")]).is_none());
        let none = said(&[("refund_fee", "0.00")]).unwrap();
        assert!(matches!(none.said, Said::Payment { .. }), "{none:?}");
    }

    #[test]
    fn any_form_is_read_within_bounds_or_not_at_all() {
        const WORDS: [&str; 24] = [
            "notify_id=n&",
            "trade_status=TRADE_SUCCESS&",
            "trade_status=TRADE_CLOSED&",
            "app_id=2019073166072302&",
            "seller_id=2088531891668739&",
            "out_trade_no=PAY1&",
            "total_amount=",
            "refund_fee=",
            "out_biz_no=r&",
            "trade_no=t&",
            "0.10&",
            "1e2&",
            "&",
            "=",
            "%",
            "%00",
            "%B2",
            "+",
            "sign=",
            "sign_type=RSA2&",
            "AAAA&",
            "1",
            ".",
            "notify_id=",
        ];
        let whole = "notify_id=n&trade_status=TRADE_SUCCESS&app_id=2019073166072302&seller_id=2088531891668739&out_trade_no=P&";
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(64)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let beside = format!("{whole}{text}a=b");
                for body in [text.as_bytes(), beside.as_bytes(), bytes] {
                    assert!(verify(body, &keys().keys).is_err());
                    if let Some(message) = read(&keys(), body) {
                        check_bounds(&message);
                    }
                }
            });
    }
}
