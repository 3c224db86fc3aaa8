//! The ports of a node, leased to devices: three at a time or none, the lowest free numbers, never one that was given
//! back a moment ago.
//!
//! The lease is `port:{node}:adb:5555` with its owner as value and a time to live. Beside it an index of free, leased and
//! resting ports makes every request O(log n), whatever the occupancy. Every node has a space of its own; an owner has one
//! set on each node at most, and gets the same one again for as long as it holds it.
//!
//! A port that comes back rests before it is leased again, and says why: returned, expired, or a foreign process was found
//! on it by [`probe`]. At each lease and each sweep, ports whose rest is over come back in the order in which it was
//! over, a bounded number at a time and always more than one lease takes: none waits for ever, and a lease never fails
//! while a port is due. When more than that many are due at once, the lowest of those that came back is leased.
//!
//! A lease is one script of nine Redis commands, whatever the occupancy; what rests costs it nothing until it is due.
//!
//! What the index forgot, or Redis as a whole, is built anew from the database ([`PortPool::rebuild`]) while requests go
//! on: whoever comes first builds, the others find it done. A set that was leased just before the loss and is not in the
//! database yet may then be leased once more; the unique constraints there refuse the second one.

mod inspect;
mod ports;
mod probe;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use fred::clients::Pool;
use fred::types::scripts::Script;
use fred::types::{FromValue, Value};

use crate::script::{self, Call, Replication};
use crate::{Keys, StoreError, metrics};

pub use inspect::{HeldSet, Recorded, RecordedRest, RestReason, RestingPort, Sweep};
pub use ports::{PortKind, PortRanges, PortSet};
pub use probe::probe;

macro_rules! port_script {
    ($first:literal $(, $more:literal)*) => {
        LazyLock::new(|| Script::from_lua(concat!(include_str!($first) $(, include_str!($more))*)))
    };
}

static LEASE: LazyLock<Script> = port_script!("lease_lowest.lua", "common.lua", "lease.lua");
static RENEW: LazyLock<Script> = port_script!("common.lua", "renew.lua");
static RELEASE: LazyLock<Script> = port_script!("common.lua", "release.lua");
static SWEEP: LazyLock<Script> = port_script!("common.lua", "sweep.lua");
static REBUILD: LazyLock<Script> = port_script!("common.lua", "rebuild.lua");
static LEASES: LazyLock<Script> = port_script!("common.lua", "leases.lua");
static RESTING: LazyLock<Script> = port_script!("common.lua", "resting.lua");

/// Most sets, and most resting ports, that one sweep takes back.
const SWEEP_LIMIT: u32 = 512;

/// Why no ports were leased, or nothing could be said about them.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Every port of a kind is leased or rests.
    #[error("no free {kind} port on node {node}: {leased} of {total} leased{}", also_resting(*resting))]
    Exhausted {
        /// The kind that ran out.
        kind: PortKind,
        /// The node.
        node: String,
        /// How many are leased.
        leased: u32,
        /// How many were given back a moment ago.
        resting: u32,
        /// How many there are.
        total: u32,
    },
    /// Redis has no index for this node, or one for other ranges: call [`PortPool::rebuild`], then try again.
    #[error("the port index of node {node} is missing")]
    IndexMissing {
        /// The node.
        node: String,
    },
    /// Redis did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Leases the ports of all nodes.
#[derive(Clone, Debug)]
pub struct PortPool {
    redis: Pool,
    keys: Keys,
    ranges: PortRanges,
    layout: Arc<str>,
    quarantine: Duration,
    replication: Replication,
}

impl PortPool {
    /// Gives out ports of these ranges; one that comes back rests for `quarantine`, or not at all where that is zero.
    pub fn new(redis: Pool, keys: Keys, ranges: PortRanges, quarantine: Duration) -> Self {
        Self {
            redis,
            keys,
            layout: ranges.layout().into(),
            ranges,
            quarantine,
            replication: Replication::NONE,
        }
    }

    /// A set counts when so many replicas have confirmed it. One that fewer confirm is [`StoreError::NotReplicated`]: its
    /// owner gets the same ports when it asks again, [`Self::take_back`] frees them, else they expire.
    pub fn replicated(self, replication: Replication) -> Self {
        Self {
            replication,
            ..self
        }
    }

