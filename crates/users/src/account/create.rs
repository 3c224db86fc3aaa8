//! Making accounts: by registration, and the first admin by command.

use anyhow::Context;
use contracts::{Event, EventBody, Timestamp, UserId};
use garde::Validate;
use platform::Platform;
use platform::events::emit;
use secrecy::SecretString;
use sqlx::PgConnection;

use super::db;
use crate::error::{Error, taken};
use crate::password::{self, Cost, Hasher, PasswordHash};
use crate::secret::SecretText;

/// An account that is about to be made; names in their normal form.
#[derive(Debug)]
pub struct NewAccount {
    pub username: String,
    pub email: String,
    pub full_name: Option<String>,
    pub phone: Option<String>,
    pub hash: PasswordHash,
}

#[derive(Validate)]
struct AdminRules<'a> {
    #[garde(custom(super::username))]
    username: &'a str,
    #[garde(custom(super::email))]
    email: &'a str,
    #[garde(custom(password::new))]
    password: &'a SecretText,
}

/// Writes down a new account with a built-in role, and that it did.
///
/// # Errors
/// [`Error::UsernameTaken`], [`Error::EmailTaken`].
pub async fn create(
    conn: &mut PgConnection,
    new: &NewAccount,
    role: &str,
    now: Timestamp,
) -> Result<UserId, Error> {
    let id = UserId::new();
    db::insert(conn, &id, new, now).await.map_err(taken)?;
    db::give_role(conn, &id, role).await?;
    announce(conn, &id, new, now).await?;
    Ok(id)
}

/// Tells the other services of a new account.
pub async fn announce(
    conn: &mut PgConnection,
    id: &UserId,
    new: &NewAccount,
    now: Timestamp,
) -> sqlx::Result<()> {
    let body = EventBody::UserRegistered {
        username: new.username.clone(),
    };
    emit(conn, &Event::new(id.clone(), now, body)).await
}

/// Makes an admin who passes every check, for a system that has none yet and for one that lost its own.
///
/// # Errors
/// Where name, address or password break the rules or are taken, or the database does not answer.
pub async fn create_admin(
    platform: &Platform,
    username: &str,
    email: &str,
    password: SecretString,
) -> anyhow::Result<UserId> {
    let password = SecretText::from(password);
    let rules = AdminRules {
        username,
        email,
        password: &password,
    };
    rules.validate().context("the admin cannot be made")?;
    let new = NewAccount {
        username: super::normal(username),
        email: super::normal(email),
        full_name: None,
        phone: None,
        hash: Hasher::new(Cost::default(), 1, 1)
            .await?
            .hash(password)
            .await?,
    };
    let mut tx = platform.db.begin().await.context("making the admin")?;
    let id = create(&mut tx, &new, "super_admin", platform.clock.now()).await?;
    tx.commit().await.context("making the admin")?;
    Ok(id)
}
