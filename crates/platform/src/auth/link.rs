//! Signed links: whoever has one may fetch what it names, until it expires, and nothing else.

use chrono::DateTime;
use contracts::Timestamp;
use hmac::Mac;

use super::Auth;
use super::credential::ServiceMac;

impl Auth {
    /// The signature of a link to a path, which expires at a time in seconds.
    pub fn sign_link(&self, path: &str, expires: i64) -> String {
        hex::encode(self.link_mac(path, expires).finalize().into_bytes())
    }

    /// Whether a link was signed by this cluster and has not expired.
    pub fn verify_link(&self, path: &str, expires: i64, signature: &str, now: Timestamp) -> bool {
        let lives = DateTime::from_timestamp(expires, 0).is_some_and(|until| until > now.utc());
        let tag = hex::decode(signature).unwrap_or_default();
        // Compared in constant time.
        self.link_mac(path, expires).verify_slice(&tag).is_ok() && lives
    }

    fn link_mac(&self, path: &str, expires: i64) -> ServiceMac {
        let mut mac = self.0.service_key.clone();
        // No credential and no fingerprint begins so.
        mac.update(format!("link\n{path}\n{expires}").as_bytes());
        mac
    }
}
