//! The tasks of a process: named, stopped together, and never lost silently.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use futures::FutureExt;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

/// The longest pause after steps that failed.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// What a step of a periodic task found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    /// There is more to do: go on at once.
    More,
    /// Nothing is left: wait a period.
    Idle,
}

impl Tick {
    /// `More` when a batch was full, for then there may be another.
    pub fn after_batch(done: usize, batch: impl TryInto<usize>) -> Self {
        match batch.try_into() {
            Ok(batch) if batch > 0 && done >= batch => Self::More,
            _ => Self::Idle,
        }
    }
}

/// Starts tasks and stops them together; cloning gives another handle on the same.
#[derive(Clone, Default)]
pub struct Tasks(Arc<Inner>);

#[derive(Default)]
struct Inner {
    tracker: TaskTracker,
    stopping: CancellationToken,
    running: Mutex<BTreeMap<&'static str, usize>>,
    failure: watch::Sender<Option<String>>,
}

impl Tasks {
    /// Makes a set without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task. It ends by itself soon after [`Tasks::stopping`] fires. When it fails or panics before, the
    /// process leaves with an error: better replaced than half dead.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let this = self.clone();
        *this.running().entry(name).or_default() += 1;
        self.0.tracker.spawn(async move {
            let result = match AssertUnwindSafe(task).catch_unwind().await {
                Ok(result) => result,
                Err(panic) => Err(anyhow!("panicked: {}", panic_text(&*panic))),
            };
            this.ended(name);
            match result {
                Ok(()) => debug!(task = name, "task {name} ended"),
                Err(error) if this.0.stopping.is_cancelled() => {
                    warn!(task = name, "task {name} failed while stopping: {error:#}");
                }
                Err(error) => {
                    error!(task = name, "task {name} failed: {error:#}");
                    let text = format!("task {name} failed: {error:#}");
                    this.0.failure.send_if_modified(|first| {
                        let is_first = first.is_none();
                        first.get_or_insert(text);
                        is_first
                    });
                }
            }
        });
    }

    /// Repeats a step: at once while it finds more, else after a period, give or take a tenth, so that replicas do not
    /// march in step. A step that fails is logged and tried again, later each time. Stops between steps.
    pub fn every<S, F>(&self, name: &'static str, period: Duration, mut step: S)
    where
        S: FnMut() -> F + Send + 'static,
        F: Future<Output = anyhow::Result<Tick>> + Send + 'static,
    {
        let stopping = self.stopping();
        self.spawn(name, async move {
            let mut pause = period.min(Duration::from_secs(1)).mul_f64(rand::random());
            let mut failures = 0;
            loop {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return Ok(()),
                    () = sleep(pause) => {}
                }
                let (result, next) = match step().await {
                    Ok(Tick::More) => ("more", Duration::ZERO),
                    Ok(Tick::Idle) => ("idle", jittered(period)),
                    Err(error) => {
                        failures += 1;
                        let next = backoff(period, failures);
                        warn!(
                            task = name,
                            failures, "{name} failed, next try in {next:.1?}: {error:#}"
                        );
                        ("failed", next)
                    }
                };
                if result != "failed" {
                    failures = 0;
                }
                metrics::counter!("task_steps_total", "task" => name, "result" => result)
                    .increment(1);
                pause = next;
            }
        });
    }

    /// Fires when tasks have to stop.
    pub fn stopping(&self) -> CancellationToken {
        self.0.stopping.clone()
    }

    /// Tells all tasks to stop and waits until they have, at most `grace`. Returns the names of those still running.
    pub async fn stop(&self, grace: Duration) -> Vec<&'static str> {
        self.0.stopping.cancel();
        self.0.tracker.close();
        match timeout(grace, self.0.tracker.wait()).await {
            Ok(()) => Vec::new(),
            Err(_) => self.running().keys().copied().collect(),
        }
    }

    /// Waits for the first task that fails, and says how.
    pub async fn failed(&self) -> String {
        let mut failures = self.0.failure.subscribe();
        match failures.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().unwrap_or_default(),
            // The sender lives in `self`, so this is never reached.
            Err(_) => std::future::pending().await,
        }
    }

    fn ended(&self, name: &'static str) {
        let mut running = self.running();
        if let Some(count) = running.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                running.remove(name);
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.0
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn jittered(period: Duration) -> Duration {
    period.mul_f64(rand::rng().random_range(0.9..1.1))
}

/// The pause after a number of failures in a row: doubles from the period (100 ms at least) up to a bound.
fn backoff(period: Duration, failures: u32) -> Duration {
    let first = period.max(Duration::from_millis(100));
    let bound = MAX_BACKOFF.max(period);
    jittered(first.saturating_mul(1 << failures.min(10)).min(bound))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown cause")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use anyhow::bail;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_full_batch_asks_for_more() {
        assert_eq!(Tick::after_batch(10, 10_i64), Tick::More);
        assert_eq!(Tick::after_batch(9, 10_i64), Tick::Idle);
        assert_eq!(Tick::after_batch(0, 0), Tick::Idle);
    }

    #[test]
    fn failures_wait_longer_each_time_up_to_a_bound() {
        let period = Duration::from_secs(1);

        assert!(backoff(period, 1) < Duration::from_millis(2300));
        assert!(backoff(period, 3) > Duration::from_secs(7));
        assert!(backoff(period, 30) <= MAX_BACKOFF.mul_f64(1.1));
        assert!(backoff(Duration::from_secs(300), 1) >= Duration::from_secs(270));
    }

    #[tokio::test]
    async fn a_step_that_fails_is_repeated_until_the_stop() {
        let tasks = Tasks::new();
        let (sender, mut steps) = mpsc::unbounded_channel();
        let count = Arc::new(AtomicUsize::new(0));
        tasks.every("tests.step", Duration::from_millis(1), move || {
            let (sender, step) = (sender.clone(), count.fetch_add(1, Ordering::Relaxed));
            async move {
                sender.send(step)?;
                match step {
                    0 => bail!("first"),
                    1 => Ok(Tick::More),
                    _ => Ok(Tick::Idle),
                }
            }
        });

        for expected in 0..4 {
            assert_eq!(steps.recv().await, Some(expected));
        }
        let left = tasks.stop(Duration::from_secs(5)).await;

        assert!(left.is_empty());
        while steps.recv().await.is_some() {}
    }

    #[tokio::test]
    async fn a_task_that_fails_or_panics_is_told() {
        for panics in [false, true] {
            let tasks = Tasks::new();
            tasks.spawn("tests.fails", async move {
                if panics {
                    panic!("boom");
                }
                bail!("boom")
            });

            let failure = tasks.failed().await;

            assert!(
                failure.contains("tests.fails") && failure.contains("boom"),
                "{failure}"
            );
        }
    }

    #[tokio::test]
    async fn a_task_that_ignores_the_stop_is_named() {
        let tasks = Tasks::new();
        tasks.spawn("tests.stubborn", std::future::pending());

        let left = tasks.stop(Duration::from_millis(10)).await;

        assert_eq!(left, ["tests.stubborn"]);
    }
}
