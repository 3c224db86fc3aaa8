//! Pictures with letters that people read more easily than programs, asked for at sign-in where the settings say so.
//!
//! They are kept in Redis alone and may be lost: whoever sent a right one then asks for another. Without Redis they step
//! aside, as rate limits do; the lock of an account does not.

pub mod api;
mod draw;

use std::future::Future;
use std::time::Duration;

use fred::interfaces::KeysInterface;
use fred::types::Expiration;
use platform::Problem;
use rand::RngExt;
use tokio::time::timeout;
use tracing::warn;

use crate::Users;
use crate::limits::brief;

/// How long one may be answered, in seconds.
const LIFETIME: i64 = 300;
/// How long Redis is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
const LETTERS: usize = 5;

/// What a client sends back.
#[derive(Debug)]
pub struct Answer {
    /// Which picture.
    pub id: String,
    /// What it shows, in any case.
    pub text: String,
}

/// A new picture: its id and what it shows.
async fn begin(state: &Users) -> Result<(String, String), Problem> {
    let id = hex::encode(rand::random::<[u8; 16]>());
    let letters = draw::letters();
    let letter = |_| letters[rand::rng().random_range(0..letters.len())];
    let text: String = (0..LETTERS).map(letter).collect();
    let kept = keep(state, &key(state, &id), &text).await;
    let kept = kept.ok_or_else(|| Problem::not_ready("no captcha can be made; try again"));
    kept.map(|()| (id, text))
}

/// Lets an answer count, once; that of a sign-in which was then asked for its second factor also counts for what follows.
///
/// # Errors
/// 400 where it is missing, wrong, used or too old.
pub async fn check(state: &Users, answer: Option<&Answer>, name: &str) -> Result<(), Problem> {
    if !state.config.captcha {
        return Ok(());
    }
    let id = answer.map_or("", |answer| &*answer.id);
    let passed = within(
        state
            .platform
            .redis
            .get::<Option<String>, _>(passed_key(state, id)),
    );
    let held = within(
        state
            .platform
            .redis
            .getdel::<Option<String>, _>(key(state, id)),
    );
    let (Some(passed), Some(held)) = (passed.await, held.await) else {
        warn!("a sign-in is asked for no captcha: Redis does not answer");
        return Ok(());
    };
    let Some(answer) = answer else {
        return Err(Problem::invalid_field("captcha", "is required"));
    };
    let sent = answer.text.trim().to_ascii_uppercase();
    if held == Some(sent) || passed == Some(brief(name)) {
        return Ok(());
    }
    let why = "is wrong, used or too old: ask for another one";
    Err(Problem::invalid_field("captcha", why))
}

/// Lets the answer of a sign-in count for the same name until its time is over: the user goes on with the second factor, and
/// the lock bounds how often.
pub async fn pass_on(state: &Users, answer: Option<&Answer>, name: &str) {
    if let Some(answer) = answer.filter(|_| state.config.captcha) {
        // Where this is lost the user reads another one.
        keep(state, &passed_key(state, &answer.id), &brief(name)).await;
    }
}

async fn keep(state: &Users, key: &str, value: &str) -> Option<()> {
    let span = Expiration::EX(LIFETIME);
    let set = state
        .platform
        .redis
        .set::<(), _, _>(key, value, Some(span), None, false);
    within(set).await
}

/// What Redis answers in time.
async fn within<T>(answer: impl Future<Output = Result<T, fred::error::Error>>) -> Option<T> {
    timeout(PATIENCE, answer).await.ok()?.ok()
}

fn key(state: &Users, id: &str) -> String {
    state.platform.keys.key(&format!("captcha:{}", brief(id)))
}

fn passed_key(state: &Users, id: &str) -> String {
    state
        .platform
        .keys
        .key(&format!("captcha-passed:{}", brief(id)))
}
