//! The one task behind all leases of a process: renews those that are due in one round trip to each server, says which
//! are lost, gives back what nobody wants any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Holder, Leases};
use crate::metrics;

/// Most leases of one round trip: more would hold up whoever shares the connection.
const BATCH: usize = 512;

/// How long a lease that nobody wants any more is tried to be given back; after that it expires.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long a request of which nothing was heard may still reach Redis, and is tried to be taken back: clients send again
/// what they could not send to a server that was away.
const DOUBT: Duration = Duration::from_secs(60);

/// The pause before another try to give back.
const PAUSE: Duration = Duration::from_millis(250);

/// The longest a round trip is waited for.
const ROUND_TRIP: Duration = Duration::from_secs(5);

/// The most by which a renewal is brought forward so that it goes with others.
const EARLIEST: Duration = Duration::from_secs(1);

/// What is held and what is to be given back. Bounded by the leases of the process, and those it asked for in the last
/// minute.
#[derive(Debug, Default)]
pub struct Keeper {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    running: bool,
    last_id: u64,
    held: HashMap<u64, Held>,
    /// When to look at each of them, soonest first.
    agenda: BTreeSet<(Instant, u64)>,
    parting: Vec<Parting>,
}

#[derive(Debug)]
struct Held {
    holder: Arc<Holder>,
    ttl: Duration,
    /// From *before* the last command that took or renewed it: Redis can only expire it later than we think.
    since: Instant,
    /// Its place in the agenda.
    at: Instant,
    /// Over which connection it is renewed next: the same again for as long as that answers.
    connection: usize,
    lost: CancellationToken,
}

#[derive(Debug)]
struct Parting {
    holder: Arc<Holder>,
    /// How long a request for the lease may still be on its way.
    doubt: Option<Duration>,
    not_before: Instant,
    until: Instant,
}

/// What is to be done now.
#[derive(Default)]
struct Work {
    /// By the number of the connection.
    renew: BTreeMap<usize, Vec<Renewal>>,
    part: Vec<Parting>,
    lost: Vec<(Arc<Holder>, CancellationToken)>,
    next: Option<Instant>,
    finished: bool,
}

struct Renewal {
    id: u64,
    holder: Arc<Holder>,
    ttl: Duration,
    valid_until: Instant,
}

/// What came of it.
enum Outcome {
    Renewed {
        start: Instant,
        connection: usize,
        /// Whether Redis still knows it as ours; `None` without an answer.
        answers: Vec<(u64, Option<bool>)>,
    },
    NotParted(Vec<Parting>),
}

impl Keeper {
    /// Keeps a lease from now on, and answers the number by which it is known.
    pub fn keep(
        leases: &Leases,
        holder: Arc<Holder>,
        ttl: Duration,
        since: Instant,
        lost: CancellationToken,
    ) -> u64 {
        let keeper = &leases.inner.keeper;
        let mut state = keeper.state();
        state.last_id += 1;
        let id = state.last_id;
        let at = since + ttl / 3;
        let is_next = state.agenda.first().is_none_or(|(first, _)| at < *first);
        state.agenda.insert((at, id));
        state.held.insert(
            id,
            Held {
                holder,
                ttl,
                since,
                at,
                connection: 0,
                lost,
            },
        );
        drop(state);
        start(leases);
        if is_next {
            keeper.changed.notify_one();
        }
        id
    }

    /// Until when the holder may believe in a lease; `None` once it is lost.
    pub fn valid_until(&self, id: u64) -> Option<Instant> {
        let state = self.state();
        state.held.get(&id).map(Held::valid_until)
    }

    /// Keeps a lease no longer, and says whether it was still held.
    pub fn forget(&self, id: u64) -> bool {
        let mut state = self.state();
        let Some(held) = state.held.remove(&id) else {
            return false;
        };
        state.agenda.remove(&(held.at, id));
        Instant::now() < held.valid_until()
    }

    /// Gives a lease back in the background, for a bounded time.
    pub fn part(leases: &Leases, holder: Arc<Holder>) {
        Self::say_farewell(leases, holder, None);
    }

    /// Like [`Self::part`], where a request for the lease may still be on its way.
    pub fn part_in_doubt(leases: &Leases, holder: Arc<Holder>) {
        Self::say_farewell(leases, holder, Some(DOUBT));
    }

