//! All jobs of one replica: one query a tick says which of them want attention.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::attend::{Next, Post, owed};
use super::{Cron, CronError, Job, db};
use crate::metrics;

/// Longest pause between two looks at the database: how late a vanished holder or a run asked for elsewhere is seen.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a replica says in the database that it runs its jobs.
const STILL_HERE: Duration = Duration::from_secs(30);
/// Ticks are parted by this much at least, whatever asks for them.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// How long a look may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long the way from a slot that is due to its run may take.
const ATTENDED_WITHIN: Duration = Duration::from_secs(20);
/// Jobs that are attended to at the same time on a replica; those that run do not count.
const AT_ONCE: usize = 16;

/// Sees which jobs are due and has them attended to. [`Cron::run`] drives one; a benchmark may tick it by hand.
#[derive(Debug)]
pub struct Scheduler {
    cron: Cron,
    desks: Vec<Desk>,
    stop: CancellationToken,
    /// Jobs that want attention and wait for a turn, by the place of their desk.
    queue: VecDeque<usize>,
    /// Those that have it.
    deciding: JoinSet<(usize, anyhow::Result<Next>)>,
    runs: TaskTracker,
    announced: bool,
    /// Since when this replica runs its jobs.
    since: Option<DateTime<Utc>>,
    told: Instant,
    last_look: Option<DateTime<Utc>>,
}

/// A job, and when to look at it again.
#[derive(Debug)]
struct Desk {
    post: Arc<Post>,
    /// When its next slot falls due, by the database's clock; unknown where the schedule has to be asked first.
    due: Option<DateTime<Utc>>,
    /// Not to be looked at before this, since it was just tried.
    rests_until: Option<Instant>,
    attended: bool,
    paused: bool,
    trouble: u32,
}

impl Scheduler {
    /// Plans jobs. Fails where a schedule is wrong or a name is there twice.
    pub fn new(cron: Cron, jobs: Vec<Job>, stop: CancellationToken) -> Result<Self, CronError> {
        let runs = TaskTracker::new();
        let mut desks: Vec<Desk> = Vec::with_capacity(jobs.len());
        for job in jobs {
            let post = Post::new(cron.clone(), job, stop.clone(), runs.clone())?;
            if desks.iter().any(|desk| desk.post.job.name == post.job.name) {
                return Err(CronError::Duplicate {
                    job: post.job.name.to_owned(),
                });
            }
            desks.push(Desk {
                post: Arc::new(post),
                due: None,
                rests_until: None,
                attended: false,
                paused: false,
                trouble: 0,
            });
        }
        Ok(Self {
            cron,
            desks,
            stop,
            queue: VecDeque::new(),
            deciding: JoinSet::new(),
            runs,
            announced: false,
            since: None,
            told: Instant::now(),
            last_look: None,
        })
    }

    /// Ticks until the stop, then waits for what runs.
    pub async fn run(mut self) {
        let mut trouble = 0_u32;
        let mut last = Instant::now();
        let mut next = last;
        while !self.stop.is_cancelled() {
            let nudge = self.cron.nudge.clone();
            let nudged = nudge.notified();
            if Instant::now() >= next {
                let pause = match self.tick().await {
                    Ok(pause) => {
                        trouble = 0;
                        pause.max(SHORTEST_PAUSE) + few_milliseconds()
                    }
                    Err(error) => {
                        trouble += 1;
                        // Once an outage, not once a try.
                        if trouble == 1 {
                            warn!("cron jobs wait: {error:#}");
                        }
                        Duration::from_millis(250 << trouble.min(4))
                    }
                };
                last = Instant::now();
                next = last + pause;
            }
            let soon = last + SHORTEST_PAUSE;
            tokio::select! {
                () = sleep_until(next) => {}
                // In an outage nothing is to be had by asking more often.
                () = nudged, if trouble == 0 => next = next.min(soon),
                Some(decided) = self.deciding.join_next() => {
                    self.note(decided);
                    self.give_turns();
                    if trouble == 0 && self.queue.is_empty() {
                        next = next.min(soon);
                    }
                }
                () = self.stop.cancelled() => {}
            }
        }
        self.queue.clear();
        while let Some(decided) = self.deciding.join_next().await {
            self.note(decided);
        }
        self.runs.close();
        self.runs.wait().await;
    }

    /// Looks once at all jobs, has those that are due attended to, and says how long to wait. Idle jobs cost one query
    /// together.
    pub async fn tick(&mut self) -> anyhow::Result<Duration> {
        while let Some(decided) = self.deciding.try_join_next() {
            self.note(decided);
        }
        let since = self.announce().await?;
        let silence = self.cron.silence();
        let look = timeout(DEADLINE, db::look(&self.cron.db, silence)).await;
        let look = look
            .context("no answer in time")?
            .context("could not look at the jobs")?;
        self.mind_the_pauses(&look);
        self.mind_the_clock(look.now);

        let now = Instant::now();
        let ready =
            |desk: &Desk| !desk.attended && desk.rests_until.is_none_or(|until| until <= now);
        let mut asked = Vec::new();
        let mut attend = Vec::new();
        for (place, desk) in self
            .desks
            .iter()
            .enumerate()
            .filter(|(_, desk)| ready(desk))
        {
            let name = desk.post.job.name;
            if look.waiting.iter().any(|job| job == name) {
                attend.push(place);
            } else if !desk.paused && desk.due.is_none_or(|due| due <= look.now) {
                asked.push(place);
            }
        }
        if !asked.is_empty() {
            let names: Vec<&str> = asked
                .iter()
                .map(|place| self.desks[*place].post.job.name)
                .collect();
            let known = timeout(DEADLINE, db::situations(&self.cron.db, &names, silence)).await;
            let mut known = known
                .context("no answer in time")?
                .context("could not look at jobs that are due")?;
            if known.len() < names.len() {
                // Somebody deleted jobs that exist.
                self.announced = false;
            }
            known.sort_by(|a, b| a.job.cmp(&b.job));
            for place in asked {
                let desk = &mut self.desks[place];
                let name = desk.post.job.name;
                let Ok(at) = known.binary_search_by(|each| each.job.as_str().cmp(name)) else {
                    continue;
                };
                if owed(&desk.post.job, &desk.post.schedule, &known[at], since).maybe() {
                    attend.push(place);
                } else {
                    desk.due = desk.post.schedule.next_due(known[at].now);
                    if desk.due.is_none() {
                        desk.rests_until = Some(now + STILL_HERE);
                    }
                }
            }
        }
        for place in attend {
            self.desks[place].attended = true;
            self.queue.push_back(place);
        }
        self.give_turns();
        Ok(self.pause(look.now))
    }

