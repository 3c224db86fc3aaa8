//! Whether a notice was signed as the Standard Webhooks specification says.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use contracts::Timestamp;
use hmac::Mac;
use http::HeaderMap;
use platform::standard_webhook::{ID, SIGNATURE, TIMESTAMP, mac};
use secrecy::SecretSlice;

use crate::{Error, Result};

/// How old, or how far in the future, a signed notice may be, in seconds.
pub const TOLERANCE: i64 = 300;

/// Whether a notice claims to be signed.
pub fn is_claimed(headers: &HeaderMap) -> bool {
    headers.contains_key(SIGNATURE)
}

/// Checks the signature under any of the keys; gives the id of the event.
///
/// # Errors
/// 401 where a header is missing or unreadable, the time is too far off, or no key fits.
pub fn verify<'a>(
    headers: &'a HeaderMap,
    body: &[u8],
    keys: &[SecretSlice<u8>],
    now: Timestamp,
) -> Result<&'a str> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(id), Some(timestamp), Some(signatures)) =
        (header(ID), header(TIMESTAMP), header(SIGNATURE))
    else {
        return Err(Error::BadSignature("the notice is not signed"));
    };
    if !(1..=256).contains(&id.len()) {
        return Err(Error::BadSignature("webhook-id is not 1 to 256 characters"));
    }
    let seconds: i64 = timestamp
        .parse()
        .map_err(|_| Error::BadSignature("webhook-timestamp is not a number of seconds"))?;
    if now.utc().timestamp().abs_diff(seconds) > TOLERANCE.unsigned_abs() {
        return Err(Error::BadSignature(
            "webhook-timestamp is more than 5 minutes off",
        ));
    }
    let given: Vec<Vec<u8>> = signatures
        .split(' ')
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
        .collect();
    // No short cut: which key or signature fits takes the same time to find.
    let mut fits = false;
    for key in keys {
        // The body is read once for each key, however many signatures a sender puts into the header.
        let mac = mac(key, id, timestamp, body);
        for signature in &given {
            // Compared in constant time.
            fits |= mac.clone().verify_slice(signature).is_ok();
        }
    }
    if fits {
        Ok(id)
    } else {
        Err(Error::BadSignature("the signature fits none of our keys"))
    }
}

#[cfg(test)]
mod tests {
    use standardwebhooks::Webhook;

    use super::*;

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const BODY: &[u8] = br#"{"email":"test@example.com","username":"test_user"}"#;

    fn keys() -> Vec<SecretSlice<u8>> {
        let bytes = |text: &str| STANDARD.decode(&text["whsec_".len()..]).unwrap();
        vec![vec![7; 24].into(), bytes(SECRET).into()]
    }

    fn at(seconds: i64) -> Timestamp {
        chrono::DateTime::from_timestamp(seconds, 0).unwrap().into()
    }

    fn headers(id: &str, timestamp: &str, signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [(ID, id), (TIMESTAMP, timestamp), (SIGNATURE, signature)] {
            headers.insert(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_published_vector_is_believed_under_any_active_key() {
        let signature = "v1a,AAAA v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";
        let headers = headers("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", "1649367553", signature);

        assert!(verify(&headers, BODY, &keys(), at(1_649_367_553)).is_ok());
        assert!(verify(&headers, BODY, &keys(), at(1_649_367_553 + 300)).is_ok());
        assert!(verify(&headers, BODY, &keys(), at(1_649_367_553 + 301)).is_err());
        assert!(verify(&headers, BODY, &keys(), at(1_649_367_553 - 301)).is_err());
        assert!(verify(&headers, BODY, &keys()[..1], at(1_649_367_553)).is_err());
        assert!(verify(&headers, BODY, &[], at(1_649_367_553)).is_err());
    }

    #[test]
    fn every_flipped_bit_of_body_id_time_and_signature_is_refused() {
        let (id, time) = ("msg_1", 1_649_367_553);
        let signature = Webhook::new(SECRET).unwrap().sign(id, time, BODY).unwrap();
        let good = headers(id, &time.to_string(), &signature);
        assert!(verify(&good, BODY, &keys(), at(time)).is_ok());

        for bit in 0..BODY.len() * 8 {
            let mut body = BODY.to_vec();
            body[bit / 8] ^= 1 << (bit % 8);
            assert!(
                verify(&good, &body, &keys(), at(time)).is_err(),
                "bit {bit} of the body"
            );
        }
        let flipped = |text: &str, index: usize| {
            let mut bytes = text.as_bytes().to_vec();
            bytes[index] ^= 1;
            String::from_utf8(bytes).unwrap()
        };
        for index in 0..id.len() {
            let bad = headers(&flipped(id, index), &time.to_string(), &signature);
            assert!(
                verify(&bad, BODY, &keys(), at(time)).is_err(),
                "byte {index} of the id"
            );
        }
        for index in 0..10 {
            let bad = headers(id, &flipped(&time.to_string(), index), &signature);
            assert!(
                verify(&bad, BODY, &keys(), at(time)).is_err(),
                "byte {index} of the time"
            );
        }
        for index in 0..signature.len() {
            let bad = headers(id, &time.to_string(), &flipped(&signature, index));
            assert!(
                verify(&bad, BODY, &keys(), at(time)).is_err(),
                "byte {index} of the signature"
            );
        }
    }

    #[test]
    fn any_notice_that_was_not_signed_is_refused() {
        const WORDS: [&str; 10] = [
            "v1,",
            "v1a,",
            " ",
            "AAAA",
            "tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            "1649367553",
            "-",
            "msg_1",
            ".",
            "=",
        ];
        let (id, time) = ("msg_1", 1_649_367_553);
        let good = Webhook::new(SECRET).unwrap().sign(id, time, BODY).unwrap();
        bolero::check!()
            .with_type::<(Vec<u8>, u8)>()
            .with_iterations(2_000)
            .for_each(|(bytes, what)| {
                let text = testkit::any::text(&bytes[..bytes.len().min(12)], &WORDS);
                let (seconds, mut body) = (time.to_string(), BODY.to_vec());
                let (name, stamp, signature) = match what % 4 {
                    0 => (text.as_str(), seconds.as_str(), good.as_str()),
                    1 => (id, text.as_str(), good.as_str()),
                    2 => (id, seconds.as_str(), text.as_str()),
                    _ => {
                        body.extend(text.as_bytes());
                        (id, seconds.as_str(), good.as_str())
                    }
                };
                let mut said = HeaderMap::new();
                for (header, value) in [(ID, name), (TIMESTAMP, stamp), (SIGNATURE, signature)] {
                    let Ok(value) = http::HeaderValue::from_str(value) else {
                        return;
                    };
                    said.insert(header, value);
                }
                let is_signed = name == id && stamp == seconds && body == BODY && signature == good;
                assert_eq!(
                    verify(&said, &body, &keys(), at(time)).is_ok(),
                    is_signed,
                    "{text}"
                );
                // Among others the good one counts.
                let beside = format!("{text} {good}");
                if text.is_ascii()
                    && let Ok(value) = http::HeaderValue::from_str(&beside)
                {
                    let mut said = headers(id, &seconds, &good);
                    said.insert(SIGNATURE, value);
                    assert!(verify(&said, BODY, &keys(), at(time)).is_ok(), "{text}");
                }
            });
    }
}
