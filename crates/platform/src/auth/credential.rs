//! The credential by which one service proves itself to another: an HMAC over its name, the time, method and path.

use contracts::{Service, Timestamp};
use hmac::{Hmac, KeyInit, Mac};
use http::{Method, Uri};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use super::Auth;

/// The header that carries the credential.
pub const SERVICE_HEADER: &str = "x-cloudphone-service";

/// How far the clocks of two machines may differ, in seconds.
pub const TOLERANCE: i64 = 30;

/// A message authentication code by the secret that services share.
pub type ServiceMac = Hmac<Sha256>;

impl Auth {
    /// Signs a call to another service. `path` is that of the URL, without the query; the body is not signed.
    pub fn service_credential(
        &self,
        service: Service,
        now: Timestamp,
        method: &Method,
        path: &str,
    ) -> String {
        sign(self.0.service_key.clone(), service, now, method, path)
    }

    /// Tells bodies apart without telling what they hold: a plain digest of one with a password could be guessed at by
    /// whoever reads it.
    pub fn fingerprint(&self, body: &[u8]) -> [u8; 32] {
        let mut mac = self.0.service_key.clone();
        mac.update(b"fingerprint\n");
        mac.update(body);
        mac.finalize().into_bytes().into()
    }

    /// Which service a credential proves a call to come from.
    pub(super) fn verify_credential(
        &self,
        credential: &str,
        method: &Method,
        uri: &Uri,
        now: Timestamp,
    ) -> Option<Service> {
        let (text, tag) = credential.rsplit_once('.')?;
        let (name, seconds) = text.split_once('.')?;
        let age = now.utc().timestamp().checked_sub(seconds.parse().ok()?)?;
        // `verify_slice` compares in constant time.
        let key = self.0.service_key.clone();
        mac(key, text, method, uri.path())
            .verify_slice(&hex::decode(tag).ok()?)
            .ok()?;
        if (-TOLERANCE..=TOLERANCE).contains(&age) {
            name.parse().ok()
        } else {
            None
        }
    }
}

/// Signs a call to a service with the cluster's `SERVICE_SECRET`; `path` is that of the URL, without the query.
pub fn credential(
    secret: &SecretString,
    service: Service,
    now: Timestamp,
    method: &Method,
    path: &str,
) -> String {
    sign(keyed(secret), service, now, method, path)
}

fn sign(key: ServiceMac, service: Service, now: Timestamp, method: &Method, path: &str) -> String {
    let text = format!("{}.{}", service.name(), now.utc().timestamp());
    let tag = mac(key, &text, method, path).finalize().into_bytes();
    format!("{text}.{}", hex::encode(tag))
}

fn mac(mut key: ServiceMac, text: &str, method: &Method, path: &str) -> ServiceMac {
    key.update(format!("{text}\n{method}\n{path}").as_bytes());
    key
}

/// The code of nothing yet, by this secret.
pub fn keyed(secret: &SecretString) -> ServiceMac {
    Hmac::new_from_slice(secret.expose_secret().as_bytes()).expect("HMAC takes keys of any length")
}