    /// Has as many of the queue attended to as may be at the same time.
    fn give_turns(&mut self) {
        let Some(since) = self.since else {
            return;
        };
        while self.deciding.len() < AT_ONCE
            && let Some(place) = self.queue.pop_front()
        {
            let post = self.desks[place].post.clone();
            self.deciding.spawn(async move {
                let attended = timeout(ATTENDED_WITHIN, post.attend(since)).await;
                let late = |_| Err(anyhow::anyhow!("the stores did not answer in time"));
                (place, attended.unwrap_or_else(late))
            });
        }
    }

    async fn announce(&mut self) -> anyhow::Result<DateTime<Utc>> {
        if let Some(since) = self.since.filter(|_| self.announced) {
            if self.told.elapsed() >= STILL_HERE {
                let names: Vec<&str> = self.desks.iter().map(|desk| desk.post.job.name).collect();
                timeout(DEADLINE, db::still_here(&self.cron.db, &names))
                    .await
                    .context("no answer in time")?
                    .context("could not say that jobs are run")?;
                self.told = Instant::now();
            }
            return Ok(since);
        }
        let jobs: Vec<(&Job, String)> = self
            .desks
            .iter()
            .map(|desk| (&desk.post.job, desk.post.zone.to_string()))
            .collect();
        let since = timeout(DEADLINE, db::announce(&self.cron.db, &jobs))
            .await
            .context("no answer in time")?
            .context("could not announce the jobs")?;
        self.told = Instant::now();
        self.announced = true;
        Ok(*self.since.get_or_insert(since))
    }

    /// A clock that was put back makes every moment that was computed from it wrong.
    fn mind_the_clock(&mut self, now: DateTime<Utc>) {
        let went_back = |last: DateTime<Utc>| now < last - TimeDelta::seconds(1);
        if self.last_look.is_some_and(went_back) {
            for desk in &mut self.desks {
                desk.due = None;
            }
        }
        self.last_look = Some(now);
    }

    fn mind_the_pauses(&mut self, look: &db::Look) {
        for desk in &mut self.desks {
            let paused = look.paused.iter().any(|job| job == desk.post.job.name);
            if paused != desk.paused {
                let now = if paused { "is paused" } else { "goes on" };
                info!(job = desk.post.job.name, "job {} {now}", desk.post.job.name);
            }
            if paused != desk.paused || self.last_look.is_none() {
                metrics::cron_job_paused(desk.post.job.name, paused);
            }
            desk.paused = paused;
        }
    }

    fn pause(&self, now: DateTime<Utc>) -> Duration {
        let (mut pause, clock) = (LONGEST_PAUSE, Instant::now());
        for desk in self.desks.iter().filter(|desk| !desk.attended) {
            let rest = desk
                .rests_until
                .map(|until| until.saturating_duration_since(clock));
            if let Some(rest) = rest.filter(|rest| !rest.is_zero()) {
                pause = pause.min(rest);
            } else if let Some(due) = desk.due.filter(|_| !desk.paused) {
                pause = pause.min((due - now).to_std().unwrap_or_default());
            }
        }
        pause
    }

    fn note(&mut self, decided: Result<(usize, anyhow::Result<Next>), tokio::task::JoinError>) {
        let (place, next) = match decided {
            Ok(decided) => decided,
            Err(broke) => {
                error!(
                    error = &broke as &dyn std::error::Error,
                    "attending to a cron job broke off"
                );
                // Which one is not told; all are free to be tried again.
                self.queue.clear();
                for desk in &mut self.desks {
                    desk.attended = false;
                }
                return;
            }
        };
        let desk = &mut self.desks[place];
        desk.attended = false;
        desk.due = None;
        desk.rests_until = match next {
            Ok(next) => {
                desk.trouble = 0;
                match next {
                    Next::Look => None,
                    Next::Idle(now) => {
                        desk.due = desk.post.schedule.next_due(now);
                        (desk.due.is_none()).then(|| Instant::now() + STILL_HERE)
                    }
                    Next::Later(pause) => Some(Instant::now() + pause),
                }
            }
            Err(error) => {
                desk.trouble += 1;
                if desk.trouble == 1 {
                    let name = desk.post.job.name;
                    warn!(job = name, "cron job {name} waits: {error:#}");
                }
                Some(Instant::now() + Duration::from_millis(250 << desk.trouble.min(4)))
            }
        };
    }
}

/// Parts the replicas a little, so that not all ask for the lock in the same millisecond.
fn few_milliseconds() -> Duration {
    Duration::from_millis(rand::random_range(0..40))
}
