//! How many requests may wait for a service at once. The next ones queue for a place, first come first served, as long
//! as the queue has room and their patience lasts; the others are refused at once.
//!
//! Every request passes two gates, so whoever finds a free place takes it, and gives it back, by one change of one number.
//! Only where all are taken is there a queue, behind a lock: who leaves hands the place to the first in it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// A number of places, and a queue before them.
#[derive(Debug)]
pub struct Gate {
    places: u32,
    room: u32,
    /// A [`Count`].
    count: AtomicU64,
    /// As many as the count says are queued; both change together, under the lock.
    queue: Mutex<Queue>,
    shed: AtomicU64,
}

/// A place, until dropped.
#[derive(Debug)]
pub struct Permit<'a>(&'a Gate);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// How many places are taken, and how many requests wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    taken: u32,
    queued: u32,
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

impl Count {
    const fn of(number: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
        Self {
            queued: u32::from_be_bytes([a, b, c, d]),
            taken: u32::from_be_bytes([e, f, g, h]),
        }
    }

    const fn number(self) -> u64 {
        ((self.queued as u64) << 32) | self.taken as u64
    }
}

impl Gate {
    /// A gate with so many places, and room for so many more to wait.
    pub fn new(places: usize, room: usize) -> Self {
        Self {
            places: u32::try_from(places).unwrap_or(u32::MAX),
            room: u32::try_from(room).unwrap_or(u32::MAX),
            count: AtomicU64::new(0),
            queue: Mutex::default(),
            shed: AtomicU64::new(0),
        }
    }

    /// Takes a place, until it is dropped. Who came earlier is served earlier.
    ///
    /// # Errors
    /// [`Shed`], where the queue is full or no place is free until the given moment.
    pub async fn enter(&self, until: Instant) -> Result<Permit<'_>, Shed> {
        let entered = match self.try_enter() {
            Some(permit) => Ok(permit),
            None => match self.line_up() {
                Ok(Turn::Now(permit)) => Ok(permit),
                Ok(Turn::Later(waiting)) => waiting.until(until).await,
                Err(shed) => Err(shed),
            },
        };
        if entered.is_err() {
            self.shed.fetch_add(1, Ordering::Relaxed);
        }
        entered
    }

    /// What the report says of it.
    pub fn report(&self) -> GateReport {
        let Count { taken, queued } = Count::of(self.count.load(Ordering::Relaxed));
        GateReport {
            in_flight: taken as usize,
            places: self.places as usize,
            queued: queued as usize,
            queue: self.room as usize,
            shed: self.shed.load(Ordering::Relaxed),
        }
    }

    /// Takes a free place, where nobody waits for one.
    fn try_enter(&self) -> Option<Permit<'_>> {
        let taken = self.change(|count| {
            let free = count.queued == 0 && count.taken < self.places;
            free.then_some(Count {
                taken: count.taken + 1,
                ..count
            })
        });
        // Not made beforehand: one that is dropped gives a place back.
        taken.then(|| Permit(self))
    }

    /// Waits in the queue, unless a place has become free meanwhile.
    fn line_up(&self) -> Result<Turn<'_>, Shed> {
        let mut queue = self.queue();
        loop {
            if let Some(permit) = self.try_enter() {
                return Ok(Turn::Now(permit));
            }
            let before = Count::of(self.count.load(Ordering::Acquire));
            if before.queued >= self.room {
                return Err(Shed::QueueFull);
            }
            // Only while all places are taken: who gives one back then sees that somebody waits.
            let queued = self.change(|count| {
                let full = count.queued > 0 || count.taken >= self.places;
                full.then_some(Count {
                    queued: count.queued + 1,
                    ..count
                })
            });
            if queued {
                let (sender, granted) = oneshot::channel();
                let id = queue.next;
                queue.next += 1;
                queue.waiting.push_back((id, sender));
                return Ok(Turn::Later(Waiting {
                    gate: self,
                    id,
                    granted,
                    entered: false,
                }));
            }
        }
    }

    /// Gives a place back, or on to who waits longest.
    fn leave(&self) {
        loop {
            let left = self.change(|count| {
                (count.queued == 0).then(|| Count {
                    taken: count.taken - 1,
                    ..count
                })
            });
            if left {
                return;
            }
            let mut queue = self.queue();
            if let Some((_, next)) = queue.waiting.pop_front() {
                self.one_less_queued();
                drop(queue);
                // Whoever has gone meanwhile misses itself in the queue, and gives the place on.
                let _ = next.send(());
                return;
            }
        }
    }

    fn one_less_queued(&self) {
        self.change(|count| {
            Some(Count {
                queued: count.queued - 1,
                ..count
            })
        });
    }

    /// Changes the count as long as the rule gives another one; whether it did.
    fn change(&self, rule: impl Fn(Count) -> Option<Count>) -> bool {
        let rule = |number| rule(Count::of(number)).map(Count::number);
        self.count
            .try_update(Ordering::AcqRel, Ordering::Acquire, rule)
            .is_ok()
    }

    // No code that holds the lock can panic half way.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// What came of lining up.
