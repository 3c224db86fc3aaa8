//! Why a caller is not known; the same words at the edge and in every service.

use std::fmt;

use http::StatusCode;

use super::TokenError;
use crate::Problem;

/// Why a caller is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// The `Authorization` header is there, and holds something else.
    Malformed,
    /// The token is not good.
    Token(TokenError),
    /// A token and an API key: whom they speak for may differ.
    Ambiguous,
    /// The API key is none, or may not be used any more.
    Key,
    /// The token is good, its session is over.
    Ended,
    /// No store could tell whether the session lives: nobody gets in, and may try again.
    Unchecked,
    /// The same of an API key.
    KeyUnchecked,
}

impl AuthError {
    /// The status, the code and the sentence for the client.
    pub const fn words(self) -> (StatusCode, &'static str, &'static str) {
        let unauthenticated = (StatusCode::UNAUTHORIZED, "UNAUTHENTICATED");
        let not_ready = (StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
        let ((status, code), message) = match self {
            Self::Malformed => (
                unauthenticated,
                "the Authorization header is not `Bearer <token>`",
            ),
            Self::Token(TokenError::Expired) => (
                (StatusCode::UNAUTHORIZED, "TOKEN_EXPIRED"),
                "the token has expired",
            ),
            Self::Token(TokenError::Invalid) => (unauthenticated, "the token is not valid"),
            Self::Ambiguous => (
                (StatusCode::BAD_REQUEST, "VALIDATION_FAILED"),
                "send either Authorization or X-API-Key, not both",
            ),
            Self::Key => (
                unauthenticated,
                "the API key is not valid, or was switched off, revoked or has expired",
            ),
            Self::Ended => (unauthenticated, "the session has ended"),
            Self::Unchecked => (not_ready, "the session could not be checked; try again"),
            Self::KeyUnchecked => (not_ready, "the API key could not be checked; try again"),
        };
        (status, code, message)
    }
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words().2)
    }
}

impl std::error::Error for AuthError {}

impl From<TokenError> for AuthError {
    fn from(error: TokenError) -> Self {
        Self::Token(error)
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        let (status, code, message) = error.words();
        match error {
            AuthError::Unchecked | AuthError::KeyUnchecked => Self::not_ready(message),
            AuthError::Malformed
            | AuthError::Token(_)
            | AuthError::Ambiguous
            | AuthError::Key
            | AuthError::Ended => Self::new(status, code, message),
        }
    }
}
