//! How many requests may wait for a service at once. The next ones queue for a place, first come first served, as long
//! as the queue has room and their patience lasts; the others are refused at once.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

/// A number of places, and a queue before them.
#[derive(Debug)]
pub struct Gate {
    places: usize,
    room: usize,
    free: Semaphore,
    queued: AtomicUsize,
    shed: AtomicU64,
}

/// A gate in the report of the front door.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GateReport {
    /// Requests that wait for the head of their reply.
    pub in_flight: usize,
    /// How many of them there may be.
    pub places: usize,
    /// Requests that wait for a place.
    pub queued: usize,
    /// How many of them there may be.
    pub queue: usize,
    /// Requests that were refused since the start.
    pub shed: u64,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// As many as may wait did so already.
    QueueFull,
    /// No place became free in time.
    Waited,
}

impl Shed {
    /// The word for it in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Waited => "waited",
        }
    }
}

impl Gate {
    /// A gate with so many places, and room for so many more to wait.
    pub fn new(places: usize, room: usize) -> Self {
        let places = places.min(Semaphore::MAX_PERMITS);
        Self {
            places,
            room,
            free: Semaphore::new(places),
            queued: AtomicUsize::new(0),
            shed: AtomicU64::new(0),
        }
    }

    /// Takes a place, until it is dropped. Who came earlier is served earlier.
    ///
    /// # Errors
    /// [`Shed`], where the queue is full or no place is free until the given moment.
    pub async fn enter(&self, until: Instant) -> Result<SemaphorePermit<'_>, Shed> {
        if let Ok(place) = self.free.try_acquire() {
            return Ok(place);
        }
        let shed = |why| {
            self.shed.fetch_add(1, Ordering::Relaxed);
            why
        };
        let _queued = Queued::begin(self).ok_or_else(|| shed(Shed::QueueFull))?;
        match timeout_at(until, self.free.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(shed(Shed::Waited)),
        }
    }

    /// What the report says of it.
    pub fn report(&self) -> GateReport {
        GateReport {
            in_flight: self.places - self.free.available_permits(),
            places: self.places,
            queued: self.queued.load(Ordering::Relaxed),
            queue: self.room,
            shed: self.shed.load(Ordering::Relaxed),
        }
    }
}

/// Counts a request as waiting until dropped.
struct Queued<'a>(&'a Gate);

impl<'a> Queued<'a> {
    fn begin(gate: &'a Gate) -> Option<Self> {
        let before = gate.queued.fetch_add(1, Ordering::Relaxed);
        let queued = Self(gate);
        (before < gate.room).then_some(queued)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[tokio::test]
    async fn who_came_first_is_served_first_and_who_finds_no_room_is_refused() {
        let gate = Gate::new(1, 2);
        let place = gate.enter(later()).await.unwrap();
        let (mut first, mut second) =
            (Box::pin(gate.enter(later())), Box::pin(gate.enter(later())));
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());

        assert_eq!(gate.enter(later()).await.unwrap_err(), Shed::QueueFull);

        drop(place);
        let newcomer = gate.enter(later()).now_or_never();
        assert_eq!(newcomer.unwrap().unwrap_err(), Shed::QueueFull);
        assert!((&mut second).now_or_never().is_none());
        let place = first.await.unwrap();
        let told = gate.report();
        assert_eq!((told.in_flight, told.queued, told.shed), (1, 1, 2));
        drop(place);
        drop(second.await.unwrap());
        assert_eq!(gate.report().in_flight, 0);
    }

    #[tokio::test]
    async fn who_waits_too_long_or_goes_away_leaves_the_queue() {
        let gate = Gate::new(1, 1);
        let place = gate.enter(later()).await.unwrap();

        let waited = gate.enter(Instant::now()).await;
        assert_eq!(waited.unwrap_err(), Shed::Waited);
        assert!(gate.enter(later()).now_or_never().is_none());

        assert_eq!(gate.report().queued, 0);
        drop(place);
        assert!(gate.enter(later()).await.is_ok());
    }
}
