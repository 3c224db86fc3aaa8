//! One job on one replica: decides whether it begins, by its policies, and wins or loses the slot.

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::job::Overlap;
use super::run::{Won, supervise};
use super::schedule::Schedule;
use super::{CatchUp, Cron, CronError, Job, db};
use crate::metrics;
use crate::redlock::Held;

/// A slot this much in the past was missed, for jobs that do not catch up.
const TIMELY: TimeDelta = TimeDelta::seconds(60);
/// Slots that are compared with the history at a time.
const PAGE: usize = 1000;
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
    /// Every owed slot up to here was begun when last looked, in microseconds of Unix time.
    settled: AtomicI64,
}

/// When to look at a job again.
#[derive(Debug)]
pub enum Next {
    /// At once; it may turn out that nothing is due.
    Look,
    /// When its next slot falls due after this moment of the database.
    Idle(DateTime<Utc>),
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
    let due = |slot: DateTime<Utc>| schedule.due_at(slot);
    let Some(latest) = latest.filter(|slot| due(*slot) > situation.owes_since) else {
        return Owed::No;
    };
    let unbegun = situation.last_slot.is_none_or(|last| latest > last);
    match job.catch_up {
        CatchUp::All(_) => Owed::Some,
        CatchUp::Last if unbegun => Owed::Slot(latest),
        CatchUp::None if unbegun && due(latest) > since && situation.now - due(latest) < TIMELY => {
            Owed::Slot(latest)
        }
        CatchUp::None | CatchUp::Last => Owed::No,
    }
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
            settled: AtomicI64::new(i64::MIN),
        })
    }

    /// Begins what is due, if it can be had; the run goes on by itself.
    pub async fn attend(&self, since: DateTime<Utc>) -> anyhow::Result<Next> {
        let mut conn = self.cron.db.acquire().await?;
        let first = self.due(&mut conn, since).await?;
        drop(conn);
        let due = match first {
            Due::Nothing(next) => {
                if self.job.overlap == Overlap::CancelOther {
                    // Where the holder of a run that is to end is this replica it hears at once.
                    self.cron.stop_asked.notify_waiters();
                }
                return Ok(next);
            }
            Due::Slot(slot) | Due::Open(slot) => slot,
        };
        let key = match self.job.overlap {
            Overlap::Allow => {
                self.cron
                    .keys
                    .cron(&format!("{}:{}", self.job.name, due.timestamp_micros()))
            }
            Overlap::Skip | Overlap::QueueOne | Overlap::CancelOther => {
                self.cron.keys.cron(self.job.name)
            }
        };
        let lock = tokio::select! {
            lock = self.cron.redlock.lock(&key) => lock?,
            () = self.stop.cancelled() => return Ok(Next::Look),
        };
        // Where there is none, another runs, or has just won.
        let Some(held) = lock else {
            return Ok(Next::Later(WHILE_LOCKED));
        };
        let won = match self.win(due, since, &held).await? {
            Ok(won) => won,
            Err(next) => {
                held.release().await;
                return Ok(next);
            }
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

    /// Decides again and begins, in one transaction that holds the row of the job: nobody begins another run of it,
    /// pauses it or resumes it in between, however long this replica slept since it won the lock. `due`: the slot that
    /// was due then.
    async fn win(
        &self,
        due: DateTime<Utc>,
        since: DateTime<Utc>,
        held: &Held,
    ) -> anyhow::Result<Result<Won, Next>> {
        let mut tx = self.cron.db.begin().await?;
        let tried = db::hold(&mut tx, self.job.name).await;
        tried.context("could not hold the job")?;
        let decided = self.due(&mut tx, since).await?;
        if held.remaining().is_zero() {
            return Ok(Err(Next::Later(WHILE_LOCKED)));
        }
        // With a lock for each slot another slot has another one.
        let is_ours = |slot| slot == due || self.job.overlap != Overlap::Allow;
        let won = match decided {
            Due::Slot(slot) if is_ours(slot) => self.begin(&mut tx, slot).await?,
            Due::Open(slot) if is_ours(slot) => self.take_over(&mut tx, slot).await?,
            Due::Slot(_) | Due::Open(_) => None,
            Due::Nothing(next) => {
                tx.commit().await?;
                return Ok(Err(next));
            }
        };
        let Some((won, lag)) = won else {
            return Ok(Err(Next::Later(WHILE_LOCKED)));
        };
        tx.commit().await?;
        let (name, slot, attempt) = (self.job.name, won.slot, won.attempt);
        metrics::cron_lag(name, lag);
        if attempt > 1 {
            metrics::cron_run(name, "taken-over");
            warn!(job = name, %slot, attempt, "job {name} for {slot} lost its holder and is run again");
        }
        Ok(Ok(won))
    }

    async fn due(&self, conn: &mut PgConnection, since: DateTime<Utc>) -> anyhow::Result<Due> {
        let name = self.job.name;
        let silence = self.cron.silence();
        let known = db::situations(&mut *conn, &[name], silence).await;
        let known = known.context("could not look at the job")?;
        let Some(situation) = known.first() else {
            anyhow::bail!("nobody announced the job");
        };
        let is_free = situation.running < self.job.overlap.most_at_once();
        let open = self.open(conn, situation, silence).await?;
        if let Some(slot) = open.filter(|_| is_free) {
            return Ok(Due::Open(slot));
        }
        let slot = match owed(&self.job, &self.schedule, situation, since) {
            Owed::No => None,
            Owed::Slot(slot) => Some(slot),
            Owed::Some => self.oldest_unbegun(conn, situation).await?,
        };
        let Some(slot) = slot else {
            // What waits in spite of that, waits for the end of a run or of the pause.
            return Ok(Due::Nothing(match is_free {
                true if situation.paused => Next::Later(WHILE_PAUSED),
                true => Next::Idle(situation.now),
                false => Next::Later(WHILE_ANOTHER_RUNS),
            }));
        };
        match self.job.overlap {
            Overlap::Skip => {
                let due = self.schedule.due_at(slot);
                if db::skip(&mut *conn, name, slot, due, silence).await? {
                    metrics::cron_run(name, "skipped");
                    debug!(job = name, %slot, "job {name} for {slot} is skipped: an earlier run goes on");
                    return Ok(Due::Nothing(Next::Look));
                }
            }
            Overlap::CancelOther if !is_free => {
                db::ask_stop(&mut *conn, name, slot).await?;
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
        conn: &mut PgConnection,
        situation: &db::Situation,
        silence: Duration,
    ) -> anyhow::Result<Option<DateTime<Utc>>> {
        let name = self.job.name;
        let open = db::open_runs(&mut *conn, name, silence).await;
        for open in open.context("could not look at open runs")? {
            if situation.paused && !open.manual {
                continue;
            }
            let wanted = match self.job.catch_up {
                _ if open.manual => {
                    open.state != "requested" || situation.now - open.slot < db::ASKED_FOR
                }
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
            if let Some(state) = db::give_up(&mut *conn, name, open.slot, wanted, silence).await? {
                metrics::cron_state(name, &state);
                warn!(job = name, slot = %open.slot, "run of job {name} for {} was {} and is given up as {state}", open.slot, open.state);
            }
        }
        Ok(None)
    }

    /// The oldest slot of the window that fell due and was not begun.
    async fn oldest_unbegun(
        &self,
        conn: &mut PgConnection,
        situation: &db::Situation,
    ) -> anyhow::Result<Option<DateTime<Utc>>> {
        let CatchUp::All(window) = self.job.catch_up else {
            return Ok(None);
        };
        let (now, schedule) = (situation.now, &self.schedule);
        // A slot before the moment since which they are owed may fall due after it.
        let jitter = TimeDelta::from_std(self.job.jitter).unwrap_or_default();
        let from = (situation.owes_since - jitter).max(now - window);
        // Above the latest that was begun it comes from a clock that was put back, or from before a backup was restored.
        let settled = DateTime::from_timestamp_micros(self.settled.load(Ordering::Relaxed))
            .filter(|settled| Some(*settled) <= situation.last_slot);
        let mut cursor = settled.map_or(from, |settled| settled.max(from));
        loop {
            let page: Vec<_> =
                std::iter::successors(schedule.next(cursor), |slot| schedule.next(*slot))
                    .take_while(|slot| schedule.due_at(*slot) <= now)
                    .take(PAGE)
                    .collect();
            let Some(last) = page.last().copied() else {
                return Ok(None);
            };
            let begun = db::begun(&mut *conn, self.job.name, cursor, last).await;
            let begun: HashSet<_> = begun
                .context("could not look at slots")?
                .into_iter()
                .collect();
            let is_owed = |slot: &DateTime<Utc>| schedule.due_at(*slot) > situation.owes_since;
            let unbegun = |slot: &DateTime<Utc>| is_owed(slot) && !begun.contains(slot);
            if let Some(slot) = page.into_iter().find(unbegun) {
                return Ok(Some(slot));
            }
            self.settled
                .store(last.timestamp_micros(), Ordering::Relaxed);
            cursor = last;
        }
    }

    async fn begin(
        &self,
        conn: &mut PgConnection,
        slot: DateTime<Utc>,
    ) -> anyhow::Result<Option<(Won, i64)>> {
        let name = self.job.name;
        let token = db::token(&mut *conn, &self.job, slot).await?;
        let begun = db::begin(conn, name, slot, token, &self.cron.instance).await;
        let won = |lag| {
            let won = Won {
                slot,
                token,
                attempt: 1,
            };
            (won, lag)
        };
        Ok(begun.context("could not begin the slot")?.map(won))
    }

    async fn take_over(
        &self,
        conn: &mut PgConnection,
        slot: DateTime<Utc>,
    ) -> anyhow::Result<Option<(Won, i64)>> {
        let (name, silence) = (self.job.name, self.cron.silence());
        let token = db::token(&mut *conn, &self.job, slot).await?;
        let taken = db::take_over(conn, name, slot, token, &self.cron.instance, silence).await;
        let won = |(attempt, lag)| {
            let won = Won {
                slot,
                token,
                attempt,
            };
            (won, lag)
        };
        Ok(taken.context("could not take the run over")?.map(won))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_owed_from_when_it_falls_due_and_not_from_when_it_stands_in_the_schedule() {
        let job =
            Job::new("note", "0 * * * *", |_| async { Ok(()) }).jitter(Duration::from_secs(1800));
        let schedule = Schedule::parse("note", "0 * * * *", Tz::UTC, job.jitter).expect("good");
        let slot: DateTime<Utc> = "2026-01-01T10:00:00Z".parse().expect("a time");
        let due = schedule.due_at(slot);
        assert!(due > slot + TimeDelta::minutes(1));
        let between = slot + TimeDelta::seconds(30);
        let situation = |now, owes_since| db::Situation {
            job: "note".into(),
            now,
            owes_since,
            paused: false,
            last_slot: Some(slot - TimeDelta::hours(1)),
            running: 0,
        };

        let resumed = situation(due, between);
        assert_eq!(owed(&job, &schedule, &resumed, slot), Owed::Slot(slot));
        let too_late = situation(due, due);
        assert_eq!(owed(&job, &schedule, &too_late, slot), Owed::No);
        let not_yet = situation(between, slot - TimeDelta::hours(2));
        assert_eq!(owed(&job, &schedule, &not_yet, slot), Owed::No);
        // Every replica was restarted before it fell due.
        let timely = job.clone().catch_up(CatchUp::None);
        assert_eq!(
            owed(&timely, &schedule, &resumed, between),
            Owed::Slot(slot)
        );
        assert_eq!(owed(&timely, &schedule, &resumed, due), Owed::No);
    }
}
