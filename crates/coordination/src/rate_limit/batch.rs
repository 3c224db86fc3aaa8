//! Questions that come while Redis is being asked go together with the next message: one run of the script for many
//! requests, and requests of one subject as one entry of it. The answers are the same as if each had asked alone. On a
//! cluster each does: its shards answer apart, and one that is away must not make the questions to others wait.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fred::clients::{Client, Pool};
use fred::interfaces::ClusterInterface;
use fred::types::scripts::Script;
use futures::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Decision, Limit, microseconds};
use crate::error::Store;
use crate::script::Call;
use crate::{Replication, StoreError, script, task};

static CHECK: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("check.lua")));

/// Messages that are under way at once, each over another connection: a slow one does not make the next ones wait.
const MESSAGES: usize = 4;
/// Requests that one message asks for, so that no run of the script is long.
const MOST: usize = 256;
/// Requests that may wait; the next ones learn at once that nothing can be said.
const ROOM: usize = 16_384;
/// How long Redis may take.
const DEADLINE: Duration = Duration::from_millis(500);
const TRIED: &str = "check a rate limit";

/// One limit that counts a request, and the Redis key of its subject.
#[derive(Debug)]
pub struct Ask {
    pub key: String,
    pub limit: Limit,
}

/// The questions of one process.
#[derive(Debug)]
pub struct Batches {
    redis: Pool,
    /// Where messages are sent from, whichever thread asks.
    runtime: Handle,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    messages: usize,
    /// Whether somebody is on the way to fetch who waits.
    called: bool,
}

type Answers = Vec<Result<Decision, StoreError>>;

#[derive(Debug)]
struct Waiting {
    asks: Vec<Ask>,
    answer: oneshot::Sender<Answers>,
}

impl Batches {
    /// Takes the runtime that it is called on.
    pub fn new(redis: Pool) -> Self {
        Self {
            redis,
            runtime: Handle::current(),
            queue: Mutex::default(),
        }
    }

    /// The answers in the order of the questions.
    pub async fn ask(self: &Arc<Self>, asks: Vec<Ask>) -> Answers {
        let client = self.redis.next();
        if client.cached_cluster_state().is_some() {
            return alone(client, &asks).await;
        }
        let count = asks.len();
        let failed = |why| (0..count).map(|_| Err(unreachable(why))).collect();
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut queue = self.queue();
            if queue.waiting.len() >= ROOM {
                return failed("too many ask at once");
            }
            queue.waiting.push_back(Waiting { asks, answer });
            // Whoever is called comes when this thread has let all ask that can: theirs go together.
            let begins = !queue.called && queue.messages < MESSAGES;
            queue.messages += usize::from(begins);
            queue.called |= begins;
            begins
        };
        if begins {
            // Whoever asked may leave; what others asked with it is answered all the same.
            let courier = Courier {
                batches: self.clone(),
                gone: false,
            };
            task::spawn_on(&self.runtime, courier.run());
        }
        answered
            .await
            .unwrap_or_else(|_| failed("the process is leaving"))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends messages until nobody waits. However it ends, the next question finds that it is gone.
struct Courier {
    batches: Arc<Batches>,
    gone: bool,
}

impl Drop for Courier {
    fn drop(&mut self) {
        if !self.gone {
            let mut queue = self.batches.queue();
            queue.messages -= 1;
            queue.called = false;
        }
    }
}

impl Courier {
    async fn run(mut self) {
        while let Some(mut batch) = self.next() {
            // Who gave up is not counted.
            batch.retain(|one| !one.answer.is_closed());
            if !batch.is_empty() {
                deliver(self.batches.redis.next(), batch).await;
            }
        }
    }

