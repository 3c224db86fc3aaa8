//! Running Lua scripts: by their digest, loaded again when Redis has forgotten them, one or many in a round trip, and
//! on demand confirmed by replicas.

use std::collections::BTreeMap;
use std::time::Duration;

use fred::clients::{Client, Pool};
use fred::interfaces::{ClientLike, ClusterInterface};
use fred::types::cluster::ClusterRouting;
use fred::types::config::{Options, Server};
use fred::types::scripts::Script;
use fred::types::{ClusterHash, CustomCommand, FromValue, MultipleKeys, Value};
use futures::future::join_all;

use crate::StoreError;

/// How many replicas of Redis must have a write before it counts (`WAIT`). A write that fewer confirm in time is an
/// error: a failover could forget it. It makes the loss rare, not impossible: the replica that is promoted may be
/// another one, and while a slot of a cluster moves the old server may answer for a write that it sent on (`ASK`).
/// Whoever needs proof has the fencing token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replication {
    /// How many of the replicas; 0 asks none.
    pub replicas: u32,
    /// How long they may take. The connection serves nobody else for as long, so it stays far below the deadline of
    /// commands.
    pub timeout: Duration,
}

impl Replication {
    /// A write counts when the master has it: no replicas.
    pub const NONE: Self = Self::of(0);

    /// So many replicas, within 500 ms.
    pub const fn of(replicas: u32) -> Self {
        Self {
            replicas,
            timeout: Duration::from_millis(500),
        }
    }
}

impl Default for Replication {
    fn default() -> Self {
        Self::NONE
    }
}

/// One run of a script. The first key decides where in a cluster it runs.
#[derive(Clone, Debug)]
pub struct Call {
    /// `KEYS`, at least one.
    pub keys: Vec<String>,
    /// `ARGV`.
    pub arguments: Vec<String>,
}

/// Runs a script in one round trip. The Redis client may send it again after a broken connection, so every script
/// of this crate may run twice: a second run changes nothing more, save that a rate limit counts one request more.
pub async fn run<R: FromValue>(
    redis: &Pool,
    script: &Script,
    keys: impl Into<MultipleKeys> + Send,
    arguments: Vec<String>,
    tried: &'static str,
) -> Result<R, StoreError> {
    let arguments = arguments.into_iter().map(Value::from).collect::<Vec<_>>();
    script
        .evalsha_with_reload(redis.next(), keys, arguments)
        .await
        .map_err(StoreError::redis(tried))
}

