//! Mail, by SMTP.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, anyhow};
use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::Error as SmtpError;
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use secrecy::{ExposeSecret, SecretString};

use crate::Env;

/// How long each step with the server may take.
const STEP: Duration = Duration::from_secs(8);

type Server = AsyncSmtpTransport<Tokio1Executor>;

/// By whom mail is sent.
#[derive(Clone, Debug)]
pub struct MailSettings {
    /// The server that takes mail, as in `smtps://user:password@host:465`. `SMTP_URL`; without it no mail is sent.
    pub url: Option<SecretString>,
    /// Whom mail is from. `EMAIL_FROM`, default `Cloudphone <no-reply@localhost>`.
    pub from: String,
}

impl MailSettings {
    /// Reads the settings; faults are collected in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        Self {
            url: env.secret("SMTP_URL", 1),
            from: env.value("EMAIL_FROM", "Cloudphone <no-reply@localhost>".to_owned()),
        }
    }
}

/// Sends mail.
#[derive(Clone)]
pub struct Mailer {
    from: Mailbox,
    server: Option<Server>,
}

/// One mail. What it says may be a secret, and is printed nowhere.
#[derive(Clone)]
pub struct Mail<'a> {
    /// The same each time it is tried: mail programs show one of those with the same id.
    pub id: &'a str,
    /// To which address.
    pub to: &'a str,
    /// In one line.
    pub subject: &'a str,
    /// What it says.
    pub text: String,
}

/// Why a mail was not taken, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MailError {
    /// To try again would change nothing.
    #[error("{0}")]
    Final(String),
    /// It may be tried again; it may have been taken all the same.
    #[error("{0}")]
    Passing(String),
}

impl Mailer {
    /// Connects when it is used.
    ///
    /// # Errors
    /// Where the settings name no server or no sender that can be used.
    pub fn new(settings: &MailSettings) -> anyhow::Result<Self> {
        let url = settings.url.as_ref();
        let server = url
            .map(|url| Server::from_url(url.expose_secret()))
            .transpose()
            // The cause might tell the password.
            .map_err(|_| anyhow!("SMTP_URL looks like smtps://user:password@host:465"))?;
        Ok(Self {
            from: settings.from.parse().context("reading EMAIL_FROM")?,
            server: server.map(|server| server.timeout(Some(STEP)).build()),
        })
    }

    /// The server that takes mail.
    ///
    /// # Errors
    /// Where none is set up.
    fn server(&self) -> Result<&Server, MailError> {
        let server = self.server.as_ref();
        server.ok_or_else(|| MailError::Final("no mail server is set up".to_owned()))
    }

    /// Whether mail can be sent at all, before anything is looked up for it.
    ///
    /// # Errors
    /// Where no server is set up.
    pub fn check(&self) -> Result<(), MailError> {
        self.server().map(|_| ())
    }

    /// Sends a mail; every step with the server has a deadline.
    ///
    /// # Errors
    /// [`MailError`], which names neither address nor text.
    pub async fn send(&self, mail: Mail<'_>) -> Result<(), MailError> {
        let sent = self.server()?.send(self.message(mail)?).await;
        sent.map(|_| ()).map_err(|error| failure(&error))
    }

    fn message(&self, mail: Mail<'_>) -> Result<Message, MailError> {
        let wrong = |what: &str| MailError::Final(format!("{what} cannot be written to"));
        let to: Mailbox = mail
            .to
            .parse()
            .map_err(|_| wrong("the address of the user"))?;
        Message::builder()
            .from(self.from.clone())
            .to(to)
            .message_id(Some(format!("<{}@{}>", mail.id, self.from.email.domain())))
            // A header has one line.
            .subject(mail.subject.replace(['\r', '\n'], " "))
            .header(ContentType::TEXT_PLAIN)
            .body(mail.text)
            .map_err(|_| wrong("the message"))
    }
}

impl fmt::Debug for Mail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mail")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Mailer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailer").finish_non_exhaustive()
    }
}

fn failure(error: &SmtpError) -> MailError {
    let said = match error.status() {
        Some(code) => format!("the mail server answered {code}"),
        None if error.is_timeout() => "the mail server did not answer in time".to_owned(),
        None => "the mail server could not be talked to".to_owned(),
    };
    match error.is_permanent() {
        true => MailError::Final(said),
        false => MailError::Passing(said),
    }
}
