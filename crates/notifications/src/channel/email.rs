//! Mail, by SMTP.

use std::time::Duration;

use anyhow::Context;
use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::Error as SmtpError;
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use secrecy::ExposeSecret;

use super::{Carrier, Failure, Parcel, contact};
use crate::Config;
use crate::accounts::Accounts;

/// How long each step with the server may take.
const STEP: Duration = Duration::from_secs(8);

type Server = AsyncSmtpTransport<Tokio1Executor>;

/// The way of mail.
#[derive(Debug)]
pub struct Email {
    accounts: Accounts,
    from: Mailbox,
    server: Option<Server>,
}

impl Email {
    /// Connects when it is used.
    ///
    /// # Errors
    /// Where the settings name no server that can be used.
    pub fn new(config: &Config, accounts: Accounts) -> anyhow::Result<Self> {
        let server = config
            .smtp_url
            .as_ref()
            .map(|url| Server::from_url(url.expose_secret()))
            .transpose()
            // The cause might tell the password.
            .map_err(|_| anyhow::anyhow!("SMTP_URL looks like smtps://user:password@host:465"))?;
        Ok(Self {
            accounts,
            from: config.email_from.parse().context("reading EMAIL_FROM")?,
            server: server.map(|server| server.timeout(Some(STEP)).build()),
        })
    }

    fn message(&self, to: &str, parcel: &Parcel) -> Result<Message, Failure> {
        let wrong = |what: &str| Failure::Final(format!("{what} cannot be written to"));
        let to: Mailbox = to.parse().map_err(|_| wrong("the address of the user"))?;
        let (subject, text) = words(parcel);
        Message::builder()
            .from(self.from.clone())
            .to(to)
            // Mail programs show one of those with the same id.
            .message_id(Some(format!(
                "<{}@{}>",
                parcel.id,
                self.from.email.domain()
            )))
            .subject(subject)
            .header(ContentType::TEXT_PLAIN)
            .body(text)
            .map_err(|_| wrong("the message"))
    }
}

impl Carrier for Email {
    async fn carry(&self, parcel: &Parcel) -> Result<(), Failure> {
        let Some(server) = &self.server else {
            return Err(Failure::Final("no mail server is set up".to_owned()));
        };
        let contact = contact(&self.accounts, &parcel.user_id).await?;
        let message = self.message(&contact.email, parcel)?;
        let sent = server.send(message).await;
        sent.map(|_| ()).map_err(|error| failure(&error))
    }
}

fn failure(error: &SmtpError) -> Failure {
    let code = error.status();
    let said = match code {
        Some(code) => format!("the mail server answered {code}"),
        None if error.is_timeout() => "the mail server did not answer in time".to_owned(),
        None => "the mail server could not be talked to".to_owned(),
    };
    match error.is_permanent() {
        true => Failure::Final(said),
        false => Failure::Passing(said),
    }
}

/// The subject and the text of a mail.
fn words(parcel: &Parcel) -> (String, String) {
    // A header has one line.
    let line = |text: &str| text.replace(['\r', '\n'], " ");
    match parcel.notifications.as_slice() {
        [one] => (line(&one.title), one.message.clone()),
        many => {
            let parts: Vec<String> = many
                .iter()
                .map(|one| format!("{} ({})\n{}", one.title, one.created_at, one.message))
                .collect();
            (format!("{} notifications", many.len()), parts.join("\n\n"))
        }
    }
}
