//! Asking for another password, and setting it.

use axum::extract::State;
use chrono::TimeDelta;
use contracts::{Event, EventBody};
use garde::Validate;
use http::StatusCode;
use platform::Problem;
use platform::events::emit;
use platform::http::{ClientAddress, Json};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};
use tracing::warn;
use utoipa::ToSchema;

use super::db;
use crate::account::api::Done;
use crate::account::db as accounts;
use crate::account::view::Status;
use crate::account::{self, normal};
use crate::audit::{self, Entry};
use crate::error::Result;
use crate::secret::SecretText;
use crate::session::{self, Which};
use crate::token::hash;
use crate::{Users, limits, password};

/// How long a token may be used.
pub const LIFETIME: TimeDelta = TimeDelta::minutes(30);

/// By which way the token comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// By mail.
    Email,
    /// By a text message, which is not set up.
    Phone,
}

/// Who forgot a password.
#[derive(Debug, Deserialize, Validate, ToSchema)]
pub struct ForgotPassword {
    /// Default email.
    #[garde(skip)]
    #[serde(rename = "type")]
    way: Option<Way>,
    #[garde(inner(custom(account::email)))]
    email: Option<String>,
    #[garde(inner(custom(account::phone)))]
    phone: Option<String>,
}

/// A token that was mailed.
#[derive(Debug, Deserialize, Validate, ToSchema)]
pub struct VerifyToken {
    #[garde(custom(self::token))]
    #[schema(value_type = String)]
    token: SecretText,
}

/// Whether a token may be used.
#[derive(Debug, Serialize, ToSchema)]
pub struct Verified {
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
}

/// Another password.
#[derive(Debug, Deserialize, Validate, ToSchema)]
pub struct ResetPassword {
    #[garde(custom(self::token))]
    #[schema(value_type = String)]
    token: SecretText,
    /// 8 to 100 characters with a letter and a digit.
    #[garde(custom(password::new))]
    #[schema(value_type = String, format = Password)]
    password: SecretText,
}

const SPENT: &str = "the token is wrong, used or too old: ask for another one";

/// Mails what sets another password. The answer is the same where there is no such account.
#[utoipa::path(post, path = "/auth/forgot-password", tag = "auth", security(()), request_body = ForgotPassword, responses(
    (status = 200, body = Done), (status = 400, body = ProblemBody), (status = 429, body = ProblemBody)))]
pub async fn forgot_password(
    State(state): State<Users>,
    ClientAddress(address): ClientAddress,
    Json(body): Json<ForgotPassword>,
) -> Result<Json<Done>> {
    if body.way == Some(Way::Phone) || (body.email.is_none() && body.phone.is_some()) {
        let why = "text messages are not set up: use the mail address";
        return Err(Problem::invalid_field("type", why).into());
    }
    let email = body
        .email
        .ok_or_else(|| Problem::invalid_field("email", "is required"))?;
    let email = normal(&email);
    limits::reset(&state, address, &email).await?;
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.now();
    db::ask(&mut conn, &email, &address.to_string(), now).await?;
    Ok(Json(Done {
        message: "if there is such an account, a mail to its address says how to set another password",
    }))
}

/// Whether a token may still be used.
#[utoipa::path(post, path = "/auth/verify-reset-token", tag = "auth", security(()), request_body = VerifyToken, responses(
    (status = 200, body = Verified), (status = 400, body = ProblemBody), (status = 429, body = ProblemBody)))]
pub async fn verify_reset_token(
    State(state): State<Users>,
    ClientAddress(address): ClientAddress,
    Json(body): Json<VerifyToken>,
) -> Result<Json<Verified>> {
    limits::reset_token(&state, address).await?;
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.now();
    let owner = db::owner(&mut conn, &hash(body.token.expose()), now).await?;
    Ok(Json(Verified {
        valid: owner.is_some(),
        message: owner.is_none().then_some(SPENT),
    }))
}

/// Sets another password by a token, once; all sessions end.
#[utoipa::path(post, path = "/auth/reset-password", tag = "auth", security(()), request_body = ResetPassword, responses(
    (status = 200, body = Done), (status = 400, body = ProblemBody), (status = 429, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn reset_password(
    State(state): State<Users>,
    ClientAddress(address): ClientAddress,
    Json(body): Json<ResetPassword>,
) -> Result<Json<Done>> {
    limits::reset_token(&state, address).await?;
    let spent = || {
        Problem::new(StatusCode::BAD_REQUEST, "VALIDATION_FAILED", SPENT).with_field("token", SPENT)
    };
    let token = hash(body.token.expose());
    // Nobody has a password hashed for nothing.
    let owner = {
        let mut conn = state.platform.db.acquire().await?;
        let now = state.platform.clock.now();
        let owner = db::owner(&mut conn, &token, now).await?.ok_or_else(spent)?;
        accounts::find(&mut conn, &owner).await?.ok_or_else(spent)?
    };
    let about = [&*owner.username, &owner.email];
    password::strength::check(&state, "password", &body.password, &about).await?;
    let new = state.hasher.hash(body.password).await?;

    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let id = &owner.id;
    let status = accounts::lock(&mut tx, id).await?;
    if status != Status::Active || !db::spend(&mut tx, &token, id, now).await? {
        return Err(spent().into());
    }
    accounts::set_hash(&mut tx, id, &new, now).await?;
    let ended = session::end(&mut tx, id, Which::All, now).await?;
    let event = Event::new(id.clone(), now, EventBody::PasswordChanged {});
    emit(&mut tx, &event).await?;
    let entry = Entry::done(id, "user.password_reset", ("user", id.as_str()));
    audit::write(&mut tx, entry, now).await?;
    tx.commit().await?;

    // The password is set whatever happens now; a job goes on where this fails.
    if let Err(error) = session::enforce(&state, &ended).await {
        warn!(user.id = %id, "sessions of {id} end a little later: {error}");
    }
    Ok(Json(Done {
        message: "the password is set; all sessions have ended",
    }))
}

fn token(token: &SecretText, _: &()) -> garde::Result {
    let fits = (1..=200).contains(&token.expose().len());
    account::rule(fits, "must be the token that was mailed")
}
