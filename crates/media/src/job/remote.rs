//! Steps that are made elsewhere: who is asked, what is sent, and what comes back.
//!
//! Whom a step goes to is written before it is sent, and whoever finds that after a crash, or after an answer that says
//! nothing, asks there first whether it was taken. It goes to another provider only when the first surely has not.

use std::sync::atomic::{AtomicI16, Ordering};

use chrono::TimeDelta;
use contracts::Timestamp;
use platform::problem::causes;

use super::worker::result_folder;
use super::{Fault, Made, Work, db};
use crate::Media;
use crate::provider::{self, MOST_OUTPUTS, Message, Provider, Refusal, Report, Reported};
use crate::task::TaskType;

/// After so many failures in a row a provider that surely did not take a step is left for the next one …
pub const FAILURES: i16 = 3;
/// … and after so many one of which that is not known is given up.
pub const UNCLEAR: i16 = 7;
/// The largest file that is taken from a provider.
const LARGEST: u64 = 512 << 20;
/// How long a provider may fetch an input.
const LINK: TimeDelta = TimeDelta::hours(2);

/// Who does a step.
pub enum Route {
    /// This process.
    Here,
    /// It was, or is now, given to a provider.
    There(Provider),
}

/// How a step is named to providers; it makes a submission happen once.
pub fn reference(work: &Work) -> String {
    format!("{}-{}", work.task_id, work.step_index)
}

/// Decides who does a step, and writes it down where it is a provider.
pub async fn route(state: &Media, work: &Work) -> Result<Route, Fault> {
    let down = |error: sqlx::Error| Fault::passing("INTERNAL", causes(&error));
    if let Some(name) = &work.provider {
        let gone = || Fault::unclear(format!("provider {name} is no longer configured"));
        return state
            .providers
            .find(name)
            .cloned()
            .map(Route::There)
            .ok_or_else(gone);
    }
    let offering = state.providers.offering(work.kind);
    let left = offering
        .into_iter()
        .filter(|one| !work.excluded.iter().any(|name| name == one.name()));
    let now = state.platform.clock.now();
    let mut is_any = work.kind.is_local();
    for provider in left {
        if work.kind.is_local() && provider.settings().priority >= 0 {
            break;
        }
        is_any = true;
        let mut tx = state.platform.db.begin().await.map_err(down)?;
        if db::assign(&mut tx, work, provider.name(), provider.settings().limit)
            .await
            .map_err(down)?
            && provider::db::may_send(&mut tx, provider.name(), now)
                .await
                .map_err(down)?
        {
            tx.commit().await.map_err(down)?;
            return Ok(Route::There(provider));
        }
    }
    match (work.kind.is_local(), is_any) {
        (true, _) => {
            if work.failures > 0 || !work.excluded.is_empty() {
                let mut conn = state.platform.db.acquire().await.map_err(down)?;
                db::assign_here(&mut conn, work).await.map_err(down)?;
            }
            Ok(Route::Here)
        }
        (false, true) => Err(Fault::Busy),
        (false, false) => {
            let why = work
                .error
                .clone()
                .unwrap_or_else(|| "no provider makes this".to_owned());
            Err(Fault::lasting("PROVIDER_DOWN", why))
        }
    }
}

/// Hands a step over, unless that was done before.
pub async fn submit(state: &Media, work: &Work, provider: &Provider) -> Result<Made, Fault> {
    let reference = reference(work);
    if work.provider.is_some() {
        match provider.find(&reference).await {
            Ok(Some(id)) => return Ok(Made::Accepted(id)),
            Ok(None) if work.failures > FAILURES => {
                return Err(Fault::Elsewhere {
                    message: "it did not take the step".to_owned(),
                    provider: None,
                });
            }
            Ok(None) => {}
            Err(refusal) => return Err(Fault::unclear(refusal.to_string())),
        }
    }
    let down = |error: sqlx::Error| Fault::passing("INTERNAL", causes(&error));
    let now = state.platform.clock.now();
    let inputs = links(state, work, now).await.map_err(down)?;
    let base = state.config.public_url.as_deref();
    let callback_url = base.map(|base| {
        format!(
            "{base}/media/callbacks/{}/{}",
            work.task_id, work.step_index
        )
    });
    let message = Message::Submit {
        reference: &reference,
        kind: work.kind,
        input_urls: &inputs,
        params: &work.params,
        callback_url,
    };
    match provider.submit(&message).await {
        Ok(id) => Ok(Made::Accepted(id)),
        Err(Refusal::Refused(why)) => Err(Fault::lasting("PROVIDER_REFUSED", why)),
        Err(Refusal::NotTaken(why)) => Err(Fault::NotTaken {
            message: why,
            provider: None,
        }),
        Err(Refusal::Unclear(why)) => Err(Fault::unclear(why)),
    }
}

