//! Several replicas that allocate ports while Redis loses its data again and again: the database has each port once, and in
//! the end Redis agrees with it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coordination::{PortError, PortKind, PortPool, PortRanges, PortSet, Recorded};
use futures::future::join_all;
use sqlx::PgPool;

use crate::stores::{connect, stores, until};

const REPLICAS: usize = 4;
const CLIENTS: usize = 12;
const DEVICES: usize = 240;
const LOSSES: usize = 12;
/// Short, because a set that was deleted beside a rebuild may be leased by it once more, until that has run out.
const TTL: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_millis(5);

/// A replica with connections of its own.
struct Replica {
    pool: PortPool,
    db: PgPool,
}

#[sqlx::test]
async fn a_loss_of_redis_under_allocation_gives_no_port_twice_and_loses_none(db: PgPool) {
    let table = "create table sets (
        owner text primary key, adb integer unique, webrtc integer unique, scrcpy integer unique)";
    sqlx::query(table).execute(&db).await.unwrap();
    let stores = stores().await;
    let mut replicas = Vec::new();
    for _ in 0..REPLICAS {
        let ranges = PortRanges::default();
        let pool = PortPool::new(connect().await, stores.keys.clone(), ranges, REST);
        replicas.push(Replica {
            pool,
            db: db.clone(),
        });
    }
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));

    let clients = join_all((0..CLIENTS).map(async |client| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= DEVICES {
                break;
            }
            let owner = format!("device-{number}");
            let ports = replicas[client % REPLICAS].create(&owner).await;
            if number % 3 == 0 {
                // Another replica deletes it.
                replicas[(client + 1) % REPLICAS]
                    .delete(&owner, ports)
                    .await;
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let losses = async {
        for loss in 1..=LOSSES {
            let enough = loss * DEVICES / (LOSSES + 2);
            until("more devices exist", async || {
                done.load(Ordering::Relaxed) >= enough
            })
            .await;
            stores.lose_everything().await;
        }
    };
    tokio::join!(clients, losses);

    let recorded = replicas[0].recorded().await;
    assert_eq!(recorded.held.len(), DEVICES - DEVICES.div_ceil(3));
    until("Redis agrees with the database", async || {
        for replica in &replicas {
            replica.keep().await;
        }
        let pool = &replicas[0].pool;
        let lost = pool.sweep("n1").await.unwrap().lost;
        let held = pool.leases("n1").await.unwrap().len() == recorded.held.len();
        lost == 0 && held && pool.resting("n1").await.unwrap().is_empty()
    })
    .await;
    let leases = replicas[0].pool.leases("n1").await.unwrap();
    let mut leases: Vec<_> = leases
        .into_iter()
        .map(|set| (set.owner, set.ports))
        .collect();
    leases.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(leases, recorded.held);
}

impl Replica {
    /// As a service does it: a lease, then the row, and the row decides.
    async fn create(&self, owner: &str) -> PortSet {
        loop {
            let ports = match self.pool.lease("n1", owner, TTL).await {
                Err(PortError::IndexMissing { .. }) => {
                    let recorded = self.recorded().await;
                    self.pool.rebuild("n1", &recorded, TTL).await.unwrap();
                    continue;
                }
                leased => leased.unwrap(),
            };
            let mut insert = sqlx::query("insert into sets values ($1, $2, $3, $4)").bind(owner);
            for kind in PortKind::ALL {
                insert = insert.bind(i32::from(ports.of(kind)));
            }
            match insert.execute(&self.db).await {
                Ok(_) => return ports,
                Err(error) => {
                    let error = error.into_database_error().unwrap();
                    assert!(error.is_unique_violation(), "{error}");
                    self.pool.release("n1", owner, ports).await.unwrap();
                    let recorded = self.recorded().await;
                    self.pool.reconcile("n1", &recorded, TTL).await.unwrap();
                }
            }
        }
    }

    async fn delete(&self, owner: &str, ports: PortSet) {
        let delete = sqlx::query("delete from sets where owner = $1").bind(owner);
        delete.execute(&self.db).await.unwrap();
        self.pool.release("n1", owner, ports).await.unwrap();
    }

    async fn keep(&self) {
        let recorded = self.recorded().await;
        let renewed = self.pool.renew_many("n1", &recorded.held, TTL).await;
        if renewed.map_or(true, |renewed| renewed.contains(&false)) {
            self.pool.reconcile("n1", &recorded, TTL).await.unwrap();
        }
        self.pool.sweep("n1").await.unwrap();
    }

    async fn recorded(&self) -> Recorded {
        let select = "select owner, adb, webrtc, scrcpy from sets order by owner";
        let rows: Vec<(String, i32, i32, i32)> =
            sqlx::query_as(select).fetch_all(&self.db).await.unwrap();
        let number = |port: i32| u16::try_from(port).unwrap();
        let held = rows.into_iter().map(|(owner, adb, webrtc, scrcpy)| {
            let ports = PortSet {
                adb: number(adb),
                webrtc: number(webrtc),
                scrcpy: number(scrcpy),
            };
            (owner, ports)
        });
        Recorded {
            held: held.collect(),
            resting: Vec::new(),
        }
    }
}
