//! Leases that count only when replicas have confirmed them.

use std::time::Duration;

use coordination::{Leases, PortError, PortPool, PortRanges, Recorded, Replication, StoreError};
use fred::interfaces::ClientLike;
use fred::types::CustomCommand;
use sqlx::PgPool;

use crate::servers::{RedisServer, bare};
use crate::stores::until;

const TTL: Duration = Duration::from_secs(10);
const ONE: Replication = Replication {
    replicas: 1,
    // A busy machine may be slow; what must not be confirmed never is.
    timeout: Duration::from_secs(2),
};

async fn with_replica() -> (RedisServer, RedisServer) {
    let master = RedisServer::start(&[]).await;
    let port = master.port.to_string();
    let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &port]).await;
    (master, replica)
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_lease_is_on_the_replica_before_it_counts(db: PgPool) {
    let (master, replica) = with_replica().await;
    let redis = master.pool().await;
    master.has_replicas(redis.next(), 1).await;
    let leases = Leases::replicated(redis, db, bare(), ONE);
    let behind = replica.pool().await;

    for round in 0..50 {
        let name = format!("n{round}");
        let lease = leases.acquire(&name, TTL).await.unwrap().unwrap();
        let get = CustomCommand::new_static("GET", None::<u16>, false);
        let owner: Option<String> = behind.custom(get, vec![bare().lease(&name)]).await.unwrap();
        assert_eq!(owner.as_deref(), Some(lease.owner()), "round {round}");
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_lease_that_too_few_replicas_confirm_is_given_back(db: PgPool) {
    let (master, replica) = with_replica().await;
    let redis = master.pool().await;
    master.has_replicas(redis.next(), 1).await;
    let leases = Leases::replicated(redis.clone(), db.clone(), bare(), ONE);
    let careless = Leases::new(redis, db, bare());

    replica.signal("STOP");
    let refused = leases.acquire("a", TTL).await.unwrap_err();

    assert!(
        matches!(
            refused,
            StoreError::NotReplicated {
                wanted: 1,
                confirmed: 0,
                ..
            }
        ),
        "{refused}"
    );
    until("it is free", async || {
        careless.acquire("a", TTL).await.unwrap().is_some()
    })
    .await;
    replica.signal("CONT");
    until("it counts again", async || {
        leases
            .acquire("b", TTL)
            .await
            .is_ok_and(|lease| lease.is_some())
    })
    .await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_lease_whose_renewals_nobody_confirms_is_lost(db: PgPool) {
    let (master, replica) = with_replica().await;
    let redis = master.pool().await;
    master.has_replicas(redis.next(), 1).await;
    let leases = Leases::replicated(redis, db, bare(), ONE);
    let ttl = Duration::from_secs(6);
    let lease = leases.acquire("a", ttl).await.unwrap().unwrap();
    let kept = tokio::time::timeout(ttl * 5 / 4, lease.lost().cancelled_owned()).await;
    assert!(kept.is_err(), "renewed and confirmed, it is not lost");

    replica.signal("STOP");

    let lost = lease.lost();
    until("its holder is told", async || lost.is_cancelled()).await;
}

#[tokio::test]
async fn ports_that_no_replica_confirms_are_not_given_out_and_not_lost() {
    let (master, replica) = with_replica().await;
    let redis = master.pool().await;
    master.has_replicas(redis.next(), 1).await;
    let ranges = PortRanges::default();
    let pool = PortPool::new(redis, bare(), ranges, Duration::from_secs(60)).replicated(ONE);
    pool.rebuild("n1", &Recorded::default(), Duration::from_secs(60))
        .await
        .unwrap();
    let first = pool.lease("n1", "a", TTL).await.unwrap();

    replica.signal("STOP");
    let refused = pool.lease("n1", "b", TTL).await.unwrap_err();
    assert!(
        matches!(refused, PortError::Store(StoreError::NotReplicated { .. })),
        "{refused}"
    );
    replica.signal("CONT");

    until("the same ports are given out", async || {
        let second = pool.lease("n1", "b", TTL).await;
        second.is_ok_and(|second| second.adb == first.adb + 1)
    })
    .await;
}
