//! Notices of WeChat Pay, interface 3: RSA over time, nonce and body, the resource in AES-256-GCM.
//! After <https://pay.weixin.qq.com/doc/v3/merchant/4012071382>.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use contracts::Timestamp;
use http::HeaderMap;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::Outcome;
use super::message::{Message, RefundTold, Said, Stands, amount, reference};
use super::notice::{Notice, Status};
use super::settings::WechatPayKeys;
use super::signature::TOLERANCE;
use crate::rsa::VerifyingKey;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use contracts::Money;

    use super::*;
    use crate::webhook::message::tests::check_bounds;

    /// A notice with its certificate from the tests of WeChat Pay's library for Go (`core/notify/notify_test.go`).
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIDVzCCAj+gAwIBAgIJANfOWdH1ItcBMA0GCSqGSIb3DQEBCwUAMEIxCzAJBgNV
BAYTAlhYMRUwEwYDVQQHDAxEZWZhdWx0IENpdHkxHDAaBgNVBAoME0RlZmF1bHQg
Q29tcGFueSBMdGQwHhcNMjEwNDI3MDg1NTIzWhcNMzEwNDI1MDg1NTIzWjBCMQsw
CQYDVQQGEwJYWDEVMBMGA1UEBwwMRGVmYXVsdCBDaXR5MRwwGgYDVQQKDBNEZWZh
dWx0IENvbXBhbnkgTHRkMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA
2VCTd91fnUn73Xy9DLvt/V62TVxRTEEstVdeRaZ3B3leO0pldE806mXO4RwdHXag
HQ4vGeZN0yqm++rDsGK+U3AH7kejyD2pXshNP9Cq5YwbptiLGtjcquw4HNxJQUOm
DeJf2vg6byms9RUipiq4SzbJKqJFlUpbuIPDpSpWz10PYmyCNeDGUUK65E5h2B83
4uxl1zNLYQCrkdBzb8oUxwYeP5a2DNxmjL5lsJML7DGr5znsevnoqGRwTm9fxCGf
y8wus7hwKz6clt3Whmmda7UAdb1c08hEQFVRbF14AR73xbnd8N0obCWJPCbzMCtk
aSef4FdEEgEXJiw0VAJT8wIDAQABo1AwTjAdBgNVHQ4EFgQUT1c7nd/SUO76HSoZ
umNUJv1R5PwwHwYDVR0jBBgwFoAUT1c7nd/SUO76HSoZumNUJv1R5PwwDAYDVR0T
BAUwAwEB/zANBgkqhkiG9w0BAQsFAAOCAQEAfTjxKRQMzNB/U6ZoCUS+BSNfa2Oh
0plMN6ZuzwiVVZwg1jywvv5yv04koS7Pd4i9E4gt9ZBUQXlpq+A3oOCEEHNRR6b2
kyazGRM7s0OP5X21WrbpSmKmU6K7hkfx30yYs08LVs/Q8DIhvaj1FCFeJzUCzYn/
fHMq4tsbKO0dKAeydPM/nrUZBmaYQVKMVOORGLFjFKVO7JV6Kq/R86ouhjEPgJOe
2xulNBUcjicqtZlBdEh/PWCYP2SpGVDclKm8jeo175T3EVAkdKzzmfpxtMmnMlmq
cTJOU9TxuGvNASMtjj7pYIerTx+xgZDXEVBWFW9PjJ0TV06tCRsgSHItgg==
-----END CERTIFICATE-----";
    const SERIAL: &str = "D7CE59D1F522D701";
    const TIME: i64 = 1_624_523_846;
    const NONCE: &str = "EcZ9Cmy4Xyx1i6RlJQzLcCyEqDa26NBz";
    const SIGNATURE: &str = "tJHIiIS9eB2hAYstmAmbbD3ZE5LiIm/Ug5tuL4fC0YOFRWIHV39UFIZXC0e9Wl6lBu6sKvkqDkzpqzBsVHyXFlbYZTOQrVdG4b6LfTnK4mikv9++ixJMd3vTf2yCqvBkh98zs3Ds5zsYQakzbcwhmw4fMJs4nPLws28H0UW9FjDR//rxELLwXvV1VEA1IBLX70xptjL8hrfUjEE8kkry6yNJTHZRU8CAc7qHli2Ng1V1qb9ARbK8A3ThmFmPQvRGrapI/jS2laKKgYUmfdEdkNO6B2Cke5e8VTxY406ArAmQ90GAihDwIcb16TQMnzCMBoutnwZKNiKRACrFmtxw2Q==";
    const BODY: &str = r#"{"id":"3119dfba-e649-5eec-ab1e-3412bc4d2e17","create_time":"2021-06-24T16:37:26+08:00","resource_type":"encrypt-resource","event_type":"PAYSCORE.USER_OPEN_SERVICE","summary":"签约成功","resource":{"original_type":"payscore","algorithm":"AEAD_AES_256_GCM","ciphertext":"YDS3lKPaC4Y52Gf3uhft5qUBlIa8b428AWTtTauHQfQrRw+X1WpiuHIDy0vo1Vd6VEq67aVyqPdDYMkRVSDaZL3iZttevRMOoPKMifozg6XPWjIZumks/GpT48lI4NizyeaqLBokNebthah3o1H76qSlO9NkDjp9bzmKLEYYH9TEklFUpsvPqOTOcgSLgh21YJXYR7dEBXFgRLiNIKRgO5JdXh1hccRUAlyVWxE54PXpnQ==","associated_data":"payscore","nonce":"Kj7QIyUiYx1q"}}"#;

    const API_KEY: &str = "0123456789abcdef0123456789abcdef";

    fn keys() -> WechatPayKeys {
        WechatPayKeys {
            keys: vec![(SERIAL.to_owned(), VerifyingKey::read(CERTIFICATE).unwrap())],
            api_keys: vec!["fedcba9876543210fedcba9876543210".into(), API_KEY.into()],
            merchant: "1900007291".to_owned(),
            app_id: "wxd678efh567hg6787".to_owned(),
        }
    }

    /// The values in the order of [`HEADERS`].
    fn check(values: [&str; 4], body: &[u8], seconds: i64) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in HEADERS.into_iter().zip(values) {
            let Ok(value) = value.parse() else {
                return false;
            };
            headers.insert(name, value);
        }
        let now = chrono::DateTime::from_timestamp(seconds, 0).unwrap();
        verify(&headers, body, &keys().keys, now.into()).is_ok()
    }

    fn notice(kind: &str, resource: &Value, key: &str) -> Vec<u8> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).unwrap());
        let nonce = Nonce::assume_unique_for_key(*b"fdasfjihihi1");
        let mut sealed = resource.to_string().into_bytes();
        key.seal_in_place_append_tag(nonce, Aad::from(b"transaction"), &mut sealed)
            .unwrap();
        json!({ "id": "EV-1", "event_type": kind, "resource": {
            "algorithm": "AEAD_AES_256_GCM", "ciphertext": STANDARD.encode(sealed),
            "associated_data": "transaction", "nonce": "fdasfjihihi1" } })
        .to_string()
        .into_bytes()
    }

    fn paid() -> Value {
        json!({ "mchid": "1900007291", "appid": "wxd678efh567hg6787", "out_trade_no": "PAY1", "transaction_id": "42",
            "trade_state": "SUCCESS", "amount": { "total": 9_900, "currency": "CNY" } })
    }

    fn said(kind: &str, resource: &Value) -> Option<Said> {
        read(&keys(), &notice(kind, resource, API_KEY)).map(|message| message.said)
    }

    #[test]
    fn the_published_notice_is_believed_for_five_minutes_under_its_serial_alone() {
        let time = TIME.to_string();
        let good = [&*time, NONCE, SIGNATURE, SERIAL];
        assert!(check(good, BODY.as_bytes(), TIME));
        assert!(check(good, BODY.as_bytes(), TIME + 300));
        assert!(!check(good, BODY.as_bytes(), TIME + 301));
        assert!(!check(good, BODY.as_bytes(), TIME - 301));
        for (index, bad) in [
            (0, ""),
            (0, "+1624523846"),
            (1, ""),
            // By which WeChat Pay tries whether signatures are checked.
            (2, "WECHATPAY/SIGNTEST/tJHIiIS9eB2hAYstmAmbbD3ZE5LiIm"),
            (2, ""),
            (3, "D7CE59D1F522D702"),
            (3, ""),
        ] {
            let mut values = good;
            values[index] = bad;
            assert!(!check(values, BODY.as_bytes(), TIME), "{bad}");
        }
        // None of our keys opens what is in it.
        assert!(read(&keys(), BODY.as_bytes()).is_none());
    }

    #[test]
    fn every_flipped_bit_of_body_and_headers_is_refused() {
        let time = TIME.to_string();
        let good = [&*time, NONCE, SIGNATURE, SERIAL];
        let flip = |bytes: &[u8], bit: usize| {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        };
        for bit in 0..BODY.len() * 8 {
            assert!(!check(good, &flip(BODY.as_bytes(), bit), TIME), "bit {bit}");
        }
        for index in 0..good.len() {
            for bit in 0..good[index].len() * 8 {
                let Ok(flipped) = String::from_utf8(flip(good[index].as_bytes(), bit)) else {
                    continue;
                };
                let mut values = good;
                values[index] = &flipped;
                assert!(
                    !check(values, BODY.as_bytes(), TIME),
                    "bit {bit} of {}",
                    HEADERS[index]
                );
            }
        }
    }

    #[test]
    fn a_resource_is_opened_under_any_of_our_keys_and_no_other() {
        let old = "fedcba9876543210fedcba9876543210";
        for (key, opens) in [
            (API_KEY, true),
            (old, true),
            ("ffffffffffffffffffffffffffffffff", false),
        ] {
            let body = notice("TRANSACTION.SUCCESS", &paid(), key);
            assert_eq!(read(&keys(), &body).is_some(), opens, "{key}");
        }
        let body = notice("TRANSACTION.SUCCESS", &paid(), API_KEY);
        let envelope: Value = serde_json::from_slice(&body).unwrap();
        for (name, value) in [
            ("associated_data", "refund"),
            ("nonce", "fdasfjihihi2"),
            ("nonce", "short"),
            ("algorithm", "NONE"),
            ("ciphertext", "AAAA"),
        ] {
            let mut envelope = envelope.clone();
            envelope["resource"][name] = value.into();
            assert!(
                read(&keys(), envelope.to_string().as_bytes()).is_none(),
                "{name}"
            );
        }
    }

    #[test]
    fn each_event_says_what_it_means() {
        let Some(Said::Payment { notice }) = said("TRANSACTION.SUCCESS", &paid()) else {
            panic!("no payment");
        };
        assert_eq!(
            (notice.status, notice.amount),
            (Status::Paid, Some(Money(9_900)))
        );

        for (kind, status, expected) in [
            ("REFUND.SUCCESS", "SUCCESS", Stands::Succeeded),
            ("REFUND.CLOSED", "CLOSED", Stands::Failed),
            ("REFUND.ABNORMAL", "ABNORMAL", Stands::Processing),
        ] {
            let resource = json!({ "mchid": "1900007291", "out_trade_no": "PAY1", "transaction_id": "42",
                "out_refund_no": "REF1", "refund_id": "50", "refund_status": status,
                "amount": { "total": 9_900, "refund": 900 } });
            let Some(Said::Refund { refund }) = said(kind, &resource) else {
                panic!("no refund");
            };
            assert_eq!((refund.amount, refund.stands), (Money(900), expected));
        }
        let other = said("PAYSCORE.USER_OPEN_SERVICE", &paid());
        assert!(matches!(other, Some(Said::Other { .. })), "{other:?}");
    }

    #[test]
    fn another_merchant_application_or_currency_is_foreign() {
        for (path, value, expected) in [
            ("/mchid", json!("1"), Outcome::MerchantMismatch),
            ("/appid", json!("wx"), Outcome::MerchantMismatch),
            ("/appid", Value::Null, Outcome::MerchantMismatch),
            ("/amount/currency", json!("USD"), Outcome::CurrencyMismatch),
        ] {
            let mut resource = paid();
            *resource.pointer_mut(path).unwrap() = value;
            let said = said("TRANSACTION.SUCCESS", &resource);
            let Some(Said::Foreign { outcome, .. }) = said else {
                panic!("{said:?}");
            };
            assert_eq!(outcome, expected, "{path}");
        }
        let mut resource = paid();
        resource["amount"]["total"] = json!(99.5);
        assert_eq!(said("TRANSACTION.SUCCESS", &resource), None);
    }

    #[test]
    fn any_body_is_read_within_bounds_or_not_at_all() {
        const WORDS: [&str; 20] = [
            "mchid",
            "1900007291",
            "appid",
            "wxd678efh567hg6787",
            "out_trade_no",
            "transaction_id",
            "trade_state",
            "SUCCESS",
            "amount",
            "total",
            "refund",
            "currency",
            "CNY",
            "out_refund_no",
            "refund_id",
            "refund_status",
            "id",
            "event_type",
            "resource",
            "PAY1",
        ];
        let time = TIME.to_string();
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(96)
            .for_each(|bytes: &[u8]| {
                let any = testkit::any::json(bytes, &WORDS);
                let mut some = paid();
                let name =
                    WORDS[usize::from(bytes.first().copied().unwrap_or_default()) % WORDS.len()];
                some[name] = any.clone();
                for kind in ["TRANSACTION.SUCCESS", "REFUND.SUCCESS"] {
                    for resource in [&any, &some] {
                        if let Some(message) = read(&keys(), &notice(kind, resource, API_KEY)) {
                            check_bounds(&message);
                        }
                    }
                }
                let text = testkit::any::text(bytes, &WORDS);
                assert!(!check([&time, NONCE, &text, SERIAL], BODY.as_bytes(), TIME));
                assert!(!check([&time, NONCE, SIGNATURE, SERIAL], bytes, TIME));
                assert!(read(&keys(), bytes).is_none());
            });
    }
}
