//! Switching one's second factor on and off.

use axum::extract::State;
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::TimeDelta;
use garde::Validate;
use http::header;
use platform::CurrentUser;
use platform::http::Json;
use platform::problem::ProblemBody;
use qrcode::QrCode;
use qrcode::render::svg;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{RECOVERY_CODES, SECRET, Sent, base32, db, matching, opened, recovery_code, spend};
use crate::account::api::Done;
use crate::account::db as accounts;
use crate::audit::{self, Entry};
use crate::error::{Error, Result};
use crate::secret::SecretText;
use crate::{Users, account, attempt, token};

/// Whom the codes are for, as the app shows it.
const ISSUER: &str = "Cloudphone";
/// For how long who asks again is shown the same secret, so that a repeated request changes nothing.
const OFFERED: TimeDelta = TimeDelta::minutes(10);

/// Where a user's second factor stands.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TwoFactorStatus {
    enabled: bool,
    /// Whether there is a secret, be it on or only offered.
    has_secret: bool,
}

/// A secret for an app, to be switched on by its first code.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferedSecret {
    /// In base 32.
    secret: String,
    /// A picture of `otpauthUrl`, as a data URL.
    qr_code: String,
    otpauth_url: String,
}

/// A code.
#[derive(Debug, Deserialize, Validate, ToSchema)]
pub struct TwoFactorCode {
    /// Six digits; to switch the factor off, a recovery code does as well.
    #[garde(custom(self::sent))]
    #[schema(value_type = String)]
    token: SecretText,
}

/// The factor is on.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TwoFactorEnabled {
    message: &'static str,
    /// Each takes the place of a code once, shown only here.
    recovery_codes: Vec<String>,
}

/// Whether the caller has a second factor.
#[utoipa::path(get, path = "/auth/2fa/status", tag = "auth", responses(
    (status = 200, body = TwoFactorStatus), (status = 401, body = ProblemBody)))]
pub async fn two_factor_status(
    State(state): State<Users>,
    user: CurrentUser,
) -> Result<Json<TwoFactorStatus>> {
    let mut conn = state.platform.db.acquire().await?;
    let factor = db::find(&mut conn, &user.id).await?;
    Ok(Json(TwoFactorStatus {
        enabled: factor
            .as_ref()
            .is_some_and(|factor| factor.enabled_at.is_some()),
        has_secret: factor.is_some(),
    }))
}

/// Offers the caller a secret, the same for ten minutes. It counts nothing until it is switched on.
#[utoipa::path(get, path = "/auth/2fa/generate", tag = "auth", responses(
    (status = 200, body = OfferedSecret), (status = 401, body = ProblemBody),
    (status = 409, body = ProblemBody, description = "The factor is on, or there are no keys to keep secrets with")))]
pub async fn generate_two_factor(
    State(state): State<Users>,
    user: CurrentUser,
) -> Result<impl IntoResponse> {
    user.session()?;
    let vault = state.vault.as_deref().ok_or(Error::NoTwoFactorKeys)?;
    let fresh: [u8; SECRET] = rand::random();
    let fresh = vault.seal(&fresh, &user.id);
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    db::offer(&mut conn, &user.id, &fresh, (now, now - OFFERED)).await?;
    let mut factor = db::find(&mut conn, &user.id).await?.ok_or(Error::NoUser)?;
    if factor.enabled_at.is_some() {
        return Err(Error::TwoFactorOn);
    }
    if vault.open(&factor.secret, &user.id).is_none() {
        // The key that sealed it is gone: nobody has seen it on, so another one takes its place.
        db::offer(&mut conn, &user.id, &fresh, (now, now)).await?;
        factor = db::find(&mut conn, &user.id).await?.ok_or(Error::NoUser)?;
    }
    let account = accounts::find(&mut conn, &user.id).await?;
    let name = account.ok_or(Error::NoUser)?.username;
    let secret = base32(&opened(&state, &user.id, &factor)?);
    let url = format!(
        "otpauth://totp/{ISSUER}:{name}?secret={secret}&issuer={ISSUER}&algorithm=SHA1&digits=6&period=30"
    );
    let offered = OfferedSecret {
        qr_code: picture(&url)?,
        secret,
        otpauth_url: url,
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(offered)))
}

/// Switches the offered secret on by its first code. From then on the password alone opens no session.
#[utoipa::path(post, path = "/auth/2fa/enable", tag = "auth", request_body = TwoFactorCode, responses(
    (status = 200, body = TwoFactorEnabled), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
    (status = 409, body = ProblemBody)))]
