//! The life of a process: its tasks, its readiness, the signals that end it, and the order in which it leaves.

mod notify;
mod readiness;
mod signals;
mod tasks;

use std::pin::Pin;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use readiness::{Phase, Readiness};
pub use tasks::{Tasks, Tick};

/// How long gateways get to see that we are out of the registry before the accept stops.
const REGISTRY_PAUSE: Duration = Duration::from_millis(500);

/// The steps of leaving that a process fills with its own work, in the order they are taken. Readiness ends before
/// the first; tasks stop (jobs end, locks return) between [`Stage::CloseSockets`] and [`Stage::ReturnSlot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Leave the registry. A short pause follows, in which requests still come.
    Unregister,
    /// Hand the listening sockets over.
    StopAccepting,
    /// Finish what clients asked.
    FinishRequests,
    /// Close sockets of WebSocket clients with a reason.
    CloseSockets,
    /// Return the instance slot.
    ReturnSlot,
    /// Send the last telemetry.
    FlushTelemetry,
}

/// How long a client should stay away once its connection was closed by an instance that leaves: another time for each,
/// spread over so long, and never so short that it meets the same instance again.
pub fn return_after(spread: Duration) -> Duration {
    REGISTRY_PAUSE + spread.mul_f64(rand::random())
}

type Step = Box<dyn FnOnce(Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Owns the life of a process. Make it first, run it last.
pub struct Lifecycle {
    grace: Duration,
    pause: Duration,
    tasks: Tasks,
    readiness: Readiness,
    signalled: CancellationToken,
    steps: Vec<(Stage, &'static str, Step)>,
}

impl Lifecycle {
    /// Makes a life that takes at most about `grace` to leave, and listens to SIGTERM and SIGINT from now on. A
    /// second signal ends the process at once.
    pub fn new(grace: Duration) -> std::io::Result<Self> {
        let signalled = CancellationToken::new();
        signals::watch(signalled.clone())?;
        Ok(Self::with_signal(grace, signalled))
    }

    fn with_signal(grace: Duration, signalled: CancellationToken) -> Self {
        Self {
            grace,
            pause: REGISTRY_PAUSE.min(grace / 4),
            tasks: Tasks::new(),
            readiness: Readiness::default(),
            signalled,
            steps: Vec::new(),
        }
    }

    /// The tasks of this process.
    pub fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// What `/health/readiness` says.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Fires when a signal asks the process to leave.
    pub fn signalled(&self) -> CancellationToken {
        self.signalled.clone()
    }

    /// Runs the start of the process; `None` when a signal ended it before it was through.
    pub async fn start<T>(&self, start: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.signalled.cancelled() => None,
            value = start => Some(value),
        }
    }

    /// Adds work to a stage of leaving. Steps of one stage run at the same time; each is told how long it may take, and
    /// is dropped when it takes longer.
    pub fn on<S, F>(&mut self, stage: Stage, name: &'static str, step: S)
    where
        S: FnOnce(Duration) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let step: Step = Box::new(move |left| Box::pin(step(left)));
        self.steps.push((stage, name, step));
    }

    /// Says to probes and process managers that requests are wanted.
    pub fn ready(&self) {
        if self.readiness.advance(Phase::Ready) {
            notify::ready();
        }
    }

    /// Lives until a signal or a failed task, then leaves in order. Returns the exit code, with which `main` has to
    /// call `std::process::exit`: dropping the runtime would wait for blocking work.
    pub async fn run(self) -> i32 {
        let code = tokio::select! {
            biased;
            () = self.signalled.cancelled() => 0,
            failure = self.tasks.failed() => {
                error!("leaving, because {failure}");
                1
            }
        };
        self.leave().await;
        code
    }

    /// Leaves in order.
    pub async fn leave(mut self) {
        let began = Instant::now();
        let deadline = began + self.grace;
        info!("leaving");
        self.readiness.advance(Phase::Draining);
        notify::stopping();

        self.stage(Stage::Unregister, deadline).await;
        sleep(self.pause).await;
        self.stage(Stage::StopAccepting, deadline).await;
        // Slow requests must not use up the time of the steps behind them. With the usual 30 s there is time for a poll
        // that began just before the accept stopped: it ends by a ping after 25 s.
        let reserve = (self.grace / 10).min(Duration::from_secs(5));
        self.stage(Stage::FinishRequests, deadline - reserve).await;
        self.stage(Stage::CloseSockets, deadline).await;
        let left = self.tasks.stop(remaining(deadline)).await;
        if !left.is_empty() {
            warn!("gave up waiting for {}", left.join(", "));
        }
        self.stage(Stage::ReturnSlot, deadline).await;
        info!("left in {:.1?}", began.elapsed());
        self.stage(Stage::FlushTelemetry, deadline).await;
    }

    async fn stage(&mut self, stage: Stage, deadline: Instant) {
        let left = remaining(deadline);
        let steps = self.steps.extract_if(.., |(of, _, _)| *of == stage);
        let steps = steps.map(|(_, name, step)| async move {
            if timeout(left, step(left)).await.is_err() {
                warn!("gave up {stage:?} of {name}");
            }
        });
        join_all(steps).await;
    }
}

/// The time until a deadline; each step gets a second, however late it is.
fn remaining(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn it_leaves_in_order() {
        let signalled = CancellationToken::new();
        let mut life = Lifecycle::with_signal(Duration::from_millis(20), signalled.clone());
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |text: &'static str| {
            let order = order.clone();
            move || order.lock().unwrap().push(text)
        };
        for (stage, name) in [
            (Stage::FlushTelemetry, "flush telemetry"),
            (Stage::ReturnSlot, "return slot"),
            (Stage::CloseSockets, "close sockets"),
            (Stage::FinishRequests, "finish requests"),
            (Stage::StopAccepting, "stop accepting"),
            (Stage::Unregister, "unregister"),
        ] {
            let note = note(name);
            life.on(stage, name, move |_| async move { note() });
        }
        let (stopping, note) = (life.tasks().stopping(), note("stop jobs"));
        life.tasks().spawn("tests.job", async move {
            stopping.cancelled().await;
            note();
            Ok(())
        });
        let readiness = life.readiness();
        life.ready();
        assert!(readiness.is_ready());

        signalled.cancel();
        let code = life.run().await;

        assert_eq!(code, 0);
        assert_eq!(readiness.phase(), Phase::Draining);
        assert_eq!(
            *order.lock().unwrap(),
            [
                "unregister",
                "stop accepting",
                "finish requests",
                "close sockets",
                "stop jobs",
                "return slot",
                "flush telemetry"
            ]
        );
    }

    #[tokio::test]
    async fn a_failed_task_ends_the_process_with_an_error() {
        let life = Lifecycle::with_signal(Duration::from_millis(4), CancellationToken::new());
        life.tasks()
            .spawn("tests.fails", async { anyhow::bail!("boom") });

        assert_eq!(life.run().await, 1);
    }

    #[tokio::test]
    async fn a_step_that_hangs_does_not_keep_the_process() {
        let mut life = Lifecycle::with_signal(Duration::ZERO, CancellationToken::new());
        let (sender, mut told) = tokio::sync::mpsc::channel(1);
        life.on(Stage::Unregister, "hangs", |_| std::future::pending());
        life.on(Stage::ReturnSlot, "tells", move |_| async move {
            let _ = sender.send(()).await;
        });

        life.leave().await;

        assert_eq!(told.recv().await, Some(()));
    }
}
