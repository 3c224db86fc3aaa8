//! Who may move money, and which family of paths was called.

use std::time::Duration;

use axum::extract::FromRequestParts;
use contracts::UserId;
use coordination::rate_limit::Limit;
use http::StatusCode;
use http::request::Parts;
use platform::auth::Auth;
use platform::{Caller, CurrentUser, Problem};

use crate::Billing;

/// How a caller writes the status of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `/orders`: the state in upper case.
    Upper,
    /// `/billing/orders`: one of five lower-case words.
    Lower,
}

/// Whether this call may use what the sandbox opens: it is open, and the call comes from this machine.
#[derive(Clone, Copy, Debug)]
pub struct SandboxOpen(pub bool);

/// Whoever may move a user's balance by hand: an admin, a service, and in the sandbox a user with the own account.
#[derive(Clone, Debug)]
pub struct MoneyMover(Caller);

impl MoneyMover {
    /// Whose balance is meant.
    ///
    /// # Errors
    /// 403 for somebody else's id, 400 where nobody is named and nobody is signed in.
    pub fn acting_for(&self, named: Option<UserId>) -> Result<UserId, Problem> {
        self.0.acting_for(named)
    }

    /// The name under which the caller's idempotency keys are kept.
    pub fn key_owner(&self) -> String {
        self.0.key_owner()
    }

    /// Who stands as operator in the ledger: nobody for a user's own movement.
    pub fn operator(&self) -> Option<String> {
        match &self.0 {
            Caller::User(user) if user.is_admin => Some(user.id.to_string()),
            Caller::Service(service) => Some(service.public_name().to_owned()),
            Caller::User(_) | Caller::Sandbox => None,
        }
    }
}

/// Ten of a kind in five minutes a user, over all replicas; without Redis the limit steps aside.
///
/// # Errors
/// 429 where there were ten.
pub async fn limit(state: &Billing, user: &CurrentUser, kind: &'static str) -> Result<(), Problem> {
    if !state.platform.settings.rate_limits {
        return Ok(());
    }
    let limit = Limit::per(10, Duration::from_secs(300)).tier(kind);
    platform::http::limit(&state.limiter, user.id.as_str(), limit).await
}

impl<S: Send + Sync> FromRequestParts<S> for Family {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let lower = parts.uri.path().starts_with("/billing/");
        Ok(if lower { Self::Lower } else { Self::Upper })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SandboxOpen {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let auth = parts.extensions.get::<Auth>();
        Ok(Self(auth.is_some_and(|auth| auth.opens_sandbox(parts))))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for MoneyMover {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let Ok(SandboxOpen(open)) = SandboxOpen::from_request_parts(parts, state).await;
        match &caller {
            Caller::Service(_) => Ok(Self(caller)),
            Caller::User(user) if user.is_admin || open => Ok(Self(caller)),
            Caller::User(_) => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "SANDBOX_ONLY",
                "balances are moved by admins and services; pay an order instead",
            )),
            Caller::Sandbox => Err(Problem::unauthenticated(
                "sign in: a bearer token is required",
            )),
        }
    }
}