/// Runs a script many times over one client, in one round trip to each server, in the order of the calls. With replicas to wait for, one `WAIT` covers all
/// calls of a server, and answers [`StoreError::NotReplicated`] where too few confirm what was written; the caller then
/// takes it back. The script must write whenever it answers that something is held.
pub async fn run_each<R: FromValue>(
    client: &Client,
    script: &Script,
    calls: &[Call],
    replication: Replication,
    tried: &'static str,
) -> Vec<Result<R, StoreError>> {
    let before = client.cached_cluster_state();
    let indexes = (0..calls.len()).collect();
    let groups = by_server(client, indexes, |index| calls[*index].keys[0].clone());
    let answered = join_all(groups.into_iter().map(|indexes| {
        let before = before.as_ref();
        async move {
            let group: Vec<&Call> = indexes.iter().map(|index| &calls[*index]).collect();
            let mut answers = run_group::<R>(client, script, &group, replication, tried).await;
            if replication.replicas > 0 {
                let after = client.cached_cluster_state();
                // A slot that moved meanwhile took the write elsewhere than the `WAIT`.
                for (call, answer) in group.iter().zip(&mut answers) {
                    let key = &call.keys[0];
                    if server(before, key) != server(after.as_ref(), key) {
                        unconfirmed(std::slice::from_mut(answer), replication, 0, tried);
                    }
                }
            }
            indexes.into_iter().zip(answers).collect::<Vec<_>>()
        }
    }));
    let mut answers: Vec<_> = answered.await.into_iter().flatten().collect();
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Parts what goes to different servers of a cluster, by its first keys.
pub fn by_server<T>(client: &Client, all: Vec<T>, key: impl Fn(&T) -> String) -> Vec<Vec<T>> {
    let Some(routing) = client.cached_cluster_state() else {
        return vec![all];
    };
    let mut groups: BTreeMap<Option<Server>, Vec<T>> = BTreeMap::new();
    for one in all {
        let server = server(Some(&routing), &key(&one));
        groups.entry(server).or_default().push(one);
    }
    groups.into_values().collect()
}

fn server(routing: Option<&ClusterRouting>, key: &str) -> Option<Server> {
    let slot = ClusterRouting::hash_key(key.as_bytes());
    routing.and_then(|routing| routing.get_server(slot).cloned())
}

/// One pipeline, sent again once when Redis did not know the script.
async fn run_group<R: FromValue>(
    client: &Client,
    script: &Script,
    calls: &[&Call],
    replication: Replication,
    tried: &'static str,
) -> Vec<Result<R, StoreError>> {
    let mut answers = send(client, script, calls, replication).await;
    let unknown = |answer: &Result<Value, fred::error::Error>| {
        answer
            .as_ref()
            .is_err_and(|error| error.details().starts_with("NOSCRIPT"))
    };
    if answers.iter().any(unknown) && script.load(client).await.is_ok() {
        answers = send(client, script, calls, replication).await;
    }
    // A pipeline that failed as a whole has one answer.
    if let [Err(error)] = &answers[..] {
        let error = error.clone();
        answers.resize_with(calls.len(), || Err(error.clone()));
    }
    let confirmed = (replication.replicas > 0 && answers.len() > calls.len())
        .then(|| answers.pop().expect("it is longer"));
    let mut answers: Vec<Result<R, StoreError>> = answers
        .into_iter()
        .map(|answer| {
            answer
                .and_then(Value::convert)
                .map_err(StoreError::redis(tried))
        })
        .collect();
    match confirmed.map(|confirmed| confirmed.and_then(|value| value.convert::<u32>())) {
        None => {}
        Some(Ok(confirmed)) if confirmed >= replication.replicas => {}
        Some(Ok(confirmed)) => unconfirmed(&mut answers, replication, confirmed, tried),
        Some(Err(_)) => unconfirmed(&mut answers, replication, 0, tried),
    }
    answers
}

async fn send(
    client: &Client,
    script: &Script,
    calls: &[&Call],
    replication: Replication,
) -> Vec<Result<Value, fred::error::Error>> {
    // Sent again on a new connection, a `WAIT` would answer for writes that it has never seen.
    let options = Options {
        max_attempts: (replication.replicas > 0).then_some(1),
        ..Options::default()
    };
    let pipeline = client.pipeline().with_options(&options);
    for call in calls {
        let evalsha = CustomCommand::new_static("EVALSHA", ClusterHash::Offset(2), false);
        let mut words = vec![script.sha1().to_string(), call.keys.len().to_string()];
        words.extend(call.keys.iter().chain(&call.arguments).cloned());
        if let Err(error) = pipeline.custom::<(), _>(evalsha, words).await {
            return vec![Err(error)];
        }
    }
    if replication.replicas > 0 {
        let slot = ClusterRouting::hash_key(calls[0].keys[0].as_bytes());
        let wait = CustomCommand::new_static("WAIT", ClusterHash::Custom(slot), false);
        let words = vec![
            replication.replicas.to_string(),
            milliseconds(replication.timeout),
        ];
        if let Err(error) = pipeline.custom::<(), _>(wait, words).await {
            return vec![Err(error)];
        }
    }
    pipeline.try_all().await
}

fn unconfirmed<R>(
    answers: &mut [Result<R, StoreError>],
    replication: Replication,
    confirmed: u32,
    tried: &'static str,
) {
    for answer in answers.iter_mut().filter(|answer| answer.is_ok()) {
        *answer = Err(StoreError::NotReplicated {
            tried,
            wanted: replication.replicas,
            confirmed,
        });
    }
}

/// Milliseconds for a script, at least one.
pub fn milliseconds(time: Duration) -> String {
    time.as_millis().max(1).to_string()
}
