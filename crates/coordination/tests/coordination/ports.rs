//! Ports: lowest first, never twice, at rest between two leases, and back after a loss.

use std::collections::HashSet;
use std::time::Duration;

use coordination::{PortError, PortPool, PortRanges, PortSet};
use futures::future::join_all;

use crate::stores::{Stores, stores, until};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

fn pool(stores: &Stores, ranges: PortRanges, quarantine: Duration) -> PortPool {
    PortPool::new(
        stores.redis.clone(),
        stores.keys.clone(),
        ranges,
        quarantine,
    )
}

fn few(count: u16) -> PortRanges {
    PortRanges {
        adb: 5555..=5554 + count,
        ..PortRanges::default()
    }
}

/// Leases as a caller does: builds the index where it is missing.
async fn lease(pool: &PortPool, owner: &str, ttl: Duration) -> Result<PortSet, PortError> {
    loop {
        match pool.lease("n1", owner, ttl).await {
            Err(PortError::IndexMissing { .. }) => pool.rebuild("n1", &[], &[]).await?,
            answer => return answer,
        };
    }
}

fn distinct(sets: &[PortSet]) -> usize {
    sets.iter()
        .flat_map(|set| [set.adb, set.webrtc, set.scrcpy])
        .collect::<HashSet<_>>()
        .len()
}

