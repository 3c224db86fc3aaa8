//! Ports under random interleavings: whatever owners, sweeps and losses of Redis do to each other, no port is given to two
//! and none is lost for good.

use std::collections::BTreeMap;
use std::time::Duration;

use coordination::port_pool::RecordedRest;
use coordination::{PortError, PortKind, PortPool, PortRanges, PortSet, Recorded, RestReason};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::stores::{Stores, connect, stores, until};

const NODES: [&str; 2] = ["n1", "n2"];
const OWNERS: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];
const STEPS: u32 = 600;
const FIRM: Duration = Duration::from_secs(120);
const BRIEF: Duration = Duration::from_millis(8);

/// A set somebody was granted.
#[derive(Clone, Copy, Debug)]
struct Grant {
    ports: PortSet,
    /// Whether it was given for a moment only.
    brief: bool,
    /// Whether Redis may have forgotten it: it was given for a moment only, or before a loss.
    doubtful: bool,
}

type Grants = BTreeMap<(&'static str, &'static str), Grant>;

/// What there is beside Redis: sets that owners were granted, and those that the database took from them.
struct World {
    stores: Stores,
    pools: Vec<PortPool>,
    random: StdRng,
    granted: Grants,
    held: Grants,
}

/// Tells the seed where a test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with PORTS_SEED={}", self.0);
        }
    }
}

fn ranges() -> PortRanges {
    PortRanges {
        adb: 5555..=5559,
        webrtc: 8080..=8085,
        scrcpy: 27183..=27189,
    }
}

#[tokio::test]
async fn no_interleaving_gives_a_port_to_two_or_loses_one() {
    let seed = std::env::var("PORTS_SEED").ok();
    let seed = Seed(seed.map_or_else(rand::random, |seed| seed.parse().unwrap()));
    let stores = stores().await;
    let mut world = World::new(stores, seed.0).await;
    for node in NODES {
        world.rebuild(node).await;
    }

    for _ in 0..STEPS {
        if world.random.random_ratio(1, 40) {
            world.stores.lose_everything().await;
            world
                .granted
                .values_mut()
                .for_each(|grant| grant.doubtful = true);
            world
                .held
                .values_mut()
                .for_each(|grant| grant.doubtful = true);
        }
        world.step().await;
        world.check().await;
    }

    world.end().await;
}

impl World {
    async fn new(stores: Stores, seed: u64) -> Self {
        let mut pools = Vec::new();
        for quarantine in [Duration::ZERO, BRIEF, BRIEF] {
            let redis = connect().await;
            let keys = stores.keys.clone();
            pools.push(PortPool::new(redis, keys, ranges(), quarantine));
        }
        Self {
            stores,
            pools,
            random: StdRng::seed_from_u64(seed),
            granted: Grants::new(),
            held: Grants::new(),
        }
    }

    /// Any replica.
    fn pool(&mut self) -> PortPool {
        let at = self.random.random_range(0..self.pools.len());
        self.pools[at].clone()
    }

    async fn step(&mut self) {
        let node = NODES[self.random.random_range(0..NODES.len())];
        let owner = OWNERS[self.random.random_range(0..OWNERS.len())];
        let (granted, held) = (
            self.granted.get(&(node, owner)).copied(),
            self.held.get(&(node, owner)).copied(),
        );
        match (self.random.random_range(0..10), granted, held) {
            (0..=3, None, None) => self.lease(node, owner).await,
            (0..=2, Some(grant), _) => self.commit(node, owner, grant).await,
            (3, Some(grant), _) => self.reject(node, owner, grant.ports).await,
            (4, Some(grant), _) => self.give_up(node, owner, grant).await,
            (5, Some(_), _) => self.lease(node, owner).await,
            (0..=1, None, Some(grant)) => self.delete(node, owner, grant.ports).await,
            (6, ..) => self.quarantine(node).await,
            (7, ..) => tokio::time::sleep(BRIEF / 4).await,
            _ => self.keep(node).await,
        }
    }

