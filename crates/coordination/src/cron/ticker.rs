//! One job on one replica: sees when it is due, wins or loses its slot, looks after the run.

use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info, warn};

use super::job::{Run, Schedule, fence_key};
use super::{CatchUp, Cron, Job, db};
use crate::lease::{Fence, next_fence};
use crate::metrics;
use crate::redlock::Held;

/// Longest sleep between two looks at the database: how late a vanished holder or a run asked for elsewhere is seen.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// A slot this much in the past was missed, for jobs that do not catch up.
const TIMELY: TimeDelta = TimeDelta::seconds(60);

/// Most slots that are caught up in one go.
const MOST_SLOTS: usize = 1000;

pub struct Ticker {
    cron: Cron,
    job: Job,
    schedule: Schedule,
    stop: CancellationToken,
    announced: Option<DateTime<Utc>>,
}

/// A slot that is ours to run.
struct Won {
    slot: DateTime<Utc>,
    token: Fence,
    attempt: i32,
}

/// What a look at the database says.
enum Due {
    /// A slot nobody has begun.
    Slot(DateTime<Utc>),
    /// A run that was begun or asked for and waits for somebody.
    Open(DateTime<Utc>),
    /// Nothing before this long.
    Later(Duration),
}

/// How a run ended.
enum End {
    Done(anyhow::Result<()>),
    /// The future was dropped or broke off after a cancellation, for this reason.
    Stopped(&'static str),
}

impl Ticker {
    pub fn new(cron: Cron, job: Job, schedule: Schedule, stop: CancellationToken) -> Self {
        Self {
            cron,
            job,
            schedule,
            stop,
            announced: None,
        }
    }

