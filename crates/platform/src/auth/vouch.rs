//! The word of a gateway for a caller: who it is, signed for one request and a moment, so that the service behind need
//! neither verify a token nor ask a store. A service that does not believe it verifies the caller itself.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use contracts::Timestamp;
use hmac::Mac;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};

use super::api_key::Scopes;
use super::credential::TOLERANCE;
use super::{Auth, CurrentUser, Identity, KeyIdentity, Proof};

/// The header that carries the word; one that a client sends is taken off at the gateway.
pub const IDENTITY_HEADER: HeaderName = HeaderName::from_static("x-cloudphone-identity");
const REQUEST_ID: &str = "x-request-id";

/// One request, as both sides see it. The body is not signed.
#[derive(Clone, Copy, Debug)]
pub struct Occasion<'a> {
    /// The method.
    pub method: &'a Method,
    /// What it asks the service for.
    pub target: &'a PathAndQuery,
    /// The value of `x-request-id`.
    pub request_id: &'a HeaderValue,
}

/// Whom a gateway vouches for. A key has no session, so that a service that knows no keys believes no word for one.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Vouched {
    /// The bearer of a token.
    Session(Identity),
    /// The bearer of a key.
    Key(KeyIdentity),
}

/// An identity as it stands in the header; worth keeping for as long as the identity is.
pub fn spell(identity: &impl Serialize) -> String {
    let json = serde_json::to_vec(identity).expect("an identity is plain JSON");
    URL_SAFE_NO_PAD.encode(json)
}

impl Auth {
    /// Signs a spelled identity for one request.
    pub(super) fn vouch(
        &self,
        spelled: &str,
        occasion: Occasion<'_>,
        now: Timestamp,
    ) -> HeaderValue {
        let text = format!("{}.{spelled}", now.utc().timestamp());
        let tag = self.occasion_mac(&text, occasion).finalize().into_bytes();
        let value = format!("{text}.{}", hex::encode(tag));
        HeaderValue::try_from(value).expect("digits, base64 and dots are a header value")
    }

    /// Names the caller of a service to another service, for the one request that is made on the caller's behalf. What a key
    /// is held to there must have been held to here already: it is not held to scopes again.
    pub fn speak_for(
        &self,
        user: &CurrentUser,
        occasion: Occasion<'_>,
        now: Timestamp,
    ) -> HeaderValue {
        let roles = match user.is_admin {
            true => vec!["admin".to_owned()],
            false => Vec::new(),
        };
        let (user_id, username) = (user.id.clone(), user.username.clone());
        let spelled = match user.proof.clone() {
            Proof::Session(session_id) => spell(&Identity {
                user_id,
                username,
                email: String::new(),
                roles,
                tenant_id: None,
                is_super_admin: false,
                session_id,
            }),
            Proof::Key(key_id) => spell(&KeyIdentity {
                user_id,
                username,
                roles,
                key_id,
                scopes: Scopes(vec!["*".to_owned()]),
            }),
        };
        self.vouch(&spelled, occasion, now)
    }

    /// Whom a gateway, or a service that was called, vouches for on this request, now.
    pub(super) fn vouched(&self, parts: &Parts) -> Option<Vouched> {
        let value = parts.headers.get(IDENTITY_HEADER)?.to_str().ok()?;
        let occasion = Occasion {
            method: &parts.method,
            target: parts.uri.path_and_query()?,
            request_id: parts.headers.get(REQUEST_ID)?,
        };
        let (text, tag) = value.rsplit_once('.')?;
        let (seconds, spelled) = text.split_once('.')?;
        // `verify_slice` compares in constant time.
        self.occasion_mac(text, occasion)
            .verify_slice(&hex::decode(tag).ok()?)
            .ok()?;
        let now = self.0.clock.now().utc().timestamp();
        let age = now.checked_sub(seconds.parse().ok()?)?;
        if !(-TOLERANCE..=TOLERANCE).contains(&age) {
            return None;
        }
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(spelled).ok()?).ok()
    }

    fn occasion_mac(&self, text: &str, occasion: Occasion<'_>) -> super::credential::ServiceMac {
        let mut mac = self.0.service_key.clone();
        // No service has this name, so that no credential of one can pass for it.
        mac.update(b"identity\n");
        for part in [
            occasion.method.as_str().as_bytes(),
            occasion.target.as_str().as_bytes(),
            occasion.request_id.as_bytes(),
        ] {
            mac.update(part);
            mac.update(b"\n");
        }
        mac.update(text.as_bytes());
        mac
    }
}
