//! Public keys of providers, by which their RSA signatures (PKCS #1 v1.5 with SHA-256) are checked.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use x509_cert::Certificate;
use x509_cert::der::{Decode, SliceReader};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

/// A public key.
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
        let bare: String = text
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .flat_map(|line| line.chars().filter(|character| !character.is_whitespace()))
            .collect();
        let der = STANDARD.decode(bare).ok()?;
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