    pub async fn run(mut self) {
        let mut trouble = 0_u32;
        while !self.stop.is_cancelled() {
            let nudge = self.cron.nudge.clone();
            let nudged = nudge.notified();
            let pause = match self.tick().await {
                Ok(pause) => {
                    trouble = 0;
                    pause
                }
                Err(error) => {
                    trouble += 1;
                    // Once an outage, not once a try.
                    if trouble == 1 {
                        warn!(
                            job = self.job.name,
                            "cron job {} waits: {error:#}", self.job.name
                        );
                    }
                    Duration::from_millis(250 << trouble.min(4))
                }
            };
            tokio::select! {
                () = sleep(pause + jitter()) => {}
                () = nudged => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Looks once, runs what is won, and says how long to wait.
    async fn tick(&mut self) -> anyhow::Result<Duration> {
        let name = self.job.name;
        let since = match self.announced {
            Some(since) => since,
            None => {
                db::announce(
                    &self.cron.db,
                    name,
                    &self.job.schedule,
                    &self.job.catch_up.to_string(),
                )
                .await
                .context("could not announce the job")?;
                *self.announced.insert(
                    db::now(&self.cron.db)
                        .await
                        .context("could not read the time")?,
                )
            }
        };
        if let Due::Later(pause) = self.due(since).await? {
            return Ok(pause);
        }
        let key = self.cron.keys.cron(name);
        let lock = tokio::select! {
            lock = self.cron.redlock.lock(&key) => lock?,
            () = self.stop.cancelled() => return Ok(Duration::ZERO),
        };
        // Where there is none, another runs, or has just won.
        let Some(held) = lock else {
            return Ok(Duration::from_millis(300));
        };
        // The lock may have been a while in coming: look again, with it in hand.
        let won = match self.due(since).await? {
            Due::Later(pause) => {
                held.release().await;
                return Ok(pause);
            }
            Due::Slot(slot) => self.begin(slot).await?,
            Due::Open(slot) => self.take_over(slot).await?,
        };
        if let Some(won) = won {
            self.supervise(&won, &held).await;
        }
        held.release().await;
        Ok(Duration::ZERO)
    }

    async fn due(&self, since: DateTime<Utc>) -> anyhow::Result<Due> {
        let name = self.job.name;
        let silence = self.cron.redlock.ttl();
        let situation = db::situation(&self.cron.db, name)
            .await
            .context("could not look at the job")?;
        let now = situation.now;
        let latest = self.schedule.latest(now);
        for open in db::open_runs(&self.cron.db, name, silence)
            .await
            .context("could not look at open runs")?
        {
            let wanted = match self.job.catch_up {
                _ if open.manual => true,
                CatchUp::None => false,
                CatchUp::Last => Some(open.slot) == latest.max(situation.last_slot),
                CatchUp::All(window) => open.slot > now - window,
            };
            if wanted && open.attempt < db::MOST_ATTEMPTS {
                return Ok(Due::Open(open.slot));
            }
            if db::give_up(&self.cron.db, name, open.slot, silence).await? {
                metrics::cron_run(name, "abandoned");
                warn!(job = name, slot = %open.slot, "run of job {name} for {} was {} and is given up", open.slot, open.state);
            }
        }
        if let Some(slot) = self.owed(&situation, latest, since).await? {
            return Ok(Due::Slot(slot));
        }
        let next = self
            .schedule
            .next(now)
            .map(|next| (next - now).to_std().unwrap_or_default());
        Ok(Due::Later(next.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)))
    }

    /// The slot that is due and not begun, by the job's policy.
    async fn owed(
        &self,
        situation: &db::Situation,
        latest: Option<DateTime<Utc>>,
        since: DateTime<Utc>,
    ) -> anyhow::Result<Option<DateTime<Utc>>> {
        let now = situation.now;
        let from = situation.first_seen_at;
        let unbegun = latest
            .filter(|slot| *slot > from && situation.last_slot.is_none_or(|last| *slot > last));
        Ok(match self.job.catch_up {
            CatchUp::None => unbegun.filter(|slot| *slot > since && now - slot < TIMELY),
            CatchUp::Last => unbegun,
            CatchUp::All(window) => {
                let from = from.max(now - window);
                let begun = db::begun(&self.cron.db, self.job.name, from)
                    .await
                    .context("could not look at slots")?;
                let slots = self.schedule.between(from, now, MOST_SLOTS);
                slots.into_iter().rev().find(|slot| !begun.contains(slot))
            }
        })
    }

    async fn begin(&self, slot: DateTime<Utc>) -> anyhow::Result<Option<Won>> {
        let name = self.job.name;
        let mut tx = self.cron.db.begin().await?;
        let token = next_fence(&mut tx, &fence_key(name)).await?;
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
        let silence = self.cron.redlock.ttl();
        let mut tx = self.cron.db.begin().await?;
        let token = next_fence(&mut tx, &fence_key(name)).await?;
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

    /// Runs the body and stays beside it until it has ended, then writes down how.
    async fn supervise(&self, won: &Won, held: &Held) {
        let name = self.job.name;
        metrics::cron_run(name, "started");
        let cancelled = CancellationToken::new();
        // Whatever ends this replica's interest in the run also tells the body.
        let _told = cancelled.clone().drop_guard();
        let run = Run {
            job: name,
            slot: won.slot,
            fence: won.token,
            attempt: u32::try_from(won.attempt).unwrap_or(1),
            cancelled: cancelled.clone(),
        };
        let mut body = AbortOnDropHandle::new(crate::task::spawn(self.job.start(run)));
        let begun = Instant::now();
        let reason = self.watch(won, held, &mut body, begun).await;
        let end = match reason {
            Ok(done) => done,
            Err(reason) => {
                cancelled.cancel();
                match timeout(self.cron.grace, &mut body).await {
                    // It saw the cancellation and ended as it saw fit.
                    Ok(Ok(Ok(()))) => End::Done(Ok(())),
                    Ok(Ok(Err(error))) if reason == TIMED_OUT => {
                        End::Done(Err(error.context(TIMED_OUT)))
                    }
                    Ok(_) => End::Stopped(reason),
                    Err(_) => {
                        body.abort();
                        End::Stopped(reason)
                    }
                }
            }
        };
        self.record(won, end, begun.elapsed()).await;
    }

    /// Waits for the end of a body, or for a reason to end it.
    async fn watch(
        &self,
        won: &Won,
        held: &Held,
        body: &mut AbortOnDropHandle<anyhow::Result<()>>,
        begun: Instant,
    ) -> Result<End, &'static str> {
        let silence = self.cron.redlock.ttl();
        let lost = held.lost();
        let mut heard = begun;
        loop {
            tokio::select! {
                done = &mut *body => return Ok(End::Done(match done {
                    Ok(done) => done,
                    Err(error) => Err(anyhow::Error::new(error).context("the job broke off")),
                })),
                () = self.stop.cancelled() => return Err(LEAVING),
                () = lost.cancelled() => return Err("the lock was lost"),
                () = sleep_until(begun + self.job.timeout) => return Err(TIMED_OUT),
                () = sleep_until(heard + silence / 4) => {
                    let start = Instant::now();
                    let said = timeout(silence / 4, db::keep_alive(&self.cron.db, self.job.name, won.slot, won.token));
                    match said.await {
                        Ok(Ok(true)) => heard = start,
                        Ok(Ok(false)) => return Err("another replica took the run over"),
                        // Silent for too long we may be taken over, without knowing.
                        Ok(Err(_)) | Err(_) if start > heard + silence * 3 / 4 => return Err("the database is away"),
                        Ok(Err(_)) | Err(_) => sleep(Duration::from_millis(200)).await,
                    }
                }
            }
        }
    }

    async fn record(&self, won: &Won, end: End, took: Duration) {
        let (name, slot) = (self.job.name, won.slot);
        // However many replicas are restarted one after the other, a run is handed on until it has ended.
        let counts = !matches!(end, End::Stopped(LEAVING));
        let (state, error) = match end {
            End::Done(Ok(())) => ("succeeded", None),
            End::Done(Err(error)) => ("failed", Some(format!("{error:#}"))),
            End::Stopped(TIMED_OUT) => ("failed", Some(TIMED_OUT.to_owned())),
            End::Stopped(reason) => ("abandoned", Some(reason.to_owned())),
        };
        metrics::cron_run(name, state);
        match &error {
            None => debug!(job = name, %slot, ?took, "job {name} for {slot} succeeded"),
            Some(why) if state == "failed" => {
                error!(job = name, %slot, "job {name} for {slot} failed: {why}")
            }
            Some(why) => info!(job = name, %slot, "job {name} for {slot} was abandoned: {why}"),
        }
        for pause in [100, 400, 1600, 0] {
            let finish = db::finish(
                &self.cron.db,
                name,
                slot,
                won.token,
                state,
                error.as_deref(),
                counts,
            );
            match timeout(Duration::from_secs(2), finish).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {
                    metrics::fenced_write(&fence_key(name));
                    warn!(job = name, %slot, "job {name} for {slot} ended after another replica had taken it over");
                    return;
                }
                Ok(Err(_)) | Err(_) => sleep(Duration::from_millis(pause)).await,
            }
        }
        warn!(job = name, %slot, "could not write down that job {name} for {slot} {state}");
    }
}

const LEAVING: &str = "the replica stopped";
const TIMED_OUT: &str = "it took longer than it may";

/// Parts the replicas a little, so that not all ask for the lock in the same millisecond.
fn jitter() -> Duration {
    Duration::from_millis(rand::random_range(0..40))
}
