//! One job on one replica: decides whether it begins, by its policies, and wins or loses the slot.

use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::job::{MOST_AT_ONCE, Overlap};
use super::run::{Won, supervise};
use super::schedule::Schedule;
use super::{CatchUp, Cron, CronError, Job, db};
use crate::lease::next_fence;
use crate::metrics;

/// A slot this much in the past was missed, for jobs that do not catch up.
const TIMELY: TimeDelta = TimeDelta::seconds(60);
/// Most slots that are caught up in one go.
const MOST_SLOTS: usize = 1000;
/// How long a slot that waits for another run's end is left alone.
const WHILE_ANOTHER_RUNS: Duration = Duration::from_secs(1);
/// How long an abandoned run of a paused job is left alone.
const WHILE_PAUSED: Duration = Duration::from_secs(5);
/// How long after somebody else had the lock it is tried again.
const WHILE_LOCKED: Duration = Duration::from_millis(300);

/// A job at its place on this replica.
#[derive(Debug)]
pub struct Post {
    pub cron: Cron,
    pub job: Job,
    pub zone: Tz,
    pub schedule: Schedule,
    pub stop: CancellationToken,
    /// Where its runs go on.
    pub runs: TaskTracker,
}

/// When to look at a job again.
#[derive(Debug)]
pub enum Next {
    /// At once; it may turn out that nothing is due.
    Look,
    /// After a while.
    Later(Duration),
}

/// Whether the schedule owes a slot, as far as one row tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    No,
    Slot(DateTime<Utc>),
    /// One of several; only all slots of a span tell which.
    Some,
}

impl Owed {
    pub fn maybe(self) -> bool {
        self != Self::No
    }
}

/// What a look at the database says.
enum Due {
    /// A slot nobody has begun.
    Slot(DateTime<Utc>),
    /// A run that was begun or asked for and waits for somebody.
    Open(DateTime<Utc>),
    /// Nothing now.
    Nothing(Next),
}

/// What the schedule owes by the job's policy. `since`: when this replica came to run it.
pub fn owed(
    job: &Job,
    schedule: &Schedule,
    situation: &db::Situation,
    since: DateTime<Utc>,
) -> Owed {
    if situation.paused {
        return Owed::No;
    }
    let latest = schedule.latest_due(situation.now);
    let Some(latest) = latest.filter(|slot| *slot > situation.owes_since) else {
        return Owed::No;
    };
    let unbegun = situation.last_slot.is_none_or(|last| latest > last);
    match job.catch_up {
        CatchUp::All(_) => Owed::Some,
        CatchUp::Last if unbegun => Owed::Slot(latest),
        CatchUp::None
            if unbegun && latest > since && situation.now - latest < TIMELY + delay(job) =>
        {
            Owed::Slot(latest)
        }
        CatchUp::None | CatchUp::Last => Owed::No,
    }
}

fn delay(job: &Job) -> TimeDelta {
    TimeDelta::from_std(job.jitter).unwrap_or_default()
}

impl Post {
    pub fn new(
        cron: Cron,
        job: Job,
        stop: CancellationToken,
        runs: TaskTracker,
    ) -> Result<Self, CronError> {
        let zone = job.time_zone.unwrap_or(cron.zone);
        let schedule = Schedule::parse(job.name, &job.schedule, zone, job.jitter)?;
        Ok(Self {
            cron,
            job,
            zone,
            schedule,
            stop,
            runs,
        })
    }

    /// Begins what is due, if it can be had; the run goes on by itself.
    pub async fn attend(&self, since: DateTime<Utc>) -> anyhow::Result<Next> {
        let due = match self.due(since).await? {
            Due::Nothing(next) => return Ok(next),
            Due::Slot(slot) | Due::Open(slot) => slot,
        };
        let name = self.job.name;
        let key = match self.job.overlap {
            Overlap::Allow => self
                .cron
                .keys
                .cron(&format!("{name}:{}", due.timestamp_micros())),
            Overlap::Skip | Overlap::QueueOne | Overlap::CancelOther => self.cron.keys.cron(name),
        };
        let lock = tokio::select! {
            lock = self.cron.redlock.lock(&key) => lock?,
            () = self.stop.cancelled() => return Ok(Next::Look),
        };
        // Where there is none, another runs, or has just won.
        let Some(held) = lock else {
            return Ok(Next::Later(WHILE_LOCKED));
        };
        // The lock may have been a while in coming: look again, with it in hand.
        let won = match self.due(since).await? {
            Due::Slot(slot) if slot == due || self.job.overlap != Overlap::Allow => {
                self.begin(slot).await?
            }
            Due::Open(slot) if slot == due || self.job.overlap != Overlap::Allow => {
                self.take_over(slot).await?
            }
            Due::Nothing(next) => {
                held.release().await;
                return Ok(next);
            }
            // Another slot has another lock.
            Due::Slot(_) | Due::Open(_) => None,
        };
        let Some(won) = won else {
            held.release().await;
            return Ok(Next::Look);
        };
        let supervised = supervise(
            self.cron.clone(),
            self.job.clone(),
            won,
            held,
            self.stop.clone(),
        );
        self.runs.spawn(supervised);
        Ok(Next::Look)
    }