/// Fetches what a provider made, or tells why it made nothing.
pub async fn collect(
    state: &Media,
    work: &Work,
    report: &Report,
    percent: &AtomicI16,
) -> Result<Made, Fault> {
    if report.status == Reported::Failed {
        let why = report
            .error_message
            .as_deref()
            .unwrap_or("the provider gave no reason");
        let why: String = why.chars().filter(|c| !c.is_control()).take(500).collect();
        return Err(Fault::lasting("PROVIDER_FAILED", why));
    }
    let urls = &report.output_urls;
    if urls.is_empty() || urls.len() > MOST_OUTPUTS {
        return Err(Fault::lasting(
            "OUTPUT_INVALID",
            "the provider names no outputs, or more than 16",
        ));
    }
    let mut keys = Vec::with_capacity(urls.len());
    for (index, url) in urls.iter().enumerate() {
        let key = format!("{}/{index}", result_folder(work));
        keys.push(state.fetch.copy(url, LARGEST, &state.objects, &key).await?);
        let done = 90 + (index + 1) * 9 / urls.len();
        percent.store(i16::try_from(done).unwrap_or_default(), Ordering::Relaxed);
    }
    Ok(Made::Files(keys))
}

/// When a provider that has taken a step is asked next how it goes.
pub fn ask_after(kind: TaskType, age: TimeDelta) -> TimeDelta {
    let seconds = match kind {
        TaskType::VideoGenerate if age < TimeDelta::minutes(2) => 15,
        TaskType::VideoGenerate if age < TimeDelta::minutes(10) => 30,
        TaskType::VideoGenerate => 60,
        TaskType::ModelPose12 => 10,
        TaskType::BasicClean
        | TaskType::ImageStitch
        | TaskType::VideoCompose
        | TaskType::TextProcess => 3,
    };
    TimeDelta::seconds(seconds)
}

/// Where a provider can fetch the inputs: URLs as they are, objects by an address that nobody can guess.
async fn links(state: &Media, work: &Work, now: Timestamp) -> sqlx::Result<Vec<String>> {
    let base = state.config.public_url.as_deref().unwrap_or_default();
    let mut conn = state.platform.db.acquire().await?;
    let mut urls = Vec::with_capacity(work.inputs.len());
    for input in &work.inputs {
        if is_url(input) {
            urls.push(input.clone());
            continue;
        }
        let (secret, stored) = crate::upload::ticket();
        db::link(&mut conn, &stored, input, now + LINK).await?;
        urls.push(format!("{base}/media/uploads/{secret}"));
    }
    Ok(urls)
}

/// Whether an input is a URL, and not the key of an object.
pub fn is_url(input: &str) -> bool {
    let begins = |scheme: &str| {
        let start = input.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    begins("http://") || begins("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_a_video_the_rarer_it_is_asked_for() {
        let ask =
            |minutes| ask_after(TaskType::VideoGenerate, TimeDelta::minutes(minutes)).num_seconds();

        assert_eq!([0, 1, 2, 9, 10, 100].map(ask), [15, 15, 30, 30, 60, 60]);
    }

    #[test]
    fn urls_and_keys_are_told_apart() {
        assert!(is_url("HTTPS://x") && is_url("http://x"));
        assert!(!is_url("input/u/1/http.png") && !is_url("http:/x") && !is_url("é"));
    }
}
