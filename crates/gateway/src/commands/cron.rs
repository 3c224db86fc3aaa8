//! `gateway cron`: the jobs of the cluster, from its database.

use anyhow::bail;
use chrono::{DateTime, Utc};
use coordination::cron::Told;
use coordination::{CronError, JobOverview, Jobs, PastRun};
use gateway::front::hostname;
use platform::{Clock, Env, db};
use serde_json::{Value, json};

use super::stores::addresses;
use super::table::{span, table};
use super::{CronCommand, say};
use crate::serve::Config;

/// Does what the command says, on the database of the cluster; a replica need not run here.
pub async fn cron(env: Env, command: CronCommand) -> anyhow::Result<i32> {
    let settings = Config::from_env(env)?.settings;
    let db = db::connect(&addresses(&settings)?.database, (0, 1)).await?;
    let jobs = Jobs::new(db.clone());
    let done = carry_out(&jobs, command).await;
    db.close().await;
    match done {
        Ok(text) => say(&text)?,
        Err(CronError::UnknownJob { job }) => {
            bail!("there is no job {job}; `gateway cron list` shows those there are")
        }
        Err(error) => return Err(error.into()),
    }
    Ok(0)
}

async fn carry_out(jobs: &Jobs, command: CronCommand) -> Result<String, CronError> {
    Ok(match command {
        CronCommand::List { next, json } => {
            let all = jobs.overview(usize::from(next)).await?;
            if json { pretty(&all) } else { list(&all) }
        }
        CronCommand::History { job, limit, json } => {
            let runs = jobs.history_before(&job, None, limit).await?;
            if json { pretty(&runs) } else { history(&runs) }
        }
        CronCommand::Trigger { job, json } => {
            let slot = shown(jobs.trigger(&job).await?);
            let told = json!({ "job": job, "slot": slot });
            one(json, &told, || {
                format!(
                    "{job} will be run within five seconds, as {slot}; `gateway cron history {job}` tells how it went"
                )
            })
        }
        CronCommand::Pause { job, reason, json } => {
            let reason = reason.unwrap_or_else(by_hand);
            let changed = jobs.pause(&job, &reason).await?;
            let told = json!({ "job": job, "paused": true, "changed": changed });
            one(json, &told, || match changed {
                true => format!("{job} is paused; `gateway cron resume {job}` lets it go on"),
                false => format!("{job} was paused already"),
            })
        }
        CronCommand::Resume { job, json } => {
            let changed = jobs.resume(&job).await?;
            let told = json!({ "job": job, "paused": false, "changed": changed });
            one(json, &told, || match changed {
                true => format!("{job} goes on with its next slot"),
                false => format!("{job} was not paused"),
            })
        }
    })
}

fn one(as_json: bool, told: &Value, line: impl FnOnce() -> String) -> String {
    match as_json {
        true => pretty(told),
        false => line(),
    }
}

/// A slot as the history has it.
fn shown(slot: DateTime<Utc>) -> String {
    slot.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// Who has this hand, for those who wonder.
fn by_hand() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "hand".to_owned());
    format!("by {user} on {}", hostname())
}

fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain strings and numbers are JSON")
}

fn list(jobs: &[JobOverview]) -> String {
    let now = Clock::system().now().utc();
    let ago = |then: DateTime<Utc>| span((now - then).num_seconds().max(0));
    let head = [
        "JOB", "SCHEDULE", "ZONE", "JITTER", "CATCH-UP", "OVERLAP", "STATE", "LAST", "WENT", "NEXT",
    ];
    let rows = jobs.iter().map(
        |JobOverview {
             told,
             last,
             next_runs,
         }| {
            let next: Vec<String> = next_runs
                .iter()
                .map(|next| next.format("%m-%d %H:%M:%S").to_string())
                .collect();
            let last = last.as_ref();
            vec![
                told.job.clone(),
                told.schedule.clone(),
                told.time_zone.clone(),
                jitter(told.jitter_ms),
                told.catch_up.clone(),
                told.overlap.clone(),
                state(told, now - told.seen_at > chrono::TimeDelta::seconds(90)),
                last.map_or_else(|| "-".to_owned(), |run| format!("{} ago", ago(at(run)))),
                last.map_or_else(|| "-".to_owned(), |run| run.state.clone()),
                if next.is_empty() {
                    "-".to_owned()
                } else {
                    next.join(", ")
                },
            ]
        },
    );
    table(&head, rows)
}

/// When a run ended, or began where it goes on, or was asked for where it did not begin.
fn at(run: &PastRun) -> DateTime<Utc> {
    run.finished_at.or(run.started_at).unwrap_or(run.slot)
}

fn jitter(milliseconds: i64) -> String {
    match milliseconds {
        0 => "-".to_owned(),
        1..1000 => format!("{milliseconds}ms"),
        _ => span(milliseconds / 1000),
    }
}

/// The beginning of a long text: every row of a table is as wide as its widest one.
fn cut(text: &str) -> String {
    const WIDE: usize = 40;
    if text.chars().count() <= WIDE {
        return text.to_owned();
    }
    text.chars().take(WIDE - 1).chain(['…']).collect()
}

fn state(told: &Told, is_unheard: bool) -> String {
    match (&told.pause_reason, told.paused_at) {
        (Some(reason), Some(_)) => format!("paused: {}", cut(reason)),
        (None, Some(_)) => "paused".to_owned(),
        (_, None) if is_unheard => "no replica runs it".to_owned(),
        (_, None) if told.failures > 0 => format!("{} failed in a row", told.failures),
        (_, None) => "ok".to_owned(),
    }
}

fn history(runs: &[PastRun]) -> String {
    let head = [
        "SLOT", "BY", "STATE", "ATTEMPT", "TOKEN", "PROCESS", "LAG", "TOOK", "ERROR",
    ];
    let milliseconds =
        |some: Option<i64>| some.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
    let rows = runs.iter().map(|run| {
        let took = run.finished_at.zip(run.started_at);
        vec![
            shown(run.slot),
            if run.manual { "hand" } else { "schedule" }.to_owned(),
            run.state.clone(),
            run.attempt.to_string(),
            run.token
                .map_or_else(|| "-".to_owned(), |token| token.to_string()),
            run.instance.clone().unwrap_or_else(|| "-".to_owned()),
            milliseconds(run.lag_ms),
            milliseconds(took.map(|(end, begin)| (end - begin).num_milliseconds())),
            run.error.clone().unwrap_or_default(),
        ]
    });
    table(&head, rows)
}