    fn say_farewell(leases: &Leases, holder: Arc<Holder>, doubt: Option<Duration>) {
        let now = Instant::now();
        let keeper = &leases.inner.keeper;
        let mut state = keeper.state();
        state.parting.push(Parting {
            holder,
            doubt,
            not_before: now,
            until: now + doubt.unwrap_or(LAST_WORDS),
        });
        drop(state);
        start(leases);
        keeper.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is due. `idle`: nothing is under way; then the task ends where nothing is left to do.
    fn work(&self, now: Instant, idle: bool, connections: usize) -> Work {
        let mut work = Work::default();
        let mut state = self.state();
        let state = &mut *state;
        if state.agenda.first().is_some_and(|(at, _)| *at <= now) {
            let soon: Vec<u64> = state
                .agenda
                .range(..=(now + EARLIEST, u64::MAX))
                .map(|(_, id)| *id)
                .collect();
            for id in soon {
                state.look_at(id, now, connections, &mut work);
            }
        }
        let (due, later) = std::mem::take(&mut state.parting)
            .into_iter()
            .partition(|parting| parting.not_before <= now);
        (work.part, state.parting) = (due, later);
        let agenda = state.agenda.first().map(|(at, _)| *at);
        let parting = state.parting.iter().map(|parting| parting.not_before).min();
        work.next = agenda.into_iter().chain(parting).min();
        work.finished = idle && work.next.is_none() && work.part.is_empty();
        if work.finished {
            state.running = false;
        }
        work
    }

    fn settle(&self, outcome: Outcome) {
        let mut lost = Vec::new();
        let mut state = self.state();
        match outcome {
            Outcome::NotParted(again) => state.parting.extend(again),
            Outcome::Renewed {
                start,
                connection,
                answers,
            } => {
                let now = Instant::now();
                for (id, answer) in answers {
                    // What is not here was given back meanwhile, or is lost already.
                    let Some(held) = state.held.get_mut(&id) else {
                        continue;
                    };
                    let at = match answer {
                        Some(true) => {
                            // An earlier request may be answered later: over the slower connection.
                            if start >= held.since {
                                held.since = start;
                                held.connection = connection;
                            }
                            held.since + held.ttl / 3
                        }
                        Some(false) => {
                            lost.extend(state.remove(id));
                            continue;
                        }
                        None => held.at.min(now + held.ttl / 10),
                    };
                    state.look_again(id, at);
                }
            }
        }
        drop(state);
        lose(lost, "Redis no longer knows it as ours");
    }
}

impl State {
    fn look_at(&mut self, id: u64, now: Instant, connections: usize, work: &mut Work) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        let valid_until = held.valid_until();
        if now >= valid_until {
            work.lost.extend(self.remove(id));
        } else if held.at <= now + (held.ttl / 12).min(EARLIEST) {
            work.renew
                .entry(held.connection)
                .or_default()
                .push(Renewal {
                    id,
                    holder: held.holder.clone(),
                    ttl: held.ttl,
                    valid_until,
                });
            // Without an answer by then it is sent again, over the next connection, while the first is still waited for.
            held.connection = (held.connection + 1) % connections;
            let patience = ((valid_until - now) / 3).max(held.ttl / 20);
            self.look_again(id, (now + patience).min(valid_until));
        }
    }

    fn look_again(&mut self, id: u64, at: Instant) {
        if let Some(held) = self.held.get_mut(&id) {
            self.agenda.remove(&(held.at, id));
            held.at = at;
            self.agenda.insert((at, id));
        }
    }

    fn remove(&mut self, id: u64) -> Option<(Arc<Holder>, CancellationToken)> {
        let held = self.held.remove(&id)?;
        self.agenda.remove(&(held.at, id));
        Some((held.holder, held.lost))
    }
}

impl Held {
    fn valid_until(&self) -> Instant {
        self.since + believed(self.ttl)
    }
}

/// Starts the task where none runs; outside of a runtime nothing can be renewed or given back, and expires.
fn start(leases: &Leases) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    let is_running = std::mem::replace(&mut leases.inner.keeper.state().running, true);
    // Not under the lock: a runtime that is shutting down drops the task at once, and that takes the lock.
    if !is_running {
        runtime.spawn(run(Running {
            leases: leases.clone(),
            finished: false,
        }));
    }
}

