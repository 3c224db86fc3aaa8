//! The private keys with which our calls are signed.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};

/// An RSA key that signs by PKCS #1 v1.5 with SHA-256, which Alipay calls RSA2.
#[derive(Clone)]
pub struct SigningKey(Arc<RsaKeyPair>);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey")
    }
}

impl SigningKey {
    /// Reads PEM, or the bare base64 that Alipay's tools write; PKCS #8 or PKCS #1.
    pub fn read(text: &str) -> Option<Self> {
        let bare: String = text
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .flat_map(|line| line.chars().filter(|character| !character.is_whitespace()))
            .collect();
        let der = STANDARD.decode(bare).ok()?;
        let key = RsaKeyPair::from_pkcs8(&der).or_else(|_| RsaKeyPair::from_der(&der));
        Some(Self(Arc::new(key.ok()?)))
    }

    /// Signs a text; base64.
    ///
    /// # Errors
    /// Where the system gives no random numbers.
    pub fn sign(&self, text: &str) -> Result<String, super::Failure> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                text.as_bytes(),
                &mut signature,
            )
            .map_err(|_| super::Failure::Unclear("could not sign".to_owned()))?;
        Ok(STANDARD.encode(signature))
    }
}
