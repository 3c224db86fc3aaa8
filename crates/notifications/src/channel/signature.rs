//! Signatures by the Standard Webhooks specification: HMAC-SHA256 over `id.timestamp.body`, the body as it is sent.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use contracts::Timestamp;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::Sha256;

/// How a secret is shown, before its bytes in Base64.
pub const PREFIX: &str = "whsec_";
const SECRET_BYTES: usize = 32;

/// A new secret.
pub fn secret() -> SecretSlice<u8> {
    let bytes: [u8; SECRET_BYTES] = rand::random();
    bytes.to_vec().into()
}

/// A secret as its user is shown it, once.
pub fn show(secret: &SecretSlice<u8>) -> String {
    format!("{PREFIX}{}", STANDARD.encode(secret.expose_secret()))
}

/// The headers of a call.
pub fn headers(
    secret: &SecretSlice<u8>,
    id: &str,
    now: Timestamp,
    body: &[u8],
) -> [(&'static str, String); 3] {
    let seconds = now.utc().timestamp().to_string();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret())
        .expect("HMAC takes keys of any length");
    mac.update(format!("{id}.{seconds}.").as_bytes());
    mac.update(body);
    let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    [
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", seconds),
        ("webhook-signature", signature),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_believed_by_the_reference_and_nothing_else() {
        let secret = secret();
        let seconds = 1_649_367_553;
        let now = chrono::DateTime::from_timestamp(seconds, 0).unwrap().into();
        let body = br#"{"type":"notification"}"#;
        let [_, (_, timestamp), (_, signature)] = headers(&secret, "d1", now, body);

        let reference = standardwebhooks::Webhook::new(&show(&secret)).unwrap();

        assert_eq!(timestamp, seconds.to_string());
        assert_eq!(reference.sign("d1", seconds, body).unwrap(), signature);
        assert_ne!(reference.sign("d2", seconds, body).unwrap(), signature);
    }
}
