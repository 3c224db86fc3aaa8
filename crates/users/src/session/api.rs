//! Signing in, renewing, signing out.

use std::net::IpAddr;

use axum::extract::State;
use chrono::TimeDelta;
use contracts::{SessionId, Timestamp};
use garde::Validate;
use http::{HeaderMap, header};
use platform::http::{ClientAddress, Json};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;
use utoipa::ToSchema;

use super::agent::Agent;
use super::sign_in::{self, Issued, SignIn, SignedIn};
use super::{Which, db, end, enforce};
use crate::account::normal;
use crate::account::view::{Me, Status};
use crate::audit::{self, Entry};
use crate::captcha::{self, Answer};
use crate::error::{Error, Result};
use crate::secret::SecretText;
use crate::token::{self, Token, TokenHash};
use crate::two_factor::{self, Sent};
use crate::{Users, limits, metrics, password};

/// For how long an access token that has expired still renews its session.
const RENEWABLE: TimeDelta = TimeDelta::days(7);

/// Name and password.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Login {
    /// User name or mail address.
    #[garde(length(chars, min = 1, max = 100), custom(without_nul))]
    username: String,
    #[garde(custom(password::sent))]
    #[schema(value_type = String, format = Password)]
    password: SecretText,
    /// Whether the token lives a week instead of a day.
    #[garde(skip)]
    remember: Option<bool>,
    /// What the picture shows; asked for where the settings say so, else ignored.
    #[garde(skip)]
    #[schema(value_type = Option<String>)]
    captcha: Option<Value>,
    /// Which picture.
    #[garde(skip)]
    #[schema(value_type = Option<String>)]
    captcha_id: Option<Value>,
    /// Six digits, or a recovery code, where the account has two factors.
    #[garde(inner(custom(two_factor::api::sent)))]
    #[schema(value_type = Option<String>)]
    two_factor_token: Option<SecretText>,
}

/// The password is right; the second factor is wanted beside it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TwoFactorWanted {
    success: bool,
    requires_two_factor: bool,
    message: &'static str,
}

/// How a sign-in ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum LoginReply {
    /// With a session.
    LoggedIn(Box<LoggedIn>),
    /// With a question.
    TwoFactorWanted(TwoFactorWanted),
}

/// The tokens of a new session, under the names that clients know.
#[derive(Debug, Serialize, ToSchema)]
pub struct LoggedIn {
    success: bool,
    access_token: String,
    /// The same as `access_token`.
    token: String,
    token_type: &'static str,
    /// Seconds.
    #[serde(rename = "expiresIn")]
    expires_in: i64,
    /// Renews the tokens once.
    refresh_token: String,
    user: Me,
}

/// What renews a session; without it, the bearer token does.
#[derive(Debug, Deserialize, Validate, ToSchema)]
pub struct Refresh {
    #[garde(skip)]
    #[serde(alias = "refreshToken")]
    #[schema(value_type = Option<String>)]
    refresh_token: Option<SecretText>,
}

/// The tokens of a renewed session.
#[derive(Debug, Serialize, ToSchema)]
pub struct Refreshed {
    success: bool,
    token: String,
    access_token: String,
    /// Renews the tokens once.
    refresh_token: String,
    /// Seconds.
    #[serde(rename = "expiresIn")]
    expires_in: i64,
}

/// The session is over.
#[derive(Debug, Serialize, ToSchema)]
pub struct LoggedOut {
    success: bool,
    message: &'static str,
}

/// Opens a session, or asks for the second factor where the account has two.
#[utoipa::path(post, path = "/auth/login", tag = "auth", security(()), request_body = Login, responses(
    (status = 200, body = LoginReply),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 429, body = ProblemBody),
    (status = 503, body = ProblemBody),
))]
pub async fn login(
    State(state): State<Users>,
    ClientAddress(address): ClientAddress,
    agent: Agent,
    Json(body): Json<Login>,
) -> Result<Json<LoginReply>> {
    sign_in(&state, address, agent, body).await
}

/// Opens a session by the password and the second factor.
#[utoipa::path(post, path = "/auth/2fa/verify", tag = "auth", security(()), request_body = Login, responses(
    (status = 200, body = LoginReply),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 429, body = ProblemBody),
    (status = 503, body = ProblemBody),
))]
pub async fn verify_two_factor(
    State(state): State<Users>,
    ClientAddress(address): ClientAddress,
    agent: Agent,
    Json(body): Json<Login>,
) -> Result<Json<LoginReply>> {
    if body.two_factor_token.is_none() {
        return Err(Problem::invalid_field("twoFactorToken", "is required").into());
    }
    sign_in(&state, address, agent, body).await
}

async fn sign_in(
    state: &Users,
    address: IpAddr,
    agent: Agent,
    body: Login,
) -> Result<Json<LoginReply>> {
    metrics::login_attempted();
    let name = normal(&body.username);
    let answer = answer(body.captcha, body.captcha_id);
    let ask = SignIn {
        name: body.username,
        password: body.password,
        code: body
            .two_factor_token
            .and_then(|token| Sent::read(token.expose())),
        remember: body.remember.unwrap_or(false),
        address,
        agent,
    };
    let signed_in = async {
        limits::sign_in(state, address, &name).await?;
        captcha::check(state, answer.as_ref(), &name).await?;
        sign_in::sign_in(state, ask).await
    };
    let signed_in = signed_in.await.inspect_err(|_| metrics::login_failed())?;
    Ok(Json(match signed_in {
        SignedIn::Issued(issued) => LoginReply::LoggedIn(Box::new((*issued).into())),
        SignedIn::WantsCode => {
            captcha::pass_on(state, answer.as_ref(), &name).await;
            LoginReply::TwoFactorWanted(TwoFactorWanted {
                success: true,
                requires_two_factor: true,
                message: "send the same with twoFactorToken to /auth/2fa/verify",
            })
        }
    }))
}