    /// Leases three ports in one round trip. An owner that asks again gets the ports it has, for a new time to live.
    pub async fn lease(
        &self,
        node: &str,
        owner: &str,
        ttl: Duration,
    ) -> Result<PortSet, PortError> {
        let arguments = vec![owner.to_owned(), script::milliseconds(ttl)];
        let answer: Vec<String> = self
            .run_confirmed(&LEASE, node, arguments, "lease ports")
            .await?;
        let number = |at: usize| {
            answer
                .get(at)
                .and_then(|text| text.parse::<u32>().ok())
                .unwrap_or_default()
        };
        match answer.first().map(String::as_str) {
            Some("leased") => {
                metrics::port_lease("leased");
                let port = |at| u16::try_from(number(at)).unwrap_or_default();
                Ok(PortSet {
                    adb: port(1),
                    webrtc: port(2),
                    scrcpy: port(3),
                })
            }
            Some("exhausted") => {
                metrics::port_lease("exhausted");
                let kind = answer
                    .get(1)
                    .and_then(|name| PortKind::parse(name))
                    .unwrap_or(PortKind::Adb);
                Err(PortError::Exhausted {
                    kind,
                    node: node.to_owned(),
                    leased: number(2),
                    resting: number(3),
                    total: self.ranges.total(kind),
                })
            }
            _ => {
                metrics::port_lease("index-missing");
                Err(missing(node))
            }
        }
    }

