//! The secret of an API key: `cp_live_` and 64 hexadecimal digits, of which only the hash is kept.

use hmac::Mac;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::auth::Auth;

const START: &str = "cp_live_";
const DIGITS: usize = 64;
/// How many digits may be shown; the others are 228 bits.
const SHOWN: usize = 7;

/// By which a key is known to the database. A plain hash will do: nobody guesses 256 bits.
pub type KeyHash = [u8; 32];

/// The secret of an API key.
#[derive(Clone, Debug)]
pub struct ApiKeySecret(SecretString);

impl ApiKeySecret {
    /// The text for the client, once.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The beginning by which its user recognises it.
    pub fn prefix(&self) -> &str {
        &self.expose()[..START.len() + SHOWN]
    }

    /// What is stored.
    pub fn hash(&self) -> KeyHash {
        Sha256::digest(self.expose()).into()
    }
}

impl Auth {
    /// The secret that follows from a random number and `SERVICE_SECRET`; nobody learns the one from the other. So the
    /// reply to a repeated request can be made again by whoever remembers the number, and the secret is stored nowhere.
    pub fn api_key_secret(&self, nonce: &[u8; 32]) -> ApiKeySecret {
        let mut mac = self.0.service_key.clone();
        // No service has this name, so that no credential of one can be such a secret.
        mac.update(b"api-key\n");
        mac.update(nonce);
        let digits = hex::encode(mac.finalize().into_bytes());
        ApiKeySecret(format!("{START}{digits}").into())
    }
}

/// The hash of a key as a client sent it; `None` where the text cannot be one.
pub fn hash(text: &str) -> Option<KeyHash> {
    let digits = text.strip_prefix(START)?;
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let fits = digits.len() == DIGITS && digits.bytes().all(is_digit);
    fits.then(|| Sha256::digest(text).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_key_has_no_hash() {
        let key = format!("{START}{}", "0a".repeat(32));
        assert!(hash(&key).is_some());
        for other in [
            key.to_uppercase(),
            key[1..].to_owned(),
            format!("{key}0"),
            key.replace('a', "g"),
            START.to_owned(),
            String::new(),
        ] {
            assert!(hash(&other).is_none(), "{other}");
        }
    }

    #[test]
    fn any_text_is_a_key_only_as_it_would_have_been_given() {
        const WORDS: [&str; 6] = [
            START,
            "0123456789abcdef0123456789abcdef",
            "cp_",
            "A",
            " ",
            "\u{0}",
        ];
        bolero::check!()
            .with_iterations(5_000)
            .with_max_len(80)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let given = text.strip_prefix(START).and_then(|digits| {
                    let number = hex::decode(digits)
                        .ok()
                        .filter(|it| it.len() == DIGITS / 2)?;
                    Some(format!("{START}{}", hex::encode(number)))
                });
                let is_given = given.as_deref() == Some(text.as_str());
                assert_eq!(hash(&text).is_some(), is_given, "{text:?}");
            });
    }
}
