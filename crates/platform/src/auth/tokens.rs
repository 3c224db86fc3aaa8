//! Access tokens: JWT signed with `EdDSA`, with a key id.

use std::fmt;

use anyhow::{Context, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use contracts::{SessionId, Timestamp, UserId};
use ed25519_dalek::SigningKey;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// An Ed25519 seed in PKCS#8 (RFC 8410) begins with this.
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Who a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The user.
    #[serde(rename = "sub")]
    pub user_id: UserId,
    /// The name at the time of signing in.
    pub username: String,
    /// The mail address at the time of signing in.
    pub email: String,
    /// The names of the roles.
    pub roles: Vec<String>,
    /// The tenant, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// Whether every check is passed.
    pub is_super_admin: bool,
    /// The session, by whose end the token ends.
    #[serde(rename = "sid")]
    pub session_id: SessionId,
}

/// What a token says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// Who it speaks for.
    #[serde(flatten)]
    pub identity: Identity,
    /// When it was issued, seconds since 1970.
    pub iat: i64,
    /// When it expires.
    pub exp: i64,
    /// Names the token.
    pub jti: String,
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It is not one of ours.
    #[error("the token is not valid")]
    Invalid,
}

/// The most keys at a time.
const MOST_KEYS: usize = 8;

/// Signs tokens with one key and believes several, so that a key makes way for another one and nobody is signed out.
pub struct Tokens {
    signing: EncodingKey,
    /// The first one belongs to `signing`.
    keys: Vec<Key>,
}

struct Key {
    /// Names it in tokens: of its public half, so that all replicas agree.
    id: String,
    public: [u8; 32],
    verifying: DecodingKey,
}

impl Key {
    fn new(signing: &SigningKey) -> anyhow::Result<Self> {
        let public = signing.verifying_key().to_bytes();
        let x = URL_SAFE_NO_PAD.encode(public);
        Ok(Self {
            id: hex::encode(&Sha256::digest(public)[..8]),
            public,
            verifying: DecodingKey::from_ed_components(&x).context("deriving the public key")?,
        })
    }
}

impl Tokens {
    /// Takes 32-byte seeds in base64, with commas between them: the first one signs, all are believed.
    ///
    /// # Errors
    /// Where one is no such seed, or they are more than eight.
    pub fn new(seeds: &SecretString) -> anyhow::Result<Self> {
        let seeds: Vec<&str> = seeds.expose_secret().split(',').map(str::trim).collect();
        ensure!(
            seeds.len() <= MOST_KEYS,
            "{} keys are more than {MOST_KEYS}",
            seeds.len()
        );
        let mut keys = Vec::with_capacity(seeds.len());
        for seed in &seeds {
            keys.push(Key::new(&SigningKey::from_bytes(&decode(seed)?))?);
        }
        let first = seeds.first().context("no key")?;
        let signing = EncodingKey::from_ed_der(&[&PKCS8[..], &decode(first)?].concat());
        Ok(Self { signing, keys })
    }

    /// Signs a token that lives for a while from now.
    ///
    /// # Errors
    /// Where the key cannot sign, which no valid seed leads to.
    pub fn issue(
        &self,
        identity: Identity,
        now: Timestamp,
        lifetime: TimeDelta,
    ) -> anyhow::Result<String> {
        let iat = now.utc().timestamp();
        let claims = Claims {
            identity,
            iat,
            exp: iat + lifetime.num_seconds(),
            jti: Uuid::new_v4().to_string(),
        };
        let header = Header {
            kid: self.keys.first().map(|key| key.id.clone()),
            ..Header::new(Algorithm::EdDSA)
        };
        jsonwebtoken::encode(&header, &claims, &self.signing).context("signing a token")
    }

    /// Checks key, algorithm, signature and time. Whether the session still lives is [`super::Sessions`]' matter.
    ///
    /// # Errors
    /// [`TokenError`]; a bad signature outweighs a time that is over.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, TokenError> {
        let claims = self.verify_at_any_age(token)?;
        if claims.exp <= now.utc().timestamp() {
            Err(TokenError::Expired)
        } else {
            Ok(claims)
        }
    }

    /// Checks all but the time, for a refresh with a token that expired a while ago.
    ///
    /// # Errors
    /// [`TokenError::Invalid`].
    pub fn verify_at_any_age(&self, token: &str) -> Result<Claims, TokenError> {
        let mut validation = Validation::new(Algorithm::EdDSA);
        // The time is compared with our clock by the caller, the audience is not used.
        validation.validate_exp = false;
        validation.validate_aud = false;
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
        let key = self
            .keys
            .iter()
            .find(|key| header.kid.as_deref() == Some(&*key.id));
        let key = key.ok_or(TokenError::Invalid)?;
        let decoded = jsonwebtoken::decode::<Claims>(token, &key.verifying, &validation);
        decoded
            .map(|decoded| decoded.claims)
            .map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature => TokenError::Expired,
                _ => TokenError::Invalid,
            })
    }

    /// The public keys as a JSON Web Key Set (RFC 7517, RFC 8037).
    pub fn jwks(&self) -> Value {
        let keys = self.keys.iter().map(|key| {
            json!({
                "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig",
                "kid": key.id, "x": URL_SAFE_NO_PAD.encode(key.public),
            })
        });
        json!({ "keys": keys.collect::<Vec<_>>() })
    }
}