#[tokio::test]
async fn the_first_two_sets_have_the_lowest_numbers() {
    let stores = stores().await;
    let pool = pool(&stores, PortRanges::default(), LONG);

    let missing = pool.lease("n1", "a", LONG).await;
    let first = lease(&pool, "a", LONG).await.unwrap();
    let second = lease(&pool, "b", LONG).await.unwrap();
    let again = lease(&pool, "a", LONG).await.unwrap();

    assert!(matches!(missing, Err(PortError::IndexMissing { .. })));
    assert_eq!(
        first,
        PortSet {
            adb: 5555,
            webrtc: 8080,
            scrcpy: 27183
        }
    );
    assert_eq!(
        second,
        PortSet {
            adb: 5556,
            webrtc: 8081,
            scrcpy: 27184
        }
    );
    assert_eq!(again, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_leases_are_distinct_and_leave_no_gap() {
    let stores = stores().await;
    let pool = pool(&stores, PortRanges::default(), LONG);

    let owners: Vec<String> = (0..200).map(|n| format!("device-{n}")).collect();
    let sets = join_all(owners.iter().map(|owner| lease(&pool, owner, LONG))).await;
    let sets: Vec<PortSet> = sets.into_iter().map(Result::unwrap).collect();

    assert_eq!(distinct(&sets), 600);
    assert_eq!(sets.iter().map(|set| set.adb).max(), Some(5754));
    assert_eq!(pool.usage("n1").await.unwrap().adb.used, 200);
}

#[tokio::test]
async fn exhaustion_names_the_kind_and_takes_nothing() {
    let stores = stores().await;
    let pool = pool(&stores, few(2), LONG);
    lease(&pool, "a", LONG).await.unwrap();
    let second = lease(&pool, "b", LONG).await.unwrap();

    let third = lease(&pool, "c", LONG).await.unwrap_err();
    pool.release("n1", "b", second).await.unwrap();
    let resting = lease(&pool, "c", LONG).await.unwrap_err();

    assert_eq!(
        third.to_string(),
        "no free adb port on node n1: 2 of 2 leased"
    );
    assert_eq!(
        resting.to_string(),
        "no free adb port on node n1: 1 of 2 leased, 1 resting"
    );
    assert_eq!(pool.usage("n1").await.unwrap().webrtc.used, 1);
}

#[tokio::test]
async fn a_returned_port_rests_before_it_is_leased_again() {
    let stores = stores().await;
    let resting = pool(&stores, PortRanges::default(), LONG);
    let first = lease(&resting, "a", LONG).await.unwrap();

    assert!(!resting.release("n1", "stranger", first).await.unwrap());
    assert!(resting.release("n1", "a", first).await.unwrap());
    assert!(!resting.release("n1", "a", first).await.unwrap());
    let second = lease(&resting, "b", LONG).await.unwrap();

    assert_eq!(second.adb, 5556);
    let brief = pool(&stores, PortRanges::default(), Duration::from_millis(1));
    brief.release("n1", "b", second).await.unwrap();
    until("the shorter rest is over", async || {
        brief.sweep("n1").await.unwrap().woken == 3
    })
    .await;
    assert_eq!(lease(&brief, "c", LONG).await.unwrap(), second);
}

#[tokio::test]
async fn foreign_ports_are_left_alone_and_leased_ones_are_not_touched() {
    let stores = stores().await;
    let pool = pool(&stores, PortRanges::default(), LONG);
    let first = lease(&pool, "a", LONG).await.unwrap();

    let foreign = PortSet {
        adb: 5556,
        webrtc: 8081,
        scrcpy: 27184,
    };
    assert_eq!(pool.quarantine("n1", foreign).await.unwrap(), 3);
    assert_eq!(pool.quarantine("n1", first).await.unwrap(), 0);

    assert_eq!(lease(&pool, "b", LONG).await.unwrap().adb, 5557);
    assert_eq!(
        pool.renew_many("n1", &[("a".into(), first)], LONG)
            .await
            .unwrap(),
        [true]
    );
}

#[tokio::test]
async fn ports_nobody_renews_come_back_by_way_of_the_quarantine() {
    let stores = stores().await;
    let pool = pool(&stores, PortRanges::default(), LONG);
    let dead = lease(&pool, "dead", SHORT).await.unwrap();
    let alive = lease(&pool, "alive", LONG).await.unwrap();

    until("the lease has run out", async || {
        pool.sweep("n1").await.unwrap().expired == 3
    })
    .await;

    let held = [("alive".to_owned(), alive), ("dead".to_owned(), dead)];
    assert_eq!(
        pool.renew_many("n1", &held, LONG).await.unwrap(),
        [true, false]
    );
    let usage = pool.usage("n1").await.unwrap().adb;
    assert_eq!((usage.used, usage.resting, usage.free), (1, 1, 998));
    assert_ne!(lease(&pool, "dead", LONG).await.unwrap(), dead);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_is_rebuilt_once_while_leases_arrive() {
    let stores = stores().await;
    let pool = pool(&stores, PortRanges::default(), LONG);
    let mut held = Vec::new();
    for n in 0..20 {
        let owner = format!("old-{n}");
        held.push((owner.clone(), lease(&pool, &owner, LONG).await.unwrap()));
    }
    let returned = held.pop().unwrap().1;

    stores.lose_everything().await;
    let arrivals: Vec<String> = (0..40).map(|n| format!("new-{n}")).collect();
    let sets = join_all(arrivals.iter().map(async |owner| {
        loop {
            match pool.lease("n1", owner, LONG).await {
                Err(PortError::IndexMissing { .. }) => {
                    pool.rebuild("n1", &held, &[returned]).await.unwrap();
                }
                answer => return answer.unwrap(),
            }
        }
    }))
    .await;

    let all: Vec<PortSet> = sets
        .into_iter()
        .chain(held.iter().map(|(_, set)| *set))
        .collect();
    assert_eq!(distinct(&all), 3 * 59);
    assert!(all.iter().all(|set| set.adb != returned.adb));
    assert!(!pool.rebuild("n1", &[], &[]).await.unwrap());
    assert!(
        pool.renew_many("n1", &held, LONG)
            .await
            .unwrap()
            .into_iter()
            .all(|held| held)
    );
}

#[tokio::test]
async fn other_ranges_ask_for_another_index_and_keep_the_leases() {
    let stores = stores().await;
    let before = pool(&stores, PortRanges::default(), LONG);
    let first = lease(&before, "a", LONG).await.unwrap();

    let after = pool(&stores, few(3), LONG);
    let second = lease(&after, "b", LONG).await.unwrap();

    assert_eq!(second.adb, first.adb + 1);
    assert_eq!(lease(&after, "a", LONG).await.unwrap(), first);
    assert_eq!(after.usage("n1").await.unwrap().adb.total, 3);
}
