//! One run: its body, and the watch beside it until it has ended and that is written down.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info, warn};

use super::job::{Overlap, Run};
use super::{Cron, Job, db};
use crate::lease::Fence;
use crate::redlock::Held;
use crate::{StoreError, metrics, text};

const LEAVING: &str = "the replica stopped";
const TIMED_OUT: &str = "it took longer than it may";
const LOST: &str = "the lock was lost";
const TAKEN_OVER: &str = "another replica took the run over";
const SUPERSEDED: &str = "a later slot came first";

const UNWRITABLE: &str = "the database refused twice to take the error; it stands in the log";

/// Of so many holders in a row those that lose the lock or the database use no attempt up.
const FREE_HOLDERS: i64 = 10;
/// So often the database may refuse to write down how a run ended.
const MOST_REFUSALS: u32 = 10;
/// How soon a run hears that a later slot wants it cancelled.
const HEARS_WITHIN: Duration = Duration::from_secs(1);

/// A slot that is ours to run.
pub struct Won {
    pub slot: DateTime<Utc>,
    pub token: Fence,
    pub attempt: i32,
}

/// How a run ended.
enum End {
    Done(anyhow::Result<()>),
    /// The future was dropped or broke off after a cancellation, for this reason.
    Stopped(&'static str),
}

/// A run under way.
struct Watch {
    cron: Cron,
    job: Job,
    won: Won,
    held: Held,
    stop: CancellationToken,
}

/// Runs the body and stays beside it until it has ended, then writes down how and gives the lock back.
pub async fn supervise(cron: Cron, job: Job, won: Won, held: Held, stop: CancellationToken) {
    let nudge = cron.nudge.clone();
    let watch = Watch {
        cron,
        job,
        won,
        held,
        stop,
    };
    watch.to_the_end().await;
    watch.held.release().await;
    // A slot may have waited for this.
    nudge.notify_one();
}

impl Watch {
    async fn to_the_end(&self) {
        let name = self.job.name;
        metrics::cron_run(name, "started");
        let cancelled = CancellationToken::new();
        // Whatever ends this replica's interest in the run also tells the body.
        let _told = cancelled.clone().drop_guard();
        let run = Run {
            job: name,
            slot: self.won.slot,
            fence: self.won.token,
            attempt: u32::try_from(self.won.attempt).unwrap_or(1),
            cancelled: cancelled.clone(),
            fence_key: self.job.fence_key(self.won.slot),
        };
        let mut body = AbortOnDropHandle::new(crate::task::spawn(self.job.start(run)));
        let begun = Instant::now();
        let end = match self.beside(&mut body, begun).await {
            Ok(done) => done,
            Err(reason) => {
                cancelled.cancel();
                // Whose run may be another's already has no grace.
                let mut ended = match reason {
                    LOST | TAKEN_OVER => None,
                    _ => timeout(self.cron.grace, &mut body).await.ok(),
                };
                if ended.is_none() {
                    body.abort();
                    // The next run begins when this one is dropped, or hangs where nothing can drop it.
                    ended = timeout(self.cron.grace, &mut body).await.ok();
                }
                match ended {
                    // It saw the cancellation and ended as it saw fit.
                    Some(Ok(Ok(()))) => End::Done(Ok(())),
                    Some(Ok(Err(error))) if reason == TIMED_OUT => {
                        End::Done(Err(error.context(TIMED_OUT)))
                    }
                    Some(_) => End::Stopped(reason),
                    None => {
                        warn!(
                            job = name,
                            "job {name} does not end: what it still does may overlap with its next run"
                        );
                        End::Stopped(reason)
                    }
                }
            }
        };
        self.record(end, begun.elapsed()).await;
    }

    /// Waits for the end of a body, or for a reason to end it.
    async fn beside(
        &self,
        body: &mut AbortOnDropHandle<anyhow::Result<()>>,
        begun: Instant,
    ) -> Result<End, &'static str> {
        let silence = self.cron.silence();
        let pace = match self.job.overlap {
            Overlap::CancelOther => HEARS_WITHIN.min(silence / 4),
            Overlap::Skip | Overlap::QueueOne | Overlap::Allow => silence / 4,
        };
        let lost = self.held.lost();
        let (mut heard, mut next) = (begun, begun + pace);
        loop {
            let asked = self.cron.stop_asked.notified();
            tokio::select! {
                done = &mut *body => return Ok(End::Done(match done {
                    Ok(done) => done,
                    Err(error) => Err(anyhow::Error::new(error).context("the job broke off")),
                })),
                () = self.stop.cancelled() => return Err(LEAVING),
                () = lost.cancelled() => return Err(LOST),
                () = sleep_until(begun + self.job.timeout) => return Err(TIMED_OUT),
                () = asked => next = Instant::now(),
                () = sleep_until(next) => {
                    let start = Instant::now();
                    next = start + pace;
                    let said = timeout(silence / 4, db::keep_alive(&self.cron.db, self.job.name, self.won.slot, self.won.token));
                    match said.await {
                        Ok(Ok(Some(true))) => return Err(SUPERSEDED),
                        Ok(Ok(Some(false))) => heard = start,
                        Ok(Ok(None)) => return Err(TAKEN_OVER),
                        // Silent for too long we may be taken over, without knowing.
                        Ok(Err(_)) | Err(_) if start > heard + silence * 3 / 4 => return Err("the database is away"),
                        Ok(Err(_)) | Err(_) => next = Instant::now() + Duration::from_millis(200),
                    }
                }
            }
        }
    }