    /// Those who wait longest. Where nobody does it is gone, in the same moment: no question falls in between.
    fn next(&mut self) -> Option<Vec<Waiting>> {
        let mut queue = self.batches.queue();
        queue.called = false;
        let count = queue.waiting.len().min(MOST);
        if count == 0 {
            queue.messages -= 1;
            self.gone = true;
            return None;
        }
        Some(queue.waiting.drain(..count).collect())
    }
}

/// What the script says of one subject after those of the batch that may pass.
#[derive(Clone, Copy)]
struct Told {
    granted: u32,
    wait: Duration,
    remaining: u32,
    reset: Duration,
}

async fn deliver(client: &Client, batch: Vec<Waiting>) {
    // Requests of one subject count together; each remembers the how many-th it is.
    let mut known: HashMap<(&str, Limit), usize> = HashMap::new();
    let mut subjects: Vec<(&Ask, u32)> = Vec::new();
    let mut places = Vec::new();
    for ask in batch.iter().flat_map(|one| &one.asks) {
        let subject = *known.entry((&ask.key, ask.limit)).or_insert_with(|| {
            subjects.push((ask, 0));
            subjects.len() - 1
        });
        places.push((subject, subjects[subject].1));
        subjects[subject].1 += 1;
    }
    let told = tell(client, &subjects).await;
    let mut places = places.into_iter();
    for Waiting { asks, answer } in batch {
        let answers = asks.iter().zip(&mut places);
        let answers = answers.map(|(ask, (subject, number))| match &told[subject] {
            Ok(told) => Ok(ask.limit.decision(*told, number)),
            Err(error) => Err(same(error)),
        });
        // Who has left in the meantime needs no answer.
        let _ = answer.send(answers.collect());
    }
}

/// Asks for one request by itself.
async fn alone(client: &Client, asks: &[Ask]) -> Answers {
    let asked = asks.iter().map(async |ask| {
        let told = tell(client, &[(ask, 1)]).await;
        let told = told.into_iter().next().expect("an answer for each subject");
        told.map(|told| ask.limit.decision(told, 0))
            .map_err(|error| same(&error))
    });
    join_all(asked).await
}

/// Runs the script once for all subjects.
async fn tell(client: &Client, subjects: &[(&Ask, u32)]) -> Vec<Result<Told, Arc<StoreError>>> {
    let (calls, none) = ([call(subjects)], Replication::NONE);
    let asked = timeout(
        DEADLINE,
        script::run_each(client, &CHECK, &calls, none, TRIED),
    );
    let answer: Result<Vec<i64>, StoreError> = match asked.await {
        Ok(mut answers) => answers.pop().expect("an answer for each call"),
        Err(_) => Err(unreachable("no answer within 500 ms")),
    };
    match answer {
        Ok(numbers) if numbers.len() == 4 * subjects.len() => {
            numbers.chunks(4).map(|told| Ok(read(told))).collect()
        }
        Ok(_) => subjects
            .iter()
            .map(|_| Err(unreachable("its answer does not fit the question").into()))
            .collect(),
        Err(error) => vec![Err(Arc::new(error)); subjects.len()],
    }
}

fn call(subjects: &[(&Ask, u32)]) -> Call {
    let arguments = subjects.iter().flat_map(|(Ask { limit, .. }, count)| {
        [
            limit.burst.to_string(),
            limit.step.as_micros().to_string(),
            count.to_string(),
        ]
    });
    Call {
        keys: subjects.iter().map(|(ask, _)| ask.key.clone()).collect(),
        arguments: arguments.collect(),
    }
}

fn read(numbers: &[i64]) -> Told {
    let count = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
    Told {
        granted: count(numbers[0]),
        wait: microseconds(numbers[1]),
        remaining: count(numbers[2]),
        reset: microseconds(numbers[3]),
    }
}

impl Limit {
    /// What is said to the `number`-th request of a batch, from 0.
    fn decision(&self, told: Told, number: u32) -> Decision {
        let allowed = number < told.granted;
        // Those behind it had not been counted when it passed.
        let behind = if allowed {
            told.granted - 1 - number
        } else {
            0
        };
        Decision {
            allowed,
            retry_after: if allowed { Duration::ZERO } else { told.wait },
            remaining: told.remaining.saturating_add(behind),
            reset: told.reset.saturating_sub(self.step * behind),
            limit: self.burst,
            window: self.step * self.burst,
            tier: self.tier,
        }
    }
}

fn unreachable(why: &'static str) -> StoreError {
    StoreError::Unreachable {
        store: Store::Redis,
        tried: TRIED,
        source: why.into(),
    }
}

/// The same error for one more of those who asked together.
fn same(error: &Arc<StoreError>) -> StoreError {
    let source = error.clone().into();
    match **error {
        StoreError::Refused { store, tried, .. } => StoreError::Refused {
            store,
            tried,
            source,
        },
        _ => StoreError::Unreachable {
            store: Store::Redis,
            tried: TRIED,
            source,
        },
    }
}
