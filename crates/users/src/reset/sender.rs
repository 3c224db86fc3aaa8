//! Mails tokens to who asked for one. Any replica does it; one that dies after the mail was taken and before it could say so leaves
//! the user with two mails, of which both work until one is used.

use std::time::Duration;

use chrono::TimeDelta;
use platform::lifecycle::{Tasks, Tick};
use platform::mail::{Mail, MailError};
use secrecy::ExposeSecret;
use tracing::{info, warn};

use super::api;
use super::db::{self, Addressee, Request};
use crate::Users;
use crate::audit::{self, Entry};
use crate::token::Token;

/// How often the queue is looked at.
const EVERY: Duration = Duration::from_millis(500);
/// How long a worker has for a mail; longer than the server may take.
const LEASE: TimeDelta = TimeDelta::seconds(60);
/// How often a mail is tried, with growing pauses: for some minutes, in which its user still waits.
const ATTEMPTS: i32 = 6;
const PAUSE: Duration = Duration::from_secs(5);
const BATCH: i64 = 8;
/// How long requests and tokens are kept once they are of no use.
const KEPT: TimeDelta = TimeDelta::days(2);

/// Starts the periodic steps.
pub fn spawn_jobs(state: &Users, tasks: &Tasks) {
    let sending = state.clone();
    tasks.every("users.send_reset_mails", EVERY, move || {
        let state = sending.clone();
        async move { send(&state).await }
    });
    let purging = state.clone();
    tasks.every("users.purge_resets", Duration::from_secs(600), move || {
        let state = purging.clone();
        async move { purge(&state).await }
    });
}

/// Repeats each step until it finds nothing more.
///
/// # Errors
/// Where a step fails.
pub async fn run_jobs(state: &Users) -> anyhow::Result<()> {
    while send(state).await? == Tick::More {}
    while purge(state).await? == Tick::More {}
    Ok(())
}

async fn send(state: &Users) -> anyhow::Result<Tick> {
    let now = state.platform.clock.now();
    let requests = {
        let mut conn = state.platform.db.acquire().await?;
        db::claim(&mut conn, now, LEASE, BATCH).await?
    };
    let found = requests.len();
    for request in requests {
        answer(state, &request).await?;
    }
    Ok(Tick::after_batch(found, BATCH))
}

async fn answer(state: &Users, request: &Request) -> anyhow::Result<()> {
    let now = state.platform.clock.now();
    let token = Token::new();
    let addressee = {
        let mut tx = state.platform.db.begin().await?;
        let addressee = db::addressee(&mut tx, &request.email).await?;
        match &addressee {
            Some(user) => {
                db::insert_token(&mut tx, &token.hash, &user.id, now + api::LIFETIME).await?;
            }
            None => db::settle(&mut tx, &request.id, now).await?,
        }
        tx.commit().await?;
        addressee
    };
    let Some(user) = addressee else {
        return Ok(());
    };
    let mail = Mail {
        id: &request.id,
        to: &user.email,
        subject: "Set a new password",
        text: text(state, &user, token.text.expose_secret()),
    };
    let sent = state.mailer.send(mail).await;
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    match sent {
        Ok(()) => {
            db::settle(&mut tx, &request.id, now).await?;
            let entry = Entry::done(&user.id, "user.reset_mailed", ("user", user.id.as_str()));
            audit::write(&mut tx, entry, now).await?;
            info!(user.id = %user.id, "mailed user {} what sets another password", user.id);
        }
        Err(MailError::Passing(why)) if request.attempts < ATTEMPTS => {
            let pause = PAUSE * 2_u32.pow(request.attempts.unsigned_abs().min(8));
            db::postpone(&mut tx, &request.id, now, pause).await?;
            info!(user.id = %user.id, "a mail that sets another password is tried again: {why}");
        }
        Err(error) => {
            db::settle(&mut tx, &request.id, now).await?;
            warn!(user.id = %user.id, "user {} gets no mail that sets another password: {error}", user.id);
        }
    }
    tx.commit().await?;
    Ok(())
}

fn text(state: &Users, user: &Addressee, token: &str) -> String {
    let name = &user.username;
    let minutes = api::LIFETIME.num_minutes();
    let way = match &state.config.reset_url {
        Some(url) => url.replace("{token}", token),
        None => token.to_owned(),
    };
    format!(
        "Hello {name},\n\nsomebody, we hope you, wants to set another password. Within {minutes} minutes and once this does it:\n\n\
         {way}\n\nAll sessions end by that. If it was not you, nothing needs to be done: your password stays.\n"
    )
}

async fn purge(state: &Users) -> anyhow::Result<Tick> {
    let before = state.platform.clock.now() - KEPT;
    let mut conn = state.platform.db.acquire().await?;
    let purged = db::purge(&mut conn, before, 500).await?;
    Ok(Tick::after_batch(purged.try_into()?, 500))
}
