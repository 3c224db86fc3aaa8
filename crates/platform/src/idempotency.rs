//! `Idempotency-Key`: the same key, caller and body give the first reply again, and no second effect.
//!
//! The key is claimed and its reply stored in the transaction of the effect. So there is never an effect without its
//! reply or a reply without its effect, whichever line a process dies on; a second request with the key waits at the
//! unique index for the first one's commit.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use coordination::StoreError;
use coordination::idempotency::{self, Claim};
use garde::Validate;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;

use crate::Problem;
use crate::auth::Auth;
use crate::http::{Json, bytes, parse};

const KEY_HEADER: &str = "idempotency-key";
const LONGEST_KEY: usize = 128;
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A JSON body together with the caller's idempotency key, if there is one.
#[derive(Clone, Debug)]
pub struct Idempotent<T> {
    /// The body.
    pub body: T,
    /// The key.
    pub key: IdempotencyKey,
}

/// The caller's wish to have an effect once.
#[derive(Clone, Debug)]
pub struct IdempotencyKey(Option<Named>);

#[derive(Clone, Debug)]
struct Named {
    key: String,
    route: String,
    fingerprint: [u8; 32],
}

/// What a claimed key says.
#[derive(Debug)]
pub enum Turn {
    /// Go on: this is the first one, or no key was sent. Store the reply before committing.
    First(FirstTurn),
    /// The effect has been had: roll back, and give this reply.
    Replay(Response),
}

/// The right to have the effect.
#[derive(Debug)]
pub struct FirstTurn(Option<(String, String)>);

impl<S: Send + Sync, T: DeserializeOwned + Validate<Context = ()>> FromRequest<S>
    for Idempotent<T>
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = bytes(Request::from_parts(parts.clone(), body), state).await?;
        let auth = parts.extensions.get::<Auth>().cloned();
        let auth = auth.ok_or_else(Problem::internal)?;
        let key = parts.headers.get(KEY_HEADER).map(read);
        let named = key.transpose()?.map(|key| Named {
            key,
            route: format!("{} {}", parts.method, parts.uri.path()),
            fingerprint: auth.fingerprint(&bytes),
        });
        let body = parse(&parts.headers, &bytes)?;
        Ok(Self {
            body,
            key: IdempotencyKey(named),
        })
    }
}

/// The key that a header has: 1 to 128 characters that can be printed.
fn read(value: &HeaderValue) -> Result<String, Problem> {
    let key = value
        .to_str()
        .ok()
        .filter(|key| (1..=LONGEST_KEY).contains(&key.len()));
    key.map(str::to_owned).ok_or_else(|| {
        Problem::invalid_field("Idempotency-Key", "must be 1 to 128 visible characters")
    })
}

impl IdempotencyKey {
    /// No key: every time is the first.
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether no key was sent.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// The key of one effect of several that a request has, each in a transaction of its own.
    #[must_use]
    pub fn part(&self, name: &str) -> Self {
        Self(self.0.clone().map(|named| Named {
            route: format!("{} {name}", named.route),
            ..named
        }))
    }

    /// Claims the key for a caller, in the transaction of the effect.
    ///
    /// # Errors
    /// 422 where the key came with another body, 409 where the first request is still at work, 503 where the store
    /// does not answer.
    pub async fn claim(self, conn: &mut PgConnection, caller: &str) -> Result<Turn, Problem> {
        let Some(Named {
            key,
            route,
            fingerprint,
        }) = self.0
        else {
            return Ok(Turn::First(FirstTurn(None)));
        };
        let scope = format!("{caller} {route}");
        match idempotency::claim(conn, &scope, &key, &fingerprint, LIFETIME).await {
            Ok(Claim::Fresh) => Ok(Turn::First(FirstTurn(Some((scope, key))))),
            Ok(Claim::Replay { status, body }) => {
                let status = StatusCode::from_u16(status).map_err(|_| Problem::internal())?;
                let mut response = (status, Json(body)).into_response();
                response
                    .headers_mut()
                    .insert("idempotent-replayed", HeaderValue::from_static("true"));
                Ok(Turn::Replay(response))
            }
            Ok(Claim::Mismatch) => Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "IDEMPOTENCY_MISMATCH",
                "this Idempotency-Key was used with another body",
            )),
            Ok(Claim::Running) => Err(Problem::conflict(
                "CONFLICT",
                "the first request with this Idempotency-Key is still at work",
            )
            .retry_after(Duration::from_secs(1))),
            Err(error) => {
                tracing::warn!("{}", crate::problem::causes(&error));
                Err(Problem::not_ready(
                    "the idempotency key could not be checked; try again",
                ))
            }
        }
    }
}

impl FirstTurn {
    /// Keeps the reply for those who come again with the key, and gives it.
    ///
    /// # Errors
    /// 503 where the store does not answer: roll back.
    pub async fn reply<T: Serialize>(
        &self,
        conn: &mut PgConnection,
        status: StatusCode,
        body: &T,
    ) -> Result<Response, Problem> {
        let body = serde_json::to_value(body).map_err(|_| Problem::internal())?;
        if let Some((scope, key)) = &self.0 {
            idempotency::store(conn, scope, key, status.as_u16(), &body)
                .await
                .map_err(unkept)?;
        }
        Ok((status, Json(body)).into_response())
    }

    /// Puts a later reply in the place of the one kept, where the effect went on after its commit, and gives it. It
    /// needs no transaction: whoever comes between gets the earlier reply.
    ///
    /// # Errors
    /// 503 where the store does not answer.
    pub async fn amend<T: Serialize>(
        &self,
        conn: &mut PgConnection,
        status: StatusCode,
        body: &T,
    ) -> Result<Response, Problem> {
        let body = serde_json::to_value(body).map_err(|_| Problem::internal())?;
        if let Some((scope, key)) = &self.0 {
            idempotency::amend(conn, scope, key, status.as_u16(), &body)
                .await
                .map_err(unkept)?;
        }
        Ok((status, Json(body)).into_response())
    }
}

fn unkept(error: StoreError) -> Problem {
    tracing::warn!("{}", crate::problem::causes(&error));
    Problem::not_ready("the reply could not be stored; try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_key_is_taken_as_it_was_sent_or_refused() {
        bolero::check!()
            .with_iterations(5_000)
            .with_max_len(200)
            .for_each(|bytes: &[u8]| {
                let Ok(value) = HeaderValue::from_bytes(bytes) else {
                    return;
                };
                let fits = (1..=LONGEST_KEY).contains(&bytes.len())
                    && bytes
                        .iter()
                        .all(|byte| (b' '..=b'~').contains(byte) || *byte == b'\t');
                match read(&value) {
                    Ok(key) => assert!(fits && key.as_bytes() == bytes, "{key:?}"),
                    Err(problem) => {
                        assert!(!fits, "{bytes:?}");
                        assert_eq!(problem.status(), StatusCode::BAD_REQUEST);
                    }
                }
            });
    }
}