    async fn lease(&mut self, node: &'static str, owner: &'static str) {
        let brief = self.random.random_ratio(1, 4);
        let ttl = if brief { BRIEF } else { FIRM };
        match self.pool().lease(node, owner, ttl).await {
            Ok(ports) => {
                let before = self.granted.get(&(node, owner)).copied();
                if let Some(before) = before.filter(|before| before.ports != ports) {
                    assert!(
                        before.doubtful,
                        "{owner} holds {before:?} of {node} already"
                    );
                    self.pool()
                        .release(node, owner, before.ports)
                        .await
                        .unwrap();
                }
                let others = self.granted.iter().chain(&self.held);
                let others = others.filter(|(at, _)| at.0 == node && at.1 != owner);
                let (mut doubtful, shares) = (brief, |set: PortSet| {
                    PortKind::ALL
                        .into_iter()
                        .any(|kind| set.of(kind) == ports.of(kind))
                });
                for ((_, other), grant) in others.filter(|(_, grant)| shares(grant.ports)) {
                    assert!(
                        grant.doubtful,
                        "{ports:?} of {node} given to {owner}, while {other} has {grant:?}"
                    );
                    // Redis has forgotten the other one, whom the database may prefer.
                    doubtful = true;
                }
                self.granted.insert(
                    (node, owner),
                    Grant {
                        ports,
                        brief,
                        doubtful,
                    },
                );
            }
            Err(PortError::Exhausted {
                kind,
                leased,
                resting,
                total,
                ..
            }) => {
                assert_eq!(leased + resting, total, "{kind} ports of {node} are lost");
                self.granted.remove(&(node, owner));
            }
            Err(PortError::IndexMissing { .. }) => self.rebuild(node).await,
            Err(error) => panic!("{error}"),
        }
    }

    /// Writes a set into the database, whose constraints refuse a port that is taken.
    async fn commit(&mut self, node: &'static str, owner: &'static str, grant: Grant) {
        self.granted.remove(&(node, owner));
        let taken = self.held.iter().any(|((of, _), held)| {
            *of == node
                && PortKind::ALL
                    .into_iter()
                    .any(|kind| held.ports.of(kind) == grant.ports.of(kind))
        });
        if taken {
            assert!(grant.doubtful, "the database refused {grant:?}");
            self.give_up(node, owner, grant).await;
            self.reconcile(node).await;
            return;
        }
        // Redis may have given what it forgot to somebody else meanwhile, whom the database will refuse.
        for ((of, _), other) in &mut self.granted {
            other.doubtful |= grant.doubtful && *of == node;
        }
        self.held.insert((node, owner), grant);
    }

    /// Gives a set back that was not used, or dies before it does so.
    async fn give_up(&mut self, node: &'static str, owner: &'static str, grant: Grant) {
        if !(grant.brief && self.random.random_bool(0.5)) {
            self.pool().release(node, owner, grant.ports).await.unwrap();
        }
        self.granted.remove(&(node, owner));
    }

    async fn reject(&mut self, node: &'static str, owner: &'static str, ports: PortSet) {
        let kind = PortKind::ALL[self.random.random_range(0..3)];
        let taken = [(kind, RestReason::ForeignProcess)];
        let pool = self.pool();
        let rejected = pool.reject(node, owner, ports, &taken, BRIEF);
        rejected.await.unwrap();
        self.granted.remove(&(node, owner));
    }

    /// Deletes what stood in the database, and gives its ports back or lets the lease run out.
    async fn delete(&mut self, node: &'static str, owner: &'static str, ports: PortSet) {
        self.held.remove(&(node, owner));
        let held = [(owner.to_owned(), ports)];
        if self.random.random_bool(0.7) {
            self.pool().release(node, owner, ports).await.unwrap();
        } else {
            let _ = self.pool().renew_many(node, &held, BRIEF).await;
        }
    }