/// The seed of a key.
fn decode(seed: &str) -> anyhow::Result<[u8; 32]> {
    let bytes = STANDARD
        .decode(seed)
        .context("the signing key is not base64")?;
    let length = bytes.len();
    bytes
        .try_into()
        .map_err(|_| anyhow!("the signing key holds {length} bytes instead of 32"))
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&str> = self.keys.iter().map(|key| &*key.id).collect();
        f.debug_struct("Tokens")
            .field("keys", &ids)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Clock;

    fn tokens(byte: u8) -> Tokens {
        Tokens::new(&STANDARD.encode([byte; 32]).into()).unwrap()
    }

    fn identity() -> Identity {
        Identity {
            user_id: UserId::new(),
            username: "alice".into(),
            email: "alice@example.com".into(),
            roles: vec!["user".into()],
            tenant_id: None,
            is_super_admin: false,
            session_id: SessionId::new(),
        }
    }

    #[test]
    fn a_token_of_ours_is_believed_until_it_expires() {
        let (tokens, now, identity) = (tokens(1), Clock::system().now(), identity());
        let token = tokens
            .issue(identity.clone(), now, TimeDelta::hours(1))
            .unwrap();

        assert_eq!(tokens.verify(&token, now).unwrap().identity, identity);
        assert_eq!(
            tokens
                .verify(&token, now + TimeDelta::hours(1))
                .unwrap_err(),
            TokenError::Expired
        );
    }

    #[test]
    fn a_key_makes_way_for_another_one_and_no_token_is_refused_meanwhile() {
        let (one, two) = (STANDARD.encode([1; 32]), STANDARD.encode([2; 32]));
        let replica = |keys: String| Tokens::new(&keys.into()).unwrap();
        let steps = [
            replica(one.clone()),
            replica(format!("{one}, {two}")),
            replica(format!("{two},{one}")),
            replica(two),
        ];
        let now = Clock::system().now();
        let token = |tokens: &Tokens| tokens.issue(identity(), now, TimeDelta::hours(1)).unwrap();

        // While the setting changes, replicas of two steps stand beside each other.
        for pair in steps.windows(2) {
            assert!(pair[1].verify(&token(&pair[0]), now).is_ok());
        }
        for pair in steps[..3].windows(2) {
            assert!(pair[0].verify(&token(&pair[1]), now).is_ok());
        }
        assert!(steps[3].verify(&token(&steps[0]), now).is_err());
        assert_eq!(steps[1].jwks()["keys"].as_array().map(Vec::len), Some(2));
        let many = vec![STANDARD.encode([1; 32]); MOST_KEYS + 1].join(",");
        assert!(Tokens::new(&many.into()).is_err());
    }

    #[test]
    fn other_keys_algorithms_and_changed_bytes_are_refused() {
        let (ours, now) = (tokens(1), Clock::system().now());
        let good = ours.issue(identity(), now, TimeDelta::hours(1)).unwrap();
        let foreign = tokens(2)
            .issue(identity(), now, TimeDelta::hours(1))
            .unwrap();
        let claims = good.split('.').nth(1).unwrap();
        let none = format!(
            "{}.{claims}.",
            URL_SAFE_NO_PAD.encode(br#"{"alg":"none","typ":"JWT"}"#)
        );
        let hmac = jsonwebtoken::encode(
            &Header {
                kid: Some(ours.keys[0].id.clone()),
                ..Header::new(Algorithm::HS256)
            },
            &json!({ "sub": "x", "exp": i64::MAX }),
            &EncodingKey::from_secret(&ours.keys[0].public),
        )
        .unwrap();

        for token in [
            foreign,
            none,
            hmac,
            good.replacen('.', ".e", 1),
            String::new(),
        ] {
            assert_eq!(
                ours.verify(&token, now).unwrap_err(),
                TokenError::Invalid,
                "{token}"
            );
        }
    }
}
