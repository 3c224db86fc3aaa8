//! Redlock: one holder, a dead minority tolerated, a lock nobody received released.

use std::time::Duration;

use coordination::redlock::SHORTEST_TTL;
use coordination::{LockError, Redlock};
use futures::future::join_all;

use crate::stores::{redis_url, stores, until};

fn redlock() -> Redlock {
    Redlock::new(vec![redis_url()], SHORTEST_TTL).unwrap()
}

#[tokio::test]
async fn one_of_many_has_the_lock_until_it_is_released_or_dropped() {
    let key = stores().await.keys.key("lock");
    let contenders: Vec<Redlock> = (0..8).map(|_| redlock()).collect();

    let tries = join_all(contenders.iter().map(|contender| contender.lock(&key))).await;
    let mut won: Vec<_> = tries.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(won.len(), 1);
    won.remove(0).release().await;

    let second = contenders[0].lock(&key).await.unwrap();
    assert!(second.is_some());
    drop(second);
    until("the dropped lock is free", async || {
        contenders[1].lock(&key).await.unwrap().is_some()
    })
    .await;
}

#[tokio::test]
async fn a_lock_nobody_received_is_released() {
    let key = stores().await.keys.key("lock");
    let redlock = redlock();
    redlock.lock(&key).await.unwrap().unwrap().release().await;

    for microseconds in [1, 50, 200, 500, 1000] {
        let _ = tokio::time::timeout(Duration::from_micros(microseconds), redlock.lock(&key)).await;
    }

    until("nobody holds the lock", async || {
        redlock.lock(&key).await.unwrap().is_some()
    })
    .await;
}

#[tokio::test]
async fn the_holder_is_told_when_the_lock_is_gone() {
    let stores = stores().await;
    let key = stores.keys.key("lock");
    let held = redlock().lock(&key).await.unwrap().unwrap();

    stores.delete(&key).await;

    held.lost().cancelled().await;
}

/// Masters of their own, as far as keys go: two databases of one Redis, and ports on which nobody listens.
fn masters(alive: u8, dead: u8) -> Redlock {
    let alive =
        (0..alive).map(|database| format!("{}/{database}", redis_url().trim_end_matches('/')));
    let dead = (1..=dead).map(|port| format!("redis://127.0.0.1:{port}"));
    Redlock::new(alive.chain(dead).collect(), SHORTEST_TTL).unwrap()
}

#[tokio::test]
async fn a_dead_minority_is_borne_and_a_dead_majority_is_named() {
    let key = stores().await.keys.key("lock");

    let held = masters(2, 1).lock(&key).await.unwrap();
    let other = masters(2, 1).lock(&key).await.unwrap();
    let lost = masters(1, 2).lock(&key).await;

    assert!(held.is_some() && other.is_none());
    assert!(
        matches!(
            lost,
            Err(LockError::QuorumLost {
                reachable: 1,
                masters: 3
            })
        ),
        "{lost:?}"
    );
}