    async fn quarantine(&mut self, node: &'static str) {
        let kind = PortKind::ALL[self.random.random_range(0..3)];
        let mut recorded = self.recorded(node);
        recorded.resting.push(RecordedRest {
            kind,
            port: self.random.random_range(ranges().of(kind).clone()),
            reason: RestReason::ForeignProcess,
            rested: Duration::ZERO,
            left: BRIEF,
        });
        self.pool().reconcile(node, &recorded, FIRM).await.unwrap();
    }

    /// What every replica does from time to time: renews what the database knows, puts right what Redis forgot, sweeps.
    async fn keep(&mut self, node: &'static str) {
        let held = self.recorded(node).held;
        self.rebuild(node).await;
        let renewed = self.pool().renew_many(node, &held, FIRM).await.unwrap();
        for ((owner, ports), renewed) in held.iter().zip(&renewed) {
            let grant = self
                .held
                .iter()
                .find(|((of, by), _)| *of == node && by == owner);
            let (_, grant) = grant.unwrap();
            assert!(
                *renewed || grant.doubtful,
                "{owner} lost {ports:?} of {node}"
            );
        }
        if renewed.contains(&false) {
            self.reconcile(node).await;
        }
        let again = self.pool().renew_many(node, &held, FIRM).await.unwrap();
        assert!(!again.contains(&false), "not put right: {held:?} {again:?}");
        for ((of, _), grant) in &mut self.held {
            grant.doubtful &= *of != node;
        }
        assert_eq!(self.pool().sweep(node).await.unwrap().lost, 0);
    }

    fn recorded(&self, node: &str) -> Recorded {
        let held = self.held.iter().filter(|((of, _), _)| *of == node);
        Recorded {
            held: held
                .map(|((_, owner), grant)| ((*owner).to_owned(), grant.ports))
                .collect(),
            resting: Vec::new(),
        }
    }

    async fn rebuild(&mut self, node: &str) {
        let recorded = self.recorded(node);
        self.pool().rebuild(node, &recorded, FIRM).await.unwrap();
    }

    async fn reconcile(&mut self, node: &str) {
        let recorded = self.recorded(node);
        self.pool().reconcile(node, &recorded, FIRM).await.unwrap();
    }

    async fn free(&self, node: &str, kind: PortKind) -> usize {
        let index = self.stores.keys.port_index(node, &ranges().layout());
        self.stores.count(&format!("{index}:free:{kind}")).await
    }

    /// Every port is leased, free or at rest, and in one state only.
    async fn check(&mut self) {
        for node in NODES {
            let leases = match self.pool().leases(node).await {
                Err(PortError::IndexMissing { .. }) => continue,
                leases => leases.unwrap(),
            };
            let resting = self.pool().resting(node).await.unwrap();
            for kind in PortKind::ALL {
                let free = self.free(node, kind).await;
                let resting = resting.iter().filter(|rest| rest.kind == kind).count();
                let total = ranges().of(kind).len();
                assert_eq!(leases.len() + free + resting, total, "{kind} of {node}");
            }
        }
    }

    /// Everything is given back, and everything is free again.
    async fn end(&mut self) {
        let all: Vec<_> = self
            .granted
            .iter()
            .chain(&self.held)
            .map(|(at, grant)| (*at, *grant))
            .collect();
        for ((node, owner), grant) in all {
            self.pool().release(node, owner, grant.ports).await.unwrap();
        }
        self.granted.clear();
        self.held.clear();
        let pool = self.pool();
        for node in NODES {
            until("every port is free", async || {
                pool.rebuild(node, &Recorded::default(), FIRM)
                    .await
                    .unwrap();
                pool.sweep(node).await.unwrap();
                let mut all_free = true;
                for kind in PortKind::ALL {
                    all_free &= self.free(node, kind).await == ranges().of(kind).len();
                }
                all_free
            })
            .await;
            assert!(pool.leases(node).await.unwrap().is_empty());
            assert!(pool.resting(node).await.unwrap().is_empty());
        }
    }
}