impl From<Issued> for LoggedIn {
    fn from(issued: Issued) -> Self {
        Self {
            success: true,
            access_token: issued.access.clone(),
            token: issued.access,
            token_type: "Bearer",
            expires_in: issued.lifetime.num_seconds(),
            refresh_token: issued.refresh.expose_secret().to_owned(),
            user: issued.account.into(),
        }
    }
}

/// The two fields of a captcha, where both are texts: what else stands there counts as nothing.
fn answer(text: Option<Value>, id: Option<Value>) -> Option<Answer> {
    match (text?, id?) {
        (Value::String(text), Value::String(id)) => Some(Answer { id, text }),
        _ => None,
    }
}

/// Renews the tokens of a session, by a refresh token, or by an access token that expired a week ago at most.
#[utoipa::path(post, path = "/auth/refresh", tag = "auth", security(()), request_body = Refresh, responses(
    (status = 200, body = Refreshed), (status = 401, body = ProblemBody)))]
pub async fn refresh(
    State(state): State<Users>,
    headers: HeaderMap,
    Json(body): Json<Refresh>,
) -> Result<Json<Refreshed>> {
    let now = state.platform.clock.now();
    let token = body.refresh_token.map(|token| token::hash(token.expose()));
    let id = match &token {
        Some(hash) => {
            let mut conn = state.platform.db.acquire().await?;
            db::session_of_token(&mut conn, hash).await?
        }
        None => session_of_bearer(&state, &headers, now),
    };
    let id = id.ok_or(Error::NotRenewable)?;
    let issued = renew(&state, &id, token.as_ref(), now).await?;
    Ok(Json(Refreshed {
        success: true,
        token: issued.access.clone(),
        access_token: issued.access,
        refresh_token: issued.refresh.expose_secret().to_owned(),
        expires_in: issued.lifetime.num_seconds(),
    }))
}

/// Ends the session in use; its tokens stop working on every instance.
#[utoipa::path(post, path = "/auth/logout", tag = "auth", responses(
    (status = 200, body = LoggedOut), (status = 401, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn logout(State(state): State<Users>, user: CurrentUser) -> Result<Json<LoggedOut>> {
    let session = user.session()?;
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.now();
    end(&mut tx, &user.id, Which::One(session), now).await?;
    let entry = Entry::done(&user.id, "user.logout", ("session", session.as_str()));
    audit::write(&mut tx, entry, now).await?;
    tx.commit().await?;
    // Also where an earlier call has ended it, but could not tell everybody.
    enforce(&state, std::slice::from_ref(session)).await?;
    Ok(Json(LoggedOut {
        success: true,
        message: "signed out",
    }))
}

async fn renew(
    state: &Users,
    id: &SessionId,
    token: Option<&TokenHash>,
    now: Timestamp,
) -> Result<Issued> {
    let mut tx = state.platform.db.begin().await?;
    let session = db::lock_living(&mut tx, id, now)
        .await?
        .ok_or(Error::NotRenewable)?;
    match token {
        Some(hash) if !db::spend(&mut tx, hash, now).await? => {
            // Two hold what one was given: nobody can tell which of them is the user.
            let ended = end(&mut tx, &session.user_id, Which::One(id), now).await?;
            let entry = Entry::done(&session.user_id, "session.stolen", ("session", id.as_str()));
            audit::write(&mut tx, entry.judged(audit::Status::Warning), now).await?;
            tx.commit().await?;
            warn!(session.id = %id, user.id = %session.user_id, "a spent refresh token came again: ended session {id}");
            enforce(state, &ended).await?;
            return Err(Error::NotRenewable);
        }
        Some(_) => {}
        None => db::forget_unspent(&mut tx, id).await?,
    }
    let account = sign_in::find(&mut tx, &session.user_id).await?;
    if account.status != Status::Active {
        return Err(Error::Disabled);
    }
    let refresh = Token::new();
    db::insert_token(&mut tx, id, &refresh.hash, now).await?;
    db::touch(&mut tx, id, now).await?;
    tx.commit().await?;
    sign_in::issue(state, account, &session, refresh, now)
}

fn session_of_bearer(state: &Users, headers: &HeaderMap, now: Timestamp) -> Option<SessionId> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let claims = state
        .platform
        .auth
        .tokens()
        .verify_at_any_age(token.trim())
        .ok()?;
    let expired_for = now.utc().timestamp() - claims.exp;
    (expired_for <= RENEWABLE.num_seconds()).then_some(claims.identity.session_id)
}

fn without_nul(text: &str, _: &()) -> garde::Result {
    if crate::account::is_storable(text) {
        Ok(())
    } else {
        Err(garde::Error::new("must not contain the character NUL"))
    }
}