    /// Renews sets of one node in one round trip and says which are still their owner's. One that ran out is still
    /// renewed for as long as no sweep took it back.
    pub async fn renew_many(
        &self,
        node: &str,
        held: &[(String, PortSet)],
        ttl: Duration,
    ) -> Result<Vec<bool>, PortError> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let mut arguments = vec![script::milliseconds(ttl)];
        arguments.extend(held.iter().flat_map(flatten));
        let answer: Vec<i64> = self.run(&RENEW, node, arguments, "renew ports").await?;
        if answer.first() == Some(&-1) {
            return Err(missing(node));
        }
        Ok(answer.into_iter().map(|held| held == 1).collect())
    }

    /// Gives a set back to rest, and says whether any of it was the owner's.
    pub async fn release(
        &self,
        node: &str,
        owner: &str,
        ports: PortSet,
    ) -> Result<bool, PortError> {
        let mut arguments = vec![owner.to_owned()];
        for port in ports.arguments() {
            let reason = RestReason::Returned.to_string();
            arguments.extend([port, milliseconds(self.quarantine), reason]);
        }
        let released: i64 = self.run(&RELEASE, node, arguments, "release ports").await?;
        Ok(released > 0)
    }

    /// Gives a set back that the owner leased and did not use because of what [`probe`] found: those ports rest for as
    /// long as `rest` says, the others are free at once.
    pub async fn reject(
        &self,
        node: &str,
        owner: &str,
        ports: PortSet,
        taken: &[(PortKind, RestReason)],
        rest: Duration,
    ) -> Result<(), PortError> {
        let mut arguments = vec![owner.to_owned()];
        for kind in PortKind::ALL {
            let found = taken.iter().find(|(other, _)| *other == kind);
            let (rest, reason) = found.map_or((Duration::ZERO, RestReason::Returned), |found| {
                metrics::port_quarantined(found.1.as_str());
                (rest, found.1)
            });
            let port = ports.of(kind).to_string();
            arguments.extend([port, milliseconds(rest), reason.to_string()]);
        }
        let _: i64 = self.run(&RELEASE, node, arguments, "reject ports").await?;
        Ok(())
    }

    /// Takes back what [`Self::lease`] may have leased although it answered an error, and says whether there was something.
    /// Nobody has ever seen it, so it is free at once.
    pub async fn take_back(&self, node: &str, owner: &str) -> Result<bool, PortError> {
        let (owner, tried) = (vec![owner.to_owned()], "take ports back");
        let released: i64 = self.run(&RELEASE, node, owner, tried).await?;
        Ok(released > 0)
    }

    /// Takes back, through the quarantine, ports that nobody renewed; bounded, so call it again while `more` is set.
    pub async fn sweep(&self, node: &str) -> Result<Sweep, PortError> {
        let arguments = vec![milliseconds(self.quarantine), SWEEP_LIMIT.to_string()];
        let answer: Vec<i64> = self
            .run(&SWEEP, node, arguments, "sweep expired ports")
            .await?;
        let [expired, woken, more, lost] = answer[..] else {
            return Err(missing(node));
        };
        let sweep = Sweep {
            expired: count(expired),
            woken: count(woken),
            more: more == 1,
            lost: count(lost),
        };
        metrics::ports_expired(sweep.expired);
        Ok(sweep)
    }

    /// Builds the index of a node from what the database knows, where it is missing; says whether it was. Leases that
    /// are in Redis stay, save that the database decides whose a port is; those it adds live for `ttl`. Safe to call from
    /// everywhere at once. One script over all ports of the node: some milliseconds.
    pub async fn rebuild(
        &self,
        node: &str,
        recorded: &Recorded,
        ttl: Duration,
    ) -> Result<bool, PortError> {
        self.build(node, recorded, ttl, false).await
    }

    /// Like [`PortPool::rebuild`], although there is an index, because it contradicts the database. At no moment is there
    /// none, so requests go on beside it.
    pub async fn reconcile(
        &self,
        node: &str,
        recorded: &Recorded,
        ttl: Duration,
    ) -> Result<(), PortError> {
        self.build(node, recorded, ttl, true).await?;
        Ok(())
    }

    async fn build(
        &self,
        node: &str,
        recorded: &Recorded,
        ttl: Duration,
        anew: bool,
    ) -> Result<bool, PortError> {
        let mut arguments = vec![
            u8::from(anew).to_string(),
            script::milliseconds(ttl),
            milliseconds(self.quarantine),
            recorded.held.len().to_string(),
        ];
        arguments.extend(recorded.held.iter().flat_map(flatten));
        for rest in &recorded.resting {
            arguments.extend([rest.kind.to_string(), rest.port.to_string()]);
            arguments.extend([milliseconds(rest.left), rest.reason.to_string()]);
            arguments.push(milliseconds(rest.rested));
        }
        let built: i64 = self
            .run(&REBUILD, node, arguments, "rebuild the port index")
            .await?;
        metrics::ports_rebuilt(built == 1);
        Ok(built == 1)
    }

    /// Lists who holds what, since when and until when, lowest port first. For operators: its cost grows with the sets.
    pub async fn leases(&self, node: &str) -> Result<Vec<HeldSet>, PortError> {
        let answer: Vec<String> = self.run(&LEASES, node, Vec::new(), "list ports").await?;
        inspect::held_sets(&answer).ok_or_else(|| missing(node))
    }

    /// Lists what rests, why, and until when. For operators: its cost grows with the ports.
    pub async fn resting(&self, node: &str) -> Result<Vec<RestingPort>, PortError> {
        let tried = "list resting ports";
        let answer: Vec<String> = self.run(&RESTING, node, Vec::new(), tried).await?;
        inspect::resting_ports(&answer).ok_or_else(|| missing(node))
    }

    async fn run<R: FromValue>(
        &self,
        script: &Script,
        node: &str,
        arguments: Vec<String>,
        tried: &'static str,
    ) -> Result<R, StoreError> {
        let Call { keys, arguments } = self.call(node, arguments);
        let answer: Value = script::run(&self.redis, script, keys, arguments, tried).await?;
        answer.convert().map_err(StoreError::redis(tried))
    }

    /// Like [`Self::run`], and waits for the replicas, if any are to confirm.
    async fn run_confirmed<R: FromValue>(
        &self,
        script: &Script,
        node: &str,
        arguments: Vec<String>,
        tried: &'static str,
    ) -> Result<R, StoreError> {
        if self.replication == Replication::NONE {
            return self.run(script, node, arguments, tried).await;
        }
        let call = self.call(node, arguments);
        let client = self.redis.next();
        let mut answers = script::run_each(client, script, &[call], self.replication, tried).await;
        answers.pop().expect("an answer for each call")
    }

    fn call(&self, node: &str, arguments: Vec<String>) -> Call {
        let mut all = vec![self.keys.ports(node), self.layout.to_string()];
        all.extend(arguments);
        Call {
            keys: vec![self.keys.port_index(node, &self.layout)],
            arguments: all,
        }
    }
}

fn flatten((owner, ports): &(String, PortSet)) -> Vec<String> {
    let mut arguments = vec![owner.clone()];
    arguments.extend(ports.arguments());
    arguments
}

fn missing(node: &str) -> PortError {
    PortError::IndexMissing {
        node: node.to_owned(),
    }
}

fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

/// Milliseconds for a script; none where there is to be no rest.
fn milliseconds(rest: Duration) -> String {
    rest.as_millis().to_string()
}

fn also_resting(resting: u32) -> String {
    if resting == 0 {
        String::new()
    } else {
        format!(", {resting} resting")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhaustion_says_what_is_used_up_and_where() {
        let error = |resting| PortError::Exhausted {
            kind: PortKind::Adb,
            node: "n1".into(),
            leased: 1000 - resting,
            resting,
            total: 1000,
        };

        assert_eq!(
            error(0).to_string(),
            "no free adb port on node n1: 1000 of 1000 leased"
        );
        assert_eq!(
            error(10).to_string(),
            "no free adb port on node n1: 990 of 1000 leased, 10 resting"
        );
    }
}
