//! How busy an instance is, for the registry.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use coordination::Load;
use http::Request;
use tower::Service;

/// Counts the requests of one instance. Clones count together.
#[derive(Clone, Default)]
pub struct Traffic(Arc<Counts>);

#[derive(Default)]
struct Counts {
    begun: AtomicU64,
    answered: AtomicU64,
    last: Mutex<Option<(Instant, u64)>>,
}

impl Traffic {
    /// Counts the requests that go through a service.
    pub fn count<S>(&self, inner: S) -> Counting<S> {
        Counting {
            inner,
            traffic: self.clone(),
        }
    }

    /// The load since the last time it was asked for.
    pub fn load(&self) -> Load {
        let (begun, answered) = (
            self.0.begun.load(Ordering::Relaxed),
            self.0.answered.load(Ordering::Relaxed),
        );
        let now = Instant::now();
        let last = self
            .0
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace((now, begun));
        let requests_per_second = last.map_or(0.0, |(since, before)| {
            let seconds = now.duration_since(since).as_secs_f64().max(0.001);
            (begun.saturating_sub(before) as f64 / seconds * 10.0).round() / 10.0
        });
        Load {
            outstanding: begun.saturating_sub(answered),
            requests_per_second,
            memory_bytes: resident_bytes(),
            ..Load::default()
        }
    }
}

/// A service whose requests are counted.
#[derive(Clone)]
pub struct Counting<S> {
    inner: S,
    traffic: Traffic,
}

impl<S, B> Service<Request<B>> for Counting<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let counted = Counted::begin(&self.traffic);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let _counted = counted;
            answer.await
        })
    }
}

/// A request that was begun; one whose client went away counts as answered, too.
struct Counted(Traffic);

impl Counted {
    fn begin(traffic: &Traffic) -> Self {
        traffic.0.begun.fetch_add(1, Ordering::Relaxed);
        Self(traffic.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// The memory that this process occupies; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
