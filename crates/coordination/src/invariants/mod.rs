//! What must never happen, measured while it runs: periodic checks whose findings stand in the database, so that every
//! replica tells the same numbers, and a number outlives the replica that found it.
//!
//! A check is a cron job that reads the stores and reports what it finds. A finding that is certain (two rows that
//! contradict each other) counts at once. What two stores may say for a moment in passing counts when three looks
//! in a row have seen it; looks that follow each other within 45 seconds are one. What is confirmed stays, also when its cause is gone.
//!
//! This module brings the checks of cron itself ([`Invariants::checks`]); a service hands in its own as a [`Check`].

mod cron_slots;
mod db;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{FromRow, PgPool};

use crate::cron::{CatchUp, Job, Overlap, Run};
use crate::lease::Guard;
use crate::{StoreError, metrics, text};

/// Every minute; three looks in a row then confirm a finding within two to three minutes.
const SCHEDULE: &str = "* * * * *";
/// Parts the checks within the minute.
const JITTER: Duration = Duration::from_secs(20);
/// How long a check may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Findings of one look that are kept; a thousand tell as much as a million.
const MOST_FINDINGS: usize = 1000;

type Look = Pin<Box<dyn Future<Output = anyhow::Result<Vec<Finding>>> + Send>>;

/// A violation of an invariant.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What is violated, the same whenever it is seen again, as `node-1 adb 5555: a, b`.
    pub subject: String,
    /// What a person needs to understand it.
    pub detail: Value,
    /// Whether it is one for sure, or may be a moment's disagreement of two stores.
    pub certain: bool,
}

/// A way to look for violations of an invariant.
#[derive(Clone)]
pub struct Check {
    invariant: &'static str,
    job: &'static str,
    look: Arc<dyn Fn() -> Look + Send + Sync>,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("invariant", &self.invariant)
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

impl Check {
    /// A check of an invariant such as `double_lease`, run by the cron job of a name of its own. It bears being run
    /// anywhere and at any time, and only reads.
    pub fn new<F, R>(invariant: &'static str, job: &'static str, look: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = anyhow::Result<Vec<Finding>>> + Send + 'static,
    {
        Self {
            invariant,
            job,
            look: Arc::new(move || Box::pin(look())),
        }
    }
}

/// How an invariant stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InvariantReport {
    /// The invariant.
    pub invariant: String,
    /// Confirmed violations since the database began; must be 0.
    pub total: i64,
    /// When it was last looked at.
    pub checked_at: DateTime<Utc>,
    /// By which instance.
    pub instance: String,
    /// Why the last look failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The latest findings, newest first.
    pub findings: Vec<Found>,
}

/// A finding as the database keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    #[serde(skip)]
    invariant: String,
    /// What is violated.
    pub subject: String,
    /// More of it.
    pub detail: Value,
    /// When it was first seen.
    pub first_seen_at: DateTime<Utc>,
    /// When it was last seen.
    pub last_seen_at: DateTime<Utc>,
    /// Since when it counts; while it may still be a moment's disagreement it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<DateTime<Utc>>,
}

/// Refused writes of late holders, by the kind of what they held.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow)]
#[serde(rename_all = "camelCase")]
pub struct FencedWrites {
    /// What came before the first colon in the name of the lease or job.
    pub kind: String,
    /// How many, over all replicas there ever were.
    pub total: i64,
    /// When the latest was added.
    pub last_at: DateTime<Utc>,
}

/// All invariants at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Each invariant that was ever checked.
    pub invariants: Vec<InvariantReport>,
    /// Writes that fencing tokens refused: no violations, but the proof that late holders exist and change nothing.
    pub fenced_writes: Vec<FencedWrites>,
}

/// Keeps the findings of a cluster.
#[derive(Clone, Debug)]
pub struct Invariants {
    db: PgPool,
    instance: String,
}

impl Invariants {
    /// Keeps findings in the database, in the name of an instance.
    pub fn new(db: PgPool, instance_name: String) -> Self {
        Self {
            db,
            instance: instance_name,
        }
    }

