//! Signatures by the Standard Webhooks specification: HMAC-SHA256 over `id.timestamp.body`, the body as it is sent.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::Sha256;

/// The header that names the message.
pub const ID: &str = "webhook-id";
/// The header with the time of sending, in seconds.
pub const TIMESTAMP: &str = "webhook-timestamp";
/// The header with the signatures.
pub const SIGNATURE: &str = "webhook-signature";
/// All headers that take part.
pub const HEADERS: [&str; 3] = [ID, TIMESTAMP, SIGNATURE];
/// How a secret is shown, before its bytes in Base64.
pub const SECRET_PREFIX: &str = "whsec_";
const SECRET_BYTES: usize = 32;

/// The code of a message, to be compared in constant time. `timestamp` is what stands in its header.
pub fn mac(secret: &SecretSlice<u8>, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret())
        .expect("HMAC takes keys of any length");
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    mac
}

/// The headers of a message that is sent at a time in seconds.
pub fn sign(
    secret: &SecretSlice<u8>,
    id: &str,
    seconds: i64,
    body: &[u8],
) -> [(&'static str, String); 3] {
    let seconds = seconds.to_string();
    let code = mac(secret, id, &seconds, body).finalize().into_bytes();
    let signature = format!("v1,{}", STANDARD.encode(code));
    [
        (ID, id.to_owned()),
        (TIMESTAMP, seconds),
        (SIGNATURE, signature),
    ]
}

/// A new secret.
pub fn secret() -> SecretSlice<u8> {
    let bytes: [u8; SECRET_BYTES] = rand::random();
    bytes.to_vec().into()
}

/// A secret as its owner is shown it.
pub fn show(secret: &SecretSlice<u8>) -> String {
    format!("{SECRET_PREFIX}{}", STANDARD.encode(secret.expose_secret()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_believed_by_the_reference_and_nothing_else() {
        let secret = secret();
        let (seconds, body) = (1_649_367_553, br#"{"type":"notification"}"#);
        let [_, (_, timestamp), (_, signature)] = sign(&secret, "d1", seconds, body);

        let reference = standardwebhooks::Webhook::new(&show(&secret)).unwrap();

        assert_eq!(timestamp, seconds.to_string());
        assert_eq!(reference.sign("d1", seconds, body).unwrap(), signature);
        assert_ne!(reference.sign("d2", seconds, body).unwrap(), signature);
    }
}