    async fn record(&self, end: End, took: Duration) {
        let (name, slot) = (self.job.name, self.won.slot);
        // However many replicas are restarted one after the other, the run is handed on. A lost lock is seldom its fault
        // either, but a body that starves its process loses every one.
        let free_holders = match &end {
            End::Done(_) | End::Stopped(TIMED_OUT | SUPERSEDED) => 0,
            End::Stopped(LEAVING) => i64::MAX,
            End::Stopped(_) => FREE_HOLDERS,
        };
        let (state, error) = match end {
            End::Done(Ok(())) => ("succeeded", None),
            End::Done(Err(error)) => ("failed", Some(text::of_error(&error))),
            End::Stopped(TIMED_OUT) => ("failed", Some(TIMED_OUT.to_owned())),
            End::Stopped(SUPERSEDED) => ("cancelled", Some(SUPERSEDED.to_owned())),
            End::Stopped(reason) => ("abandoned", Some(reason.to_owned())),
        };
        metrics::cron_run(name, state);
        match &error {
            None => debug!(job = name, %slot, ?took, "job {name} for {slot} succeeded"),
            Some(why) if state == "failed" => {
                error!(job = name, %slot, "job {name} for {slot} failed: {why}")
            }
            Some(why) => info!(job = name, %slot, "job {name} for {slot} was {state}: {why}"),
        }
        let ended = db::Ended {
            state,
            error: error.as_deref(),
            free_holders,
            pause_after: db::pause_after(&self.job),
        };
        self.write_down(ended).await;
    }

    /// Tells the database how the run ended for as long as it is away: a body that succeeded must not be run again because
    /// of that. Where the lock is lost meanwhile the token decides. A replica that stops gives up after its grace. A
    /// database that refuses is asked a few times only, for nobody else can have the lock until then; the run is left
    /// open, and is taken over or given up as that of a holder that vanished.
    async fn write_down(&self, mut ended: db::Ended<'_>) {
        let (name, slot) = (self.job.name, self.won.slot);
        let (mut left, mut refusals) = (None, 0);
        for attempt in 0_u32.. {
            let finish = db::finish(&self.cron.db, name, slot, self.won.token, &ended);
            let why = match timeout(Duration::from_secs(2), finish).await {
                Ok(Ok(recorded)) => return self.told(recorded, ended.error),
                Ok(Err(error)) => {
                    let why = error.to_string();
                    if !StoreError::postgres("write down how a run ended")(error).is_unreachable() {
                        refusals += 1;
                        // Of what is written down only this may be anything, and one refusal may be about something else.
                        if refusals > 1 {
                            ended.error = ended.error.and(Some(UNWRITABLE));
                        }
                    }
                    why
                }
                Err(_) => "no answer in time".to_owned(),
            };
            if refusals > MOST_REFUSALS {
                error!(
                    job = name, %slot,
                    "the database refuses to write down that job {name} for {slot} {}: {why}; the run is left open, and run again or given up by the job's policies",
                    ended.state
                );
                return;
            }
            if attempt == 3 {
                warn!(job = name, %slot, "cannot write down yet that job {name} for {slot} {}: {why}", ended.state);
            }
            if self.stop.is_cancelled() {
                let until = *left.get_or_insert_with(|| Instant::now() + self.cron.grace);
                if Instant::now() >= until {
                    break;
                }
            }
            sleep(Duration::from_millis(100 << attempt.min(3))).await;
        }
        warn!(job = name, %slot, "could not write down that job {name} for {slot} {}", ended.state);
    }

    fn told(&self, recorded: db::Recorded, error: Option<&str>) {
        let (name, slot) = (self.job.name, self.won.slot);
        if !recorded.accepted {
            metrics::fenced_write(&self.job.fence_key(slot));
            warn!(job = name, %slot, "job {name} for {slot} ended after another replica had taken it over");
        }
        if recorded.paused {
            metrics::cron_job_paused(name, true);
            error!(
                job = name,
                "job {name} is paused: it failed {} times in a row, the last time with `{}`; `gateway cron resume {name}` lets it go on",
                db::pause_after(&self.job),
                error.unwrap_or_default(),
            );
        }
    }
}
