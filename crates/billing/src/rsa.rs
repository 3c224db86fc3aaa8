//! RSA keys: ours, by which calls to providers are signed, and theirs, by which what they say is checked. PKCS #1 v1.5
//! with SHA-256, which Alipay calls RSA2.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
};
use x509_cert::Certificate;
use x509_cert::der::{Decode, SliceReader};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

/// A private key of ours.
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
        let der = der(text)?;
        let key = RsaKeyPair::from_pkcs8(&der).or_else(|_| RsaKeyPair::from_der(&der));
        Some(Self(Arc::new(key.ok()?)))
    }

    /// Signs a text, in base64; `None` where the system gives no random numbers.
    pub fn sign(&self, text: &str) -> Option<String> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        let random = SystemRandom::new();
        self.0
            .sign(&RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut signature)
            .ok()?;
        Some(STANDARD.encode(signature))
    }
}

/// A public key of a provider.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey(Vec<u8>);

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifyingKey")
    }
}

impl VerifyingKey {
    /// Reads a public key or a certificate, in PEM or the bare base64 that Alipay shows.
    pub fn read(text: &str) -> Option<Self> {
        let der = der(text)?;
        let key = SubjectPublicKeyInfoOwned::from_der(&der).or_else(|_| {
            Certificate::from_der(&der)
                .map(|found| found.tbs_certificate().subject_public_key_info().clone())
        });
        let bytes = key.ok()?.subject_public_key.as_bytes()?.to_vec();
        // Two numbers in a sequence, the first of 2048 bits at least: ring looks at them only with a signature.
        let is_rsa = SliceReader::new(&bytes).is_ok() && bytes.len() > 256 && bytes[0] == 0x30;
        is_rsa.then_some(Self(bytes))
    }

    /// Whether a base64 signature fits a message.
    pub fn fits(&self, message: &[u8], signature: &str) -> bool {
        let Ok(signature) = STANDARD.decode(signature) else {
            return false;
        };
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.0)
            .verify(message, &signature)
            .is_ok()
    }
}

/// What PEM, or base64 without its frame, holds.
fn der(text: &str) -> Option<Vec<u8>> {
    let bare: String = text
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .flat_map(|line| line.chars().filter(|character| !character.is_whitespace()))
        .collect();
    STANDARD.decode(bare).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_key_of_2048_bits_is_refused() {
        // A key of 1024 bits, an empty one, and no key at all.
        let short = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCgSvZ77LVk657f2NHHb2woQIT7t+1QGl5zgKFxwR+8jCtXw79VELrdGMvUFuJkxMy7101iw2TxY+InJXn9IKWIcsb4jrWM9eOyxK4QJjldcTsiS1em4Yi9xD0jfkFulJCtvUBmO231jOhjjsdk5CuCnLoue8ZU7+1hcsfKW8ySUwIDAQAB";
        for text in [
            "",
            "AAAA",
            "-----BEGIN PUBLIC KEY-----",
            "not base64",
            short,
        ] {
            assert_eq!(VerifyingKey::read(text), None, "{text}");
        }
    }

    #[test]
    fn any_text_is_a_key_or_not() {
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(64)
            .for_each(|bytes: &[u8]| {
                let text = String::from_utf8_lossy(bytes);
                for text in [&*text, &STANDARD.encode(bytes)] {
                    assert_eq!(VerifyingKey::read(text), None);
                }
            });
    }
}
