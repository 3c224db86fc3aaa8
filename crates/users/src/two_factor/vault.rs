//! Keeps secrets that must be read again: sealed with a key of the settings, each for its user alone.

use std::fmt;

use anyhow::{Context, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use contracts::UserId;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use secrecy::{ExposeSecret, SecretString};

use super::SECRET;

/// The most keys at a time.
const MOST_KEYS: usize = 8;

/// Seals with one key and opens with several, so that a key can make way for another one.
pub struct Vault {
    keys: Vec<LessSafeKey>,
}

impl Vault {
    /// Takes 32-byte keys in base64, with commas between them: the first one seals, all open.
    ///
    /// # Errors
    /// Where one is no such key, or they are more than eight.
    pub fn new(keys: &SecretString) -> anyhow::Result<Self> {
        let texts: Vec<&str> = keys.expose_secret().split(',').map(str::trim).collect();
        ensure!(
            texts.len() <= MOST_KEYS,
            "{} keys are more than {MOST_KEYS}",
            texts.len()
        );
        let keys = texts.into_iter().map(|text| {
            // What is wrong with it might tell a part of it.
            let bytes = STANDARD.decode(text).ok().context("a key is no base64")?;
            let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes);
            key.map(LessSafeKey::new)
                .map_err(|_| anyhow!("a key has {} bytes in the place of 32", bytes.len()))
        });
        Ok(Self {
            keys: keys.collect::<anyhow::Result<_>>()?,
        })
    }

    /// Seals the secret of a user.
    pub fn seal(&self, secret: &[u8; SECRET], user: &UserId) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut text = secret.to_vec();
        let whose = Aad::from(user.as_str());
        self.keys[0]
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), whose, &mut text)
            .expect("a few bytes are never too many");
        [&nonce[..], &text].concat()
    }

    /// Opens what was sealed for a user with any of the keys.
    pub fn open(&self, sealed: &[u8], user: &UserId) -> Option<[u8; SECRET]> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        self.keys.iter().find_map(|key| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut text = text.to_vec();
            let whose = Aad::from(user.as_str());
            let opened = key.open_in_place(nonce, whose, &mut text).ok()?;
            opened.as_ref().try_into().ok()
        })
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[keys]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(keys: &[u8]) -> Vault {
        let keys: Vec<String> = keys.iter().map(|key| STANDARD.encode([*key; 32])).collect();
        Vault::new(&keys.join(", ").into()).unwrap()
    }

    #[test]
    fn what_was_sealed_is_opened_for_its_user_alone_and_by_a_key_that_made_way() {
        let (alice, bob) = (UserId::new(), UserId::new());
        let secret = [7; SECRET];

        let sealed = vault(&[1]).seal(&secret, &alice);

        assert_eq!(vault(&[2, 1]).open(&sealed, &alice), Some(secret));
        assert_eq!(vault(&[1]).open(&sealed, &bob), None);
        assert_eq!(vault(&[2]).open(&sealed, &alice), None);
        assert_ne!(vault(&[1]).seal(&secret, &alice), sealed);
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert_eq!(vault(&[1]).open(&bent, &alice), None, "{at}");
            assert_eq!(vault(&[1]).open(&sealed[..at], &alice), None, "{at}");
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused_without_its_text() {
        for text in ["", "hunter22!", "aHVudGVyMjI=", &["AAAA"; 9].join(",")] {
            let refusal = Vault::new(&text.into()).unwrap_err();
            assert!(!format!("{refusal:#}").contains("unter"), "{refusal:#}");
        }
    }
}