/// The task's hold on its leases. If it breaks off, with its runtime or by a fault, nobody renews them: they are lost.
struct Running {
    leases: Leases,
    finished: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut state = self.leases.inner.keeper.state();
        state.running = false;
        state.agenda.clear();
        state.parting.clear();
        let held = std::mem::take(&mut state.held);
        drop(state);
        let held = held.into_values().map(|held| (held.holder, held.lost));
        lose(held.collect(), "the task that renewed it broke off");
    }
}

async fn run(mut running: Running) {
    let leases = running.leases.clone();
    let keeper = &leases.inner.keeper;
    let connections = leases.inner.redis.clients().len();
    let mut under_way: FuturesUnordered<BoxFuture<'_, Outcome>> = FuturesUnordered::new();
    loop {
        let work = keeper.work(Instant::now(), under_way.is_empty(), connections);
        lose(work.lost, "it could not be renewed in time");
        running.finished = work.finished;
        if work.finished {
            return;
        }
        // A server that does not answer holds up no renewal on another one.
        for (connection, renewals) in work.renew {
            for group in leases.by_server(renewals, |renewal| &renewal.holder) {
                for batch in batches(group) {
                    under_way.push(Box::pin(renew(&leases, connection, batch)));
                }
            }
        }
        for batch in batches(work.part) {
            under_way.push(Box::pin(part(&leases, batch)));
        }
        let next = work.next.unwrap_or_else(|| Instant::now() + ROUND_TRIP);
        tokio::select! {
            Some(outcome) = under_way.next(), if !under_way.is_empty() => keeper.settle(outcome),
            () = keeper.changed.notified() => {}
            () = sleep_until(next) => {}
        }
    }
}

fn batches<T>(mut all: Vec<T>) -> Vec<Vec<T>> {
    let mut batches = Vec::with_capacity(all.len().div_ceil(BATCH));
    while all.len() > BATCH {
        let rest = all.split_off(BATCH);
        batches.push(std::mem::replace(&mut all, rest));
    }
    if !all.is_empty() {
        batches.push(all);
    }
    batches
}

async fn renew(leases: &Leases, connection: usize, batch: Vec<Renewal>) -> Outcome {
    let start = Instant::now();
    let last = batch.iter().map(|renewal| renewal.valid_until).max();
    let deadline = last.unwrap_or(start).min(start + ROUND_TRIP);
    let holders = batch
        .iter()
        .map(|renewal| (&*renewal.holder, Some(renewal.ttl)));
    let answers = timeout_at(deadline, leases.renew(connection, holders.collect())).await;
    let mut answers = answers.unwrap_or_default().into_iter();
    let settled = batch.iter().map(|renewal| {
        let answer = match answers.next() {
            Some(Ok(held)) => Some(held == 1),
            Some(Err(error)) => {
                let name = &renewal.holder.name;
                debug!(
                    lease = name,
                    error = &error as &dyn std::error::Error,
                    "could not renew lease {name}"
                );
                None
            }
            None => None,
        };
        (renewal.id, answer)
    });
    Outcome::Renewed {
        start,
        connection,
        answers: settled.collect(),
    }
}

async fn part(leases: &Leases, batch: Vec<Parting>) -> Outcome {
    let deadline = Instant::now() + ROUND_TRIP;
    let holders = batch
        .iter()
        .map(|parting| (&*parting.holder, parting.doubt));
    let answers = timeout_at(deadline, leases.give_back(holders.collect())).await;
    let mut answers = answers.unwrap_or_default().into_iter();
    let again = Instant::now() + PAUSE;
    let failed = batch.into_iter().filter_map(|parting| {
        if matches!(answers.next(), Some(Ok(_))) {
            return None;
        }
        if again >= parting.until {
            let name = &parting.holder.name;
            debug!(lease = name, "lease {name} is left to expire");
            return None;
        }
        Some(Parting {
            not_before: again,
            ..parting
        })
    });
    Outcome::NotParted(failed.collect())
}

/// How long after the acquisition the holder may believe in it: less than its time to live, for clocks that run at
/// different speeds and timers that fire late.
pub fn believed(ttl: Duration) -> Duration {
    ttl.saturating_sub(ttl / 20 + Duration::from_millis(5))
}

fn lose(lost: Vec<(Arc<Holder>, CancellationToken)>, why: &str) {
    for (holder, lost) in lost {
        lost.cancel();
        metrics::lease("lost");
        let name = &holder.name;
        warn!(lease = name, "lost lease {name}: {why}");
    }
}
