//! Texts that must not be shown: passwords and tokens in bodies.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};

/// A password or a token as a client sent it; wiped when dropped, and never printed, not even in a refusal.
#[derive(Clone)]
pub struct SecretText(SecretString);

impl SecretText {
    /// The text itself, for hashing.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<SecretString> for SecretText {
    fn from(text: SecretString) -> Self {
        Self(text)
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer).map_err(|error: D::Error| {
            // Serde's own words would repeat a number that was sent as the password; that nothing was sent may be told.
            if error.to_string().starts_with("missing field") {
                error
            } else {
                de::Error::custom("must be a text")
            }
        })?;
        Ok(Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_neither_in_debug_nor_in_a_refusal() {
        let secret: SecretText = serde_json::from_str("\"hunter22\"").unwrap();
        let refusal = serde_json::from_str::<SecretText>("4711")
            .unwrap_err()
            .to_string();

        assert_eq!(secret.expose(), "hunter22");
        assert!(!format!("{secret:?}").contains("hunter") && !refusal.contains("4711"));
    }

    #[test]
    fn any_value_that_is_no_secret_is_refused_without_its_text() {
        const WORDS: [&str; 4] = ["hunter22", "correct horse", "4711", "password"];
        bolero::check!()
            .with_iterations(1_000)
            .with_max_len(24)
            .for_each(|bytes: &[u8]| {
                let value = testkit::any::json(bytes, &WORDS);
                let read = serde_json::from_value::<SecretText>(value.clone());
                match read {
                    Ok(secret) => assert_eq!(Some(secret.expose()), value.as_str()),
                    Err(refusal) => assert_eq!(refusal.to_string(), "must be a text"),
                }
            });
    }
}
