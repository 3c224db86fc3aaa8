//! What can go wrong, and how each is told to the client.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use contracts::Timestamp;
use http::StatusCode;
use platform::Problem;

use crate::api_key;
use crate::password::HashError;

/// What a handler answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody has this name.
    #[error("the username is taken")]
    UsernameTaken,
    /// Somebody has this address.
    #[error("the email address is taken")]
    EmailTaken,
    /// Unknown user or wrong password; nobody learns which.
    #[error("the user name or the password is wrong")]
    BadCredentials,
    /// Too many wrong passwords in a row.
    #[error("the account is locked until {until}")]
    Locked {
        /// When the next password is compared.
        until: Timestamp,
        /// How long that is from now.
        wait: Duration,
    },
    /// The password was right, the account is switched off.
    #[error("the account is disabled")]
    Disabled,
    /// The same, found by a user who is signed in and stays so.
    #[error("the account takes no password for a while")]
    OldPasswordLocked {
        /// How long.
        wait: Duration,
    },
    /// The password that was to be changed is another.
    #[error("the old password is wrong")]
    WrongOldPassword,
    /// Neither a living refresh token nor an access token that may still be renewed.
    #[error("the session cannot be renewed")]
    NotRenewable,
    /// Absent.
    #[error("there is no such user")]
    NoUser,
    /// Absent, ended, or somebody else's.
    #[error("there is no such session")]
    NoSession,
    /// Absent, deleted, or somebody else's.
    #[error("there is no such API key")]
    NoApiKey,
    /// A key that was revoked stays so.
    #[error("the API key is revoked")]
    ApiKeyRevoked,
    /// A key whose time is over stays so.
    #[error("the API key has expired")]
    ApiKeyExpired,
    /// The secret that a repeated request asks for is none any more.
    #[error("the secret of the API key changed since the first request")]
    ApiKeyChanged,
    /// Somebody else than its user, an admin, wants the secret of a key.
    #[error("only its user may have the secret of an API key")]
    NotItsUser,
    /// The user has as many keys as one may have.
    #[error("the user has {used} API keys")]
    TooManyApiKeys {
        /// How many they are.
        used: i64,
    },
    /// What a user would prefer takes too much room.
    #[error("the preferences would take more than 64 KiB")]
    PreferencesTooLarge,
    /// Nobody would be left who passes every check.
    #[error("the account is the last super admin")]
    LastSuperAdmin,
    /// A role that came with the system.
    #[error("the role {name} came with the system and stays as it is")]
    RoleBuiltIn {
        /// Which.
        name: String,
    },
    /// A role that somebody has.
    #[error("the role {name} is somebody's")]
    RoleHeld {
        /// Which.
        name: String,
    },
    /// More passwords of one account are being compared than may be wrong.
    #[error("too many sign-ins of one account at once")]
    Crowded,
    /// A password could not be hashed.
    #[error("could not hash a password")]
    Hash(#[from] HashError),
    /// The instances could not be told that a session ended.
    #[error("could not end a session")]
    EndSession(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The password was right, the second factor is wrong or was used before.
    #[error("the code is wrong or was used")]
    WrongCode,
    /// The same, of a user who is signed in.
    #[error("the code is wrong, used or too old")]
    WrongToken,
    /// The account takes no code for a while, either.
    #[error("the account takes no code for a while")]
    TokenLocked {
        /// How long.
        wait: Duration,
    },
    /// There is a second factor already.
    #[error("two factors are on")]
    TwoFactorOn,
    /// There is none.
    #[error("two factors are off")]
    TwoFactorOff,
    /// The settings name no keys to keep secrets with.
    #[error("there are no keys for the secrets of second factors")]
    NoTwoFactorKeys,
    /// No key of the settings opens the secret of a second factor.
    #[error("the secret of a second factor cannot be opened")]
    Sealed,
    /// The code for an app could not be drawn.
    #[error("could not draw a QR code")]
    Picture(#[source] anyhow::Error),
    /// A token could not be signed.
    #[error("could not issue a token")]
    Token(#[source] anyhow::Error),
    /// The database did not do what was asked.
    #[error("could not reach the accounts")]
    Database(#[from] sqlx::Error),
    /// A refusal made by the platform.
    #[error("refused")]
    Refused(Problem),
}

impl Error {
    /// Tells a signed-in user about a lock without the 401 that would make clients sign out.
    pub fn about_old_password(self) -> Self {
        match self {
            Self::Locked { wait, .. } => Self::OldPasswordLocked { wait },
            other => other,
        }
    }

    /// The same about a code.
    pub fn about_token(self) -> Self {
        match self {
            Self::Locked { wait, .. } => Self::TokenLocked { wait },
            other => other,
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let bad_credentials =
            |message: String| Problem::new(StatusCode::UNAUTHORIZED, "BAD_CREDENTIALS", message);
        let problem = match &self {
            Self::UsernameTaken => Problem::conflict("CONFLICT", "this username is taken")
                .with_field("username", "is taken"),
            Self::EmailTaken => Problem::conflict("CONFLICT", "this email address is taken")
                .with_field("email", "is taken"),
            Self::BadCredentials | Self::Disabled | Self::WrongCode => {
                bad_credentials(self.to_string())
            }
            Self::Locked { wait, .. } => bad_credentials(locked_for(*wait)),
            Self::OldPasswordLocked { wait } => {
                Problem::invalid_field("oldPassword", locked_for(*wait))
            }
            Self::WrongToken => Problem::invalid_field("token", "is wrong, used or too old"),
            Self::TokenLocked { wait } => Problem::invalid_field("token", locked_for(*wait)),
            Self::TwoFactorOn => {
                Problem::conflict("CONFLICT", "two factors are on: switch them off first")
            }
            Self::TwoFactorOff => Problem::conflict(
                "CONFLICT",
                "two factors are off: ask for a secret and switch it on",
            ),
            Self::NoTwoFactorKeys => Problem::conflict(
                "CONFLICT",
                "two factors are not set up here: TWO_FACTOR_KEYS is missing",
            ),
            Self::WrongOldPassword => Problem::invalid_field("oldPassword", "is wrong"),
            Self::NotRenewable => {
                Problem::unauthenticated("the session cannot be renewed: sign in again")
            }
            Self::NoUser => Problem::not_found("user"),
            Self::NoSession => Problem::not_found("session"),
            Self::NoApiKey => Problem::not_found("API key"),
            Self::ApiKeyRevoked => Problem::conflict(
                "CONFLICT",
                "the API key is revoked for good: make another one",
            ),
            Self::ApiKeyExpired => {
                Problem::conflict("CONFLICT", "the API key has expired: make another one")
            }
            Self::ApiKeyChanged => Problem::conflict(
                "CONFLICT",
                "the first request was done, but its secret opens nothing now: the API key was rotated, switched off, \
                 revoked or deleted since; rotate it or make another one",
            ),
            Self::NotItsUser => Problem::forbidden(
                "only its user may have the secret of an API key; it can be revoked",
            ),
            Self::TooManyApiKeys { used } => Problem::new(
                StatusCode::FORBIDDEN,
                "QUOTA_EXCEEDED",
                format!(
                    "the quota of API keys is used up, {used} of {}: delete one",
                    api_key::MOST
                ),
            ),
            Self::PreferencesTooLarge => Problem::invalid_field(
                "preferences",
                "would be more than 64 KiB together with those that stand",
            ),
            Self::LastSuperAdmin => Problem::conflict(
                "CONFLICT",
                "this is the last active super admin: make another one first",
            ),
            Self::RoleBuiltIn { .. } => Problem::conflict("CONFLICT", self.to_string()),
            Self::RoleHeld { name } => Problem::conflict(
                "CONFLICT",
                format!("users have the role {name}: take it from them first"),
            ),
            Self::Crowded | Self::Hash(HashError::Busy) => {
                Problem::not_ready("too many sign-ins at once; try again")
            }
            Self::EndSession(_) => {
                Problem::not_ready("the session is not ended everywhere yet; try again")
            }
            Self::Hash(HashError::Failed(_)) | Self::Token(_) | Self::Sealed | Self::Picture(_) => {
                Problem::internal()
            }
            Self::Database(error) => Problem::from_sqlx(error),
            Self::Refused(problem) => problem.clone(),
        };
        problem.respond(&self)
    }
}

fn locked_for(wait: Duration) -> String {
    let minutes = wait.as_secs().div_ceil(60);
    format!("too many wrong passwords: the account is locked, try again in {minutes} min")
}

/// Tells the unique names apart that an account collided with.
pub fn taken(error: sqlx::Error) -> Error {
    let constraint = error
        .as_database_error()
        .and_then(|error| error.constraint());
    match constraint {
        Some("accounts_username_key") => Error::UsernameTaken,
        Some("accounts_email_key") => Error::EmailTaken,
        _ => error.into(),
    }
}