    /// The checks of cron: no slot twice, and none that a policy owes left out.
    pub fn checks(&self) -> Vec<Check> {
        let (twice, gaps) = (self.db.clone(), self.db.clone());
        vec![
            Check::new(
                "cron_slot_duplicates",
                "invariants-cron-duplicates",
                move || cron_slots::duplicates(twice.clone()),
            ),
            Check::new("cron_slot_gaps", "invariants-cron-gaps", move || {
                cron_slots::gaps(gaps.clone())
            }),
        ]
    }

    /// The job that runs a check every minute on one of the replicas that have it.
    pub fn job(&self, check: Check) -> Job {
        let invariants = self.clone();
        let job = check.job;
        Job::new(job, SCHEDULE, move |run: Run| {
            let (invariants, check) = (invariants.clone(), check.clone());
            async move { invariants.look_as(&check, Some(&run.guard())).await }
        })
        .jitter(JITTER)
        .timeout(TIMEOUT)
        .catch_up(CatchUp::Last)
        .overlap(Overlap::Skip)
    }

    /// Looks once and writes down what is found, confirmed or not.
    pub async fn look(&self, check: &Check) -> anyhow::Result<()> {
        self.look_as(check, None).await
    }

    /// Looks once in the name of a run: one that is late writes down nothing.
    async fn look_as(&self, check: &Check, guard: Option<&Guard>) -> anyhow::Result<()> {
        let begun = db::now(&self.db).await?;
        let found = (check.look)().await;
        let error = found.as_ref().err().map(text::of_error);
        let mut tx = self.db.begin().await?;
        if let Some(guard) = guard {
            guard.prove(&mut tx).await?;
        }
        let mut confirmed = Vec::new();
        if let Ok(found) = &found {
            let kept = &found[..found.len().min(MOST_FINDINGS)];
            confirmed = db::record(&mut tx, check.invariant, kept, begun).await?;
        }
        db::checked(&mut tx, check.invariant, &self.instance, error.as_deref()).await?;
        tx.commit().await?;
        for subject in confirmed {
            tracing::error!(
                invariant = check.invariant,
                subject,
                "invariant {} is violated: {subject}",
                check.invariant
            );
        }
        found.map(|_| ())
    }

    /// How everything stands, with the latest `limit` findings of each invariant.
    pub async fn report(&self, limit: i64) -> Result<Report, StoreError> {
        let tried = "read the invariants";
        let (checks, found, fenced_writes) = db::report(&self.db, limit)
            .await
            .map_err(StoreError::postgres(tried))?;
        let mut by_invariant: BTreeMap<String, Vec<Found>> = BTreeMap::new();
        for each in found {
            by_invariant
                .entry(each.invariant.clone())
                .or_default()
                .push(each);
        }
        let invariants = checks.into_iter().map(|check| InvariantReport {
            findings: by_invariant.remove(&check.invariant).unwrap_or_default(),
            invariant: check.invariant,
            total: check.total,
            checked_at: check.checked_at,
            instance: check.instance,
            error: check.error,
        });
        Ok(Report {
            invariants: invariants.collect(),
            fenced_writes,
        })
    }

    /// Adds this replica's fenced writes to the stored totals, and sets the metrics `<invariant>_total`,
    /// `invariant_checked_timestamp_seconds` and `cluster_fenced_writes_total` to what the database says. To be called
    /// every few seconds, by one task.
    pub async fn publish(&self) -> Result<(), StoreError> {
        let tried = "publish the invariants";
        // Taken off when they are added for sure: rather too many than none.
        let told = metrics::untold().clone();
        let added = db::add_fenced(&self.db, &told).await;
        added.map_err(StoreError::postgres(tried))?;
        metrics::told(&told);
        let report = self.report(0).await?;
        for each in report.invariants {
            let total = u64::try_from(each.total).unwrap_or_default();
            metrics::stored_total(format!("{}_total", each.invariant), total);
            metrics::invariant_checked(&each.invariant, each.checked_at.timestamp());
        }
        for each in report.fenced_writes {
            let total = u64::try_from(each.total).unwrap_or_default();
            metrics::fenced_writes_stored(each.kind, total);
        }
        Ok(())
    }
}
