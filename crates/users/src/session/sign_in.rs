//! Opening a session and issuing its tokens.

use std::net::IpAddr;

use chrono::TimeDelta;
use contracts::{SessionId, Timestamp, UserId};
use platform::auth::{Identity, Sessions};
use secrecy::SecretString;
use serde_json::json;
use tracing::info;

use super::agent::Agent;
use super::db::{self, Session};
use crate::account::db::{self as accounts, Credentials};
use crate::account::normal;
use crate::account::view::{Account, Status};
use crate::audit::{self, Entry};
use crate::error::{Error, Result};
use crate::secret::SecretText;
use crate::token::Token;
use crate::two_factor::{self, Passage, Sent};
use crate::{Users, attempt};

/// How long an access token lives, and with `remember`.
const DAY: TimeDelta = TimeDelta::hours(24);
const WEEK: TimeDelta = TimeDelta::days(7);

/// Who asks, and from where.
#[derive(Debug)]
pub struct SignIn {
    /// User name or mail address.
    pub name: String,
    pub password: SecretText,
    /// The second factor, where it was sent.
    pub code: Option<Sent>,
    pub remember: bool,
    pub address: IpAddr,
    pub agent: Agent,
}

/// The tokens of a session.
#[derive(Debug)]
pub struct Issued {
    pub access: String,
    pub refresh: SecretString,
    pub lifetime: TimeDelta,
    pub account: Account,
}

/// How a sign-in ended.
#[derive(Debug)]
pub enum SignedIn {
    /// With a session.
    Issued(Box<Issued>),
    /// The password is right, and the second factor is wanted.
    WantsCode,
}

/// Signs a user in.
///
/// # Errors
/// [`Error::BadCredentials`], [`Error::Locked`], [`Error::Disabled`], [`Error::WrongCode`].
pub async fn sign_in(state: &Users, ask: SignIn) -> Result<SignedIn> {
    let name = normal(&ask.name);
    let credentials = {
        let mut conn = state.platform.db.acquire().await?;
        accounts::find_credentials(&mut conn, &name).await?
    };
    let user = credentials.as_ref().map(|found| found.id.clone());
    let issued = match credentials {
        Some(credentials) => enter(state, &name, credentials, ask).await,
        None => match state.hasher.verify_nobody(ask.password).await {
            Ok(()) => Err(Error::BadCredentials),
            Err(error) => Err(error.into()),
        },
    };
    if let Err(
        error @ (Error::BadCredentials | Error::Locked { .. } | Error::Disabled | Error::WrongCode),
    ) = &issued
    {
        // Also where nobody has the name, so that the time tells nothing.
        let entry = Entry {
            user: user.as_ref(),
            action: "user.login_failed",
            resource: ("user", user.as_ref().map(UserId::as_str)),
            status: audit::Status::Failed,
            details: json!({ "reason": error.to_string() }),
            changes: None,
        };
        let mut conn = state.platform.db.acquire().await?;
        audit::write(&mut conn, entry, state.platform.clock.now()).await?;
    }
    issued
}

/// Opens a session for who knows the password, and has the second factor where there is one.
async fn enter(
    state: &Users,
    name: &str,
    mut credentials: Credentials,
    ask: SignIn,
) -> Result<SignedIn> {
    let user = credentials.id.clone();
    let mut is_first = true;
    let (mut tx, now) = loop {
        let hash = credentials.password_hash.clone();
        let right = attempt::compare(state, &user, hash, ask.password.clone()).await?;
        let right = right.ok_or(Error::BadCredentials)?;
        let now = state.platform.clock.now();
        let mut tx = state.platform.db.begin().await?;
        if right.signed_in(&mut tx, now).await? {
            match two_factor::pass(state, &mut tx, &user, ask.code.as_ref()).await? {
                Passage::Open => break (tx, now),
                Passage::WantsCode => {
                    // The wrong ones before it still count: else the password alone would make room for guesses at codes.
                    tx.rollback().await?;
                    right
                        .release(&mut *state.platform.db.acquire().await?)
                        .await?;
                    return Ok(SignedIn::WantsCode);
                }
                Passage::Wrong => {
                    tx.rollback().await?;
                    attempt::count_wrong(state, &user).await?;
                    return Err(Error::WrongCode);
                }
            }
        }
        right.release(&mut tx).await?;
        let found = accounts::find_credentials(&mut tx, name).await?;
        tx.commit().await?;
        let found = found.ok_or(Error::BadCredentials)?;
        // Only who knows the password learns that the account is switched off.
        if found.status != Status::Active {
            return Err(Error::Disabled);
        }
        if !is_first {
            return Err(Error::BadCredentials);
        }
        // Another sign-in may have made the hash of the same password anew.
        (credentials, is_first) = (found, false);
    };
    let session = Session {
        id: SessionId::new(),
        user_id: user,
        remember: ask.remember,
        expires_at: now + state.config.session_lifetime,
    };
    Sessions::begin(
        &mut tx,
        &session.id,
        &session.user_id,
        now,
        session.expires_at,
    )
    .await?;
    db::insert(&mut tx, &session, ask.address, ask.agent, now).await?;
    let refresh = Token::new();
    db::insert_token(&mut tx, &session.id, &refresh.hash, now).await?;
    let entry = Entry::done(
        &session.user_id,
        "user.login",
        ("session", session.id.as_str()),
    );
    audit::write(&mut tx, entry, now).await?;
    let account = find(&mut tx, &session.user_id).await?;
    tx.commit().await?;
    if state.hasher.is_outdated(&credentials.password_hash)
        && let Err(error) = attempt::rehash(
            state,
            &session.user_id,
            &credentials.password_hash,
            ask.password,
        )
        .await
    {
        // The next sign-in does it.
        info!(user.id = %session.user_id, "a password keeps its hash of another cost for now: {error}");
    }
    let issued = issue(state, account, &session, refresh, now)?;
    Ok(SignedIn::Issued(Box::new(issued)))
}

/// Signs the access token of a session that stands in the database; it never outlives the session.
pub fn issue(
    state: &Users,
    account: Account,
    session: &Session,
    refresh: Token,
    now: Timestamp,
) -> Result<Issued> {
    let lifetime = if session.remember { WEEK } else { DAY }.min(session.expires_at - now);
    let identity = Identity {
        user_id: account.id.clone(),
        username: account.username.clone(),
        email: account.email.clone(),
        roles: account.roles.clone(),
        tenant_id: account.tenant_id.clone(),
        is_super_admin: account.is_super_admin(),
        session_id: session.id.clone(),
    };
    let access = state.platform.auth.tokens().issue(identity, now, lifetime);
    Ok(Issued {
        access: access.map_err(Error::Token)?,
        refresh: refresh.text,
        lifetime,
        account,
    })
}

/// The account of a session.
pub async fn find(conn: &mut sqlx::PgConnection, user: &UserId) -> Result<Account> {
    accounts::find(conn, user).await?.ok_or(Error::NoUser)
}
