//! Rate limits that a handler asks: refused with 429, and told to the client on whatever the answer is.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use coordination::rate_limit::{Decision, Limit, POLICY_HEADER, RateLimiter, STATE_HEADER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::Problem;

/// A limit that costs more than this is no protection.
const PATIENCE: Duration = Duration::from_millis(100);

tokio::task_local! {
    /// What the handler of this request was told last.
    static DECIDED: Cell<Option<Decision>>;
}

/// Where a subject stands with one more request. Without Redis nothing can be said, and it passes: a limit is comfort.
pub async fn ask(limiter: &RateLimiter, subject: &str, limit: Limit) -> Option<Decision> {
    let mut decisions = ask_each(limiter, &[(subject, limit)]).await;
    decisions.pop()
}

/// The same for several limits that count one request, at once; of those nothing can be said about, nothing is said.
pub async fn ask_each(limiter: &RateLimiter, asks: &[(&str, Limit)]) -> Vec<Decision> {
    limiter.check_within(PATIENCE, asks).await
}

/// Asks for one request of a subject, and tells the client on the answer.
///
/// # Errors
/// 429 with the time to wait.
pub async fn limit(limiter: &RateLimiter, subject: &str, limit: Limit) -> Result<(), Problem> {
    let Some(decision) = ask(limiter, subject, limit).await else {
        return Ok(());
    };
    // Outside of a request there is nobody to tell.
    let _ = DECIDED.try_with(|decided| decided.set(Some(decision)));
    if decision.allowed {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::TOO_MANY_REQUESTS,
        "RATE_LIMITED",
        "too many requests; try again later",
    )
    .retry_after(decision.retry_after))
}

/// Adds the fields of a decision to an answer. Where another limit has spoken before, the fields that can name one alone
/// speak of the one that has fewer requests left.
pub fn tell(decision: &Decision, headers: &mut HeaderMap) {
    let told = headers
        .get("ratelimit-remaining")
        .and_then(|left| left.to_str().ok()?.parse::<u32>().ok());
    let is_narrower = told.is_none_or(|left| decision.remaining < left);
    for (name, value) in decision.headers() {
        let (name, Ok(value)) = (HeaderName::from_static(name), HeaderValue::from_str(&value))
        else {
            continue;
        };
        if name == POLICY_HEADER || name == STATE_HEADER {
            headers.append(name, value);
        } else if is_narrower {
            headers.insert(name, value);
        }
    }
}

/// Runs a handler, and gives what it was told by a limit beside what it answered.
pub(super) async fn noted<T>(answer: impl Future<Output = T>) -> (T, Option<Decision>) {
    DECIDED
        .scope(Cell::new(None), async {
            let answer = answer.await;
            (answer, DECIDED.with(Cell::get))
        })
        .await
}