    async fn due(&self, since: DateTime<Utc>) -> anyhow::Result<Due> {
        let name = self.job.name;
        let silence = self.cron.silence();
        let known = db::situations(&self.cron.db, &[name], silence).await;
        let known = known.context("could not look at the job")?;
        let Some(situation) = known.first() else {
            anyhow::bail!("nobody announced the job");
        };
        let most = match self.job.overlap {
            Overlap::Allow => MOST_AT_ONCE,
            Overlap::Skip | Overlap::QueueOne | Overlap::CancelOther => 1,
        };
        let is_free = situation.running < most;
        let open = self.open(situation, silence).await?;
        if let Some(slot) = open.filter(|_| is_free) {
            return Ok(Due::Open(slot));
        }
        let slot = match owed(&self.job, &self.schedule, situation, since) {
            Owed::No => None,
            Owed::Slot(slot) => Some(slot),
            Owed::Some => self.oldest_unbegun(situation).await?,
        };
        let Some(slot) = slot else {
            // What waits in spite of that, waits for the end of a run or of the pause.
            return Ok(Due::Nothing(match is_free {
                true if situation.paused => Next::Later(WHILE_PAUSED),
                true => Next::Look,
                false => Next::Later(WHILE_ANOTHER_RUNS),
            }));
        };
        match self.job.overlap {
            Overlap::Skip => {
                let due = self.schedule.due_at(slot);
                if db::skip(&self.cron.db, name, slot, due, silence).await? {
                    metrics::cron_run(name, "skipped");
                    debug!(job = name, %slot, "job {name} for {slot} is skipped: an earlier run goes on");
                    return Ok(Due::Nothing(Next::Look));
                }
            }
            Overlap::CancelOther if !is_free => {
                db::ask_stop(&self.cron.db, name, slot).await?;
                // Where its holder is this replica it hears at once.
                self.cron.stop_asked.notify_waiters();
                return Ok(Due::Nothing(Next::Later(WHILE_LOCKED)));
            }
            Overlap::CancelOther | Overlap::QueueOne | Overlap::Allow => {}
        }
        Ok(if is_free {
            Due::Slot(slot)
        } else {
            Due::Nothing(Next::Later(WHILE_ANOTHER_RUNS))
        })
    }

    /// The oldest run that waits for somebody and is wanted; those that are not are given up.
    async fn open(
        &self,
        situation: &db::Situation,
        silence: Duration,
    ) -> anyhow::Result<Option<DateTime<Utc>>> {
        let name = self.job.name;
        let open = db::open_runs(&self.cron.db, name, silence).await;
        for open in open.context("could not look at open runs")? {
            if situation.paused && !open.manual {
                continue;
            }
            let wanted = match self.job.catch_up {
                _ if open.manual => true,
                CatchUp::None => false,
                CatchUp::Last => {
                    Some(open.slot)
                        == self
                            .schedule
                            .latest_due(situation.now)
                            .max(situation.last_slot)
                }
                CatchUp::All(window) => open.slot > situation.now - window,
            };
            if wanted && open.attempt < db::MOST_ATTEMPTS {
                return Ok(Some(open.slot));
            }
            if db::give_up(&self.cron.db, name, open.slot, silence).await? {
                metrics::cron_run(name, "abandoned");
                warn!(job = name, slot = %open.slot, "run of job {name} for {} was {} and is given up", open.slot, open.state);
            }
        }
        Ok(None)
    }

    async fn oldest_unbegun(
        &self,
        situation: &db::Situation,
    ) -> anyhow::Result<Option<DateTime<Utc>>> {
        let CatchUp::All(window) = self.job.catch_up else {
            return Ok(None);
        };
        let from = situation.owes_since.max(situation.now - window);
        let begun = db::begun(&self.cron.db, self.job.name, from)
            .await
            .context("could not look at slots")?;
        let slots = self.schedule.between(from, situation.now, MOST_SLOTS);
        Ok(slots.into_iter().rev().find(|slot| !begun.contains(slot)))
    }

    async fn begin(&self, slot: DateTime<Utc>) -> anyhow::Result<Option<Won>> {
        let name = self.job.name;
        let mut tx = self.cron.db.begin().await?;
        let token = next_fence(&mut tx, &self.job.fence_key(slot)).await?;
        let begun = db::begin(&mut tx, name, slot, token, &self.cron.instance).await;
        let Some(lag) = begun.context("could not begin the slot")? else {
            return Ok(None);
        };
        tx.commit().await?;
        metrics::cron_lag(name, lag);
        Ok(Some(Won {
            slot,
            token,
            attempt: 1,
        }))
    }

    async fn take_over(&self, slot: DateTime<Utc>) -> anyhow::Result<Option<Won>> {
        let name = self.job.name;
        let silence = self.cron.silence();
        let mut tx = self.cron.db.begin().await?;
        let token = next_fence(&mut tx, &self.job.fence_key(slot)).await?;
        let taken = db::take_over(&mut tx, name, slot, token, &self.cron.instance, silence).await;
        let Some((attempt, lag)) = taken.context("could not take the run over")? else {
            return Ok(None);
        };
        tx.commit().await?;
        metrics::cron_lag(name, lag);
        if attempt > 1 {
            metrics::cron_run(name, "taken-over");
            warn!(job = name, %slot, attempt, "job {name} for {slot} lost its holder and is run again");
        }
        Ok(Some(Won {
            slot,
            token,
            attempt,
        }))
    }
}
