//! The ways out of the platform, behind one trait. Sockets are no such way: they are fed from the store.

pub mod email;
pub mod guard;
pub mod sms;
pub mod webhook;

use contracts::UserId;
use platform::Platform;

use crate::Config;
use crate::accounts::{Accounts, Away, Contact};
use crate::notification::Notification;
use email::Email;
use guard::Rules;
use sms::Sms;
use webhook::Webhook;

/// What is carried to one user in one message.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Told to the receiver, and the same each time it is tried: by this a doubled one is known.
    pub id: String,
    /// Whose it is.
    pub user_id: UserId,
    /// What it tells, never nothing; more than one in a digest.
    pub notifications: Vec<Notification>,
}

/// Why a parcel did not arrive, or may not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// To try again would change nothing.
    #[error("{0}")]
    Final(String),
    /// It is tried again later; it may have arrived all the same.
    #[error("{0}")]
    Passing(String),
}

impl From<Away> for Failure {
    fn from(away: Away) -> Self {
        Self::Passing(away.to_string())
    }
}

/// A way out of the platform.
pub trait Carrier {
    /// Carries a parcel, and knows that it arrived. May be cut off at any moment, and be asked for the same parcel again.
    fn carry(&self, parcel: &Parcel) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Every way out.
#[derive(Debug)]
pub struct Carriers {
    /// Mail.
    pub email: Email,
    /// Text messages.
    pub sms: Sms,
    /// Calls to users' own URLs.
    pub webhook: Webhook,
}

impl Carriers {
    /// Connects when one is used.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(
        platform: &Platform,
        config: &Config,
        accounts: &Accounts,
        rules: Rules,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            email: Email::new(config, accounts.clone())?,
            sms: Sms::new(platform, config, accounts.clone())?,
            webhook: Webhook::new(platform, rules)?,
        })
    }
}

/// Where a user is reached.
async fn contact(accounts: &Accounts, user: &UserId) -> Result<Contact, Failure> {
    let contact = accounts.contact(user).await?;
    contact.ok_or_else(|| Failure::Final("there is no such user".to_owned()))
}