enum Turn<'a> {
    Now(Permit<'a>),
    Later(Waiting<'a>),
}

/// A request in the queue, until dropped.
struct Waiting<'a> {
    gate: &'a Gate,
    id: u64,
    granted: oneshot::Receiver<()>,
    entered: bool,
}

impl<'a> Waiting<'a> {
    async fn until(mut self, until: Instant) -> Result<Permit<'a>, Shed> {
        match timeout_at(until, &mut self.granted).await {
            Ok(Ok(())) => {
                self.entered = true;
                Ok(Permit(self.gate))
            }
            // Nobody drops the other end without a word.
            Ok(Err(_)) | Err(_) => Err(Shed::Waited),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.entered {
            return;
        }
        let mut queue = self.gate.queue();
        let place = queue.waiting.iter().position(|(id, _)| *id == self.id);
        match place {
            Some(place) => {
                queue.waiting.remove(place);
                self.gate.one_less_queued();
            }
            None => {
                // The place was given to us, too late.
                drop(queue);
                self.gate.leave();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::pin::Pin;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use futures::{FutureExt as _, StreamExt as _};

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
        assert!(gate.enter(later()).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        let place = first.await.unwrap();
        let told = gate.report();
        assert_eq!((told.in_flight, told.queued, told.shed), (1, 1, 1));
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

    /// A request before the gate, and what came of it.
    type Asking<'a> = Pin<Box<dyn Future<Output = Result<Permit<'a>, Shed>> + 'a>>;

    #[test]
    fn any_order_of_coming_and_going_serves_the_first_and_loses_no_place() {
        // Beside its runtime: within a task, tokio lets nobody go on for ever.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let runtime = runtime.unwrap();
        let _timer = runtime.enter();
        bolero::check!()
            .with_type::<(u8, u8, Vec<(u8, u8)>)>()
            .with_iterations(500)
            .for_each(|(places, room, steps)| {
                let (places, room) = (usize::from(places % 4), usize::from(room % 4));
                let gate = AssertUnwindSafe(Gate::new(places, room));
                let mut inside: Vec<Permit<'_>> = Vec::new();
                let mut queue: VecDeque<Asking<'_>> = VecDeque::new();
                for (what, which) in steps {
                    match what % 3 {
                        0 => {
                            let mut asking: Asking<'_> = Box::pin(gate.enter(later()));
                            let full = inside.len() == places;
                            match (&mut asking).now_or_never() {
                                Some(Ok(permit)) => {
                                    assert!(!full && queue.is_empty());
                                    inside.push(permit);
                                }
                                Some(Err(shed)) => {
                                    assert_eq!(shed, Shed::QueueFull);
                                    assert!(full && queue.len() == room);
                                }
                                None => {
                                    assert!(full && queue.len() < room);
                                    queue.push_back(asking);
                                }
                            }
                        }
                        1 if !inside.is_empty() => {
                            drop(inside.swap_remove(usize::from(*which) % inside.len()));
                            // Now and then the first one goes before it hears that it may enter.
                            let first = queue.pop_front().filter(|_| which % 4 != 0);
                            let first = first.map(|asking| asking.now_or_never());
                            inside.extend(first.map(|entered| entered.unwrap().unwrap()));
                            if inside.len() < places
                                && let Some(next) = queue.pop_front()
                            {
                                inside.push(next.now_or_never().unwrap().unwrap());
                            }
                        }
                        2 if !queue.is_empty() => {
                            queue.remove(usize::from(*which) % queue.len());
                        }
                        _ => {}
                    }
                    let told = gate.report();
                    assert_eq!((told.in_flight, told.queued), (inside.len(), queue.len()));
                    for waiting in &mut queue {
                        assert!(waiting.now_or_never().is_none());
                    }
                }
                drop((inside, queue));
                assert_eq!((gate.report().in_flight, gate.report().queued), (0, 0));
            });
    }

    #[test]
    fn on_many_threads_no_place_is_given_twice_or_lost() {
        const PLACES: usize = 3;
        let gate = Gate::new(PLACES, 16);
        let inside = AtomicUsize::new(0);
        let visit = async |round: u32| {
            // Some are patient, some have gone before their turn comes.
            let until = Instant::now() + Duration::from_micros(u64::from(round % 7) * 50);
            let Ok(_place) = gate.enter(until).await else {
                return false;
            };
            assert!(inside.fetch_add(1, Ordering::SeqCst) < PLACES);
            tokio::task::yield_now().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            true
        };
        let visited = std::thread::scope(|scope| {
            let threads = (0..4).map(|_| {
                scope.spawn(|| {
                    let mut runtime = tokio::runtime::Builder::new_current_thread();
                    let runtime = runtime.enable_time().build().unwrap();
                    runtime.block_on(async {
                        let rounds = futures::stream::iter(0..2_000).map(&visit);
                        let rounds = rounds.buffer_unordered(6);
                        rounds
                            .filter(|entered| std::future::ready(*entered))
                            .count()
                            .await
                    })
                })
            });
            let threads: Vec<_> = threads.collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum::<usize>()
        });
        assert!(visited > 0);
        let told = gate.report();
        assert_eq!((told.in_flight, told.queued), (0, 0));
        assert!(gate.try_enter().is_some());
    }
}