pub async fn enable_two_factor(
    State(state): State<Users>,
    user: CurrentUser,
    Json(body): Json<TwoFactorCode>,
) -> Result<impl IntoResponse> {
    user.session()?;
    // Nothing is guessed here: who asks was shown the secret.
    let Some(Sent::Code(sent)) = Sent::read(body.token.expose()) else {
        return Err(Error::WrongToken);
    };
    let mut tx = state.platform.db.begin().await?;
    // Sign-ins of this user wait here, and ask for a code afterwards.
    accounts::lock(&mut tx, &user.id).await?;
    let factor = db::find(&mut tx, &user.id).await?;
    let factor = factor.ok_or(Error::TwoFactorOff)?;
    if factor.enabled_at.is_some() {
        return Err(Error::TwoFactorOn);
    }
    let now = state.platform.clock.shared(&mut tx).await?;
    let secret = opened(&state, &user.id, &factor)?;
    let step = matching(&secret, sent, now, 0).ok_or(Error::WrongToken)?;
    if !db::enable(&mut tx, &user.id, (&factor.secret, step), now).await? {
        return Err(Error::WrongToken);
    }
    let codes: Vec<String> = (0..RECOVERY_CODES).map(|_| recovery_code()).collect();
    let hash = |code: &String| token::hash(&code.replace('-', ""));
    let hashes: Vec<_> = codes.iter().map(hash).collect();
    db::insert_recovery(&mut tx, &user.id, &hashes).await?;
    let entry = Entry::done(&user.id, "two_factor.enabled", ("user", user.id.as_str()));
    audit::write(&mut tx, entry, now).await?;
    tx.commit().await?;
    let enabled = TwoFactorEnabled {
        message: "two factors are on; keep the recovery codes where your phone is not",
        recovery_codes: codes,
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(enabled)))
}

/// Switches the caller's second factor off, by a code of it. Wrong ones count towards the lock of the account.
#[utoipa::path(post, path = "/auth/2fa/disable", tag = "auth", request_body = TwoFactorCode, responses(
    (status = 200, body = Done), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
    (status = 409, body = ProblemBody)))]
pub async fn disable_two_factor(
    State(state): State<Users>,
    user: CurrentUser,
    Json(body): Json<TwoFactorCode>,
) -> Result<Json<Done>> {
    user.session()?;
    let sent = Sent::read(body.token.expose()).ok_or(Error::WrongToken)?;
    let opened = attempt::open(&state, &user.id).await;
    opened.map_err(Error::about_token)?;
    let done = remove(&state, &user, &sent).await;
    match done {
        Ok(()) => Ok(Json(Done {
            message: "two factors are off",
        })),
        Err(error) => {
            match &error {
                Error::WrongToken => attempt::count_wrong(&state, &user.id).await?,
                _ => {
                    let mut conn = state.platform.db.acquire().await?;
                    attempt::release(&mut conn, &user.id).await?;
                }
            }
            Err(error)
        }
    }
}

/// Removes a factor by a code of it, and closes the attempt with that.
async fn remove(state: &Users, user: &CurrentUser, sent: &Sent) -> Result<()> {
    let mut tx = state.platform.db.begin().await?;
    accounts::lock(&mut tx, &user.id).await?;
    let factor = db::find_enabled(&mut tx, &user.id).await?;
    let factor = factor.ok_or(Error::TwoFactorOff)?;
    if !spend(state, &mut tx, &user.id, (&factor, sent)).await? {
        return Err(Error::WrongToken);
    }
    db::remove(&mut tx, &user.id).await?;
    attempt::release(&mut tx, &user.id).await?;
    let now = state.platform.clock.now();
    let entry = Entry::done(&user.id, "two_factor.disabled", ("user", user.id.as_str()));
    audit::write(&mut tx, entry, now).await?;
    tx.commit().await?;
    Ok(())
}

fn picture(url: &str) -> Result<String> {
    let code = QrCode::new(url).map_err(|error| Error::Picture(error.into()))?;
    let svg = code
        .render::<svg::Color<'_>>()
        .min_dimensions(200, 200)
        .build();
    Ok(format!(
        "data:image/svg+xml;base64,{}",
        STANDARD.encode(svg)
    ))
}

/// The rule for a code: six digits, or a recovery code.
pub fn sent(text: &SecretText, _: &()) -> garde::Result {
    let fits = text.expose().len() <= 40 && Sent::read(text.expose()).is_some();
    account::rule(fits, "must be six digits, or a recovery code")
}
