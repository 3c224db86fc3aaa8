//! Mail to users.

use platform::mail::{Mail, MailError, Mailer};

use super::{Carrier, Failure, Parcel, contact};
use crate::Config;
use crate::accounts::Accounts;

/// The way of mail.
#[derive(Debug)]
pub struct Email {
    accounts: Accounts,
    mailer: Mailer,
}

impl Email {
    /// Connects when it is used.
    ///
    /// # Errors
    /// Where the settings name no server that can be used.
    pub fn new(config: &Config, accounts: Accounts) -> anyhow::Result<Self> {
        let mailer = Mailer::new(&config.mail)?;
        Ok(Self { accounts, mailer })
    }
}

impl Carrier for Email {
    async fn carry(&self, parcel: &Parcel) -> Result<(), Failure> {
        self.mailer.check().map_err(refused)?;
        let contact = contact(&self.accounts, &parcel.user_id).await?;
        let (subject, text) = words(parcel);
        let mail = Mail {
            id: &parcel.id,
            to: &contact.email,
            subject: &subject,
            text,
        };
        self.mailer.send(mail).await.map_err(refused)
    }
}

fn refused(error: MailError) -> Failure {
    match error {
        MailError::Final(said) => Failure::Final(said),
        MailError::Passing(said) => Failure::Passing(said),
    }
}

/// The subject and the text of a mail.
fn words(parcel: &Parcel) -> (String, String) {
    match parcel.notifications.as_slice() {
        [one] => (one.title.clone(), one.message.clone()),
        many => {
            let parts: Vec<String> = many
                .iter()
                .map(|one| format!("{} ({})\n{}", one.title, one.created_at, one.message))
                .collect();
            (format!("{} notifications", many.len()), parts.join("\n\n"))
        }
    }
}
