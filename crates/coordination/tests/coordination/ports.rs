//! Ports: lowest first, never twice, at rest between two leases, and back after a loss.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use coordination::port_pool::{RecordedRest, probe};
use coordination::{PortError, PortKind, PortPool, PortRanges, PortSet, Recorded, RestReason};
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
            Err(PortError::IndexMissing { .. }) => {
                pool.rebuild("n1", &Recorded::default(), ttl).await?
            }
            answer => return answer,
        };
    }
}

/// A port on which the database knows a foreign program.
fn at_rest(&(kind, port): &(PortKind, u16)) -> RecordedRest {
    RecordedRest {
        kind,
        port,
        reason: RestReason::ForeignProcess,
        rested: Duration::ZERO,
        left: LONG,
    }
}

fn index(stores: &Stores, ranges: &PortRanges) -> String {
    stores.keys.port_index("n1", &ranges.layout())
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
    assert_eq!(pool.leases("n1").await.unwrap().len(), 200);
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
    assert_eq!(pool.leases("n1").await.unwrap().len(), 1);
    assert_eq!(pool.sweep("n1").await.unwrap().lost, 0);
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
async fn a_set_that_only_the_index_knows_is_taken_back_and_free_at_once() {
    let stores = stores().await;
    let pool = pool(&stores, PortRanges::default(), LONG);
    let first = lease(&pool, "a", LONG).await.unwrap();
    let second = lease(&pool, "b", LONG).await.unwrap();

    assert!(!pool.take_back("n1", "stranger").await.unwrap());
    assert!(pool.take_back("n1", "a").await.unwrap());
    assert!(!pool.take_back("n1", "a").await.unwrap());

    assert_eq!(lease(&pool, "c", LONG).await.unwrap(), first);
    let held = [("b".to_owned(), second)];
    assert_eq!(pool.renew_many("n1", &held, LONG).await.unwrap(), [true]);
    assert_eq!(pool.sweep("n1").await.unwrap().lost, 0);
}

#[tokio::test]
async fn foreign_ports_are_left_alone_and_leased_ones_are_not_touched() {
    let stores = stores().await;
    let pool = pool(&stores, PortRanges::default(), LONG);
    let first = lease(&pool, "a", LONG).await.unwrap();

    let unleased = [(PortKind::Adb, 5556), (PortKind::Webrtc, 8081)];
    let others = [(PortKind::Adb, first.adb), (PortKind::Adb, 1)];
    let recorded = Recorded {
        resting: [unleased, others].concat().iter().map(at_rest).collect(),
        ..Recorded::default()
    };
    pool.reconcile("n1", &recorded, LONG).await.unwrap();

    let resting = pool.resting("n1").await.unwrap();
    let resting: Vec<_> = resting.iter().map(|rest| (rest.kind, rest.port)).collect();
    assert_eq!(resting, unleased);
    let second = lease(&pool, "b", LONG).await.unwrap();
    assert_eq!(
        (second.adb, second.webrtc, second.scrcpy),
        (5557, 8082, 27184)
    );
    assert_eq!(
        pool.renew_many("n1", &[("a".into(), first)], LONG)
            .await
            .unwrap(),
        [true]
    );
}

#[tokio::test]
async fn a_set_with_a_foreign_listener_is_exchanged_and_only_that_port_rests() {
    let stores = stores().await;
    let address = "127.0.0.1".parse().unwrap();
    let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
    let occupied = listener.local_addr().unwrap().port();
    let ranges = PortRanges {
        adb: occupied..=occupied.saturating_add(1),
        ..PortRanges::default()
    };
    let pool = pool(&stores, ranges, LONG);
    let first = lease(&pool, "a", LONG).await.unwrap();

    let taken = probe(address, first).await;
    assert!(taken.contains(&(PortKind::Adb, RestReason::ForeignProcess)));
    let adb = [(PortKind::Adb, RestReason::ForeignProcess)];
    pool.reject("n1", "a", first, &adb, LONG).await.unwrap();

    let resting = pool.resting("n1").await.unwrap();
    assert_eq!(resting.len(), 1, "{resting:?}");
    assert_eq!(
        (resting[0].port, resting[0].reason),
        (occupied, RestReason::ForeignProcess)
    );
    let left = resting[0].until - resting[0].since;
    assert_eq!(left.to_std().unwrap(), LONG);
    let second = lease(&pool, "a", LONG).await.unwrap();
    assert_eq!(
        second,
        PortSet {
            adb: occupied + 1,
            ..first
        }
    );
}

#[tokio::test]
async fn operators_see_who_holds_what_and_what_rests_why() {
    let stores = stores().await;
    let pool = pool(&stores, PortRanges::default(), LONG);
    let first = lease(&pool, "a", LONG).await.unwrap();
    let second = lease(&pool, "b", LONG).await.unwrap();
    lease(&pool, "c", SHORT).await.unwrap();
    pool.release("n1", "a", first).await.unwrap();
    until("the third lease has run out", async || {
        pool.sweep("n1").await.unwrap().expired == 3
    })
    .await;

    let leases = pool.leases("n1").await.unwrap();
    let resting = pool.resting("n1").await.unwrap();

    assert_eq!(leases.len(), 1);
    assert_eq!((&*leases[0].owner, leases[0].ports), ("b", second));
    let lease = leases[0].until - leases[0].since;
    assert_eq!(lease.to_std().unwrap(), LONG);
    let reasons: Vec<_> = resting
        .iter()
        .map(|rest| (rest.kind, rest.port, rest.reason))
        .collect();
    let of = |kind, low| {
        [
            (kind, low, RestReason::Returned),
            (kind, low + 2, RestReason::Expired),
        ]
    };
    let expected = [
        of(PortKind::Adb, 5555),
        of(PortKind::Scrcpy, 27183),
        of(PortKind::Webrtc, 8080),
    ];
    assert_eq!(reasons, expected.concat());
}

#[tokio::test]
async fn each_node_has_ports_of_its_own_and_one_owner_may_have_a_set_on_each() {
    let stores = stores().await;
    let pool = pool(&stores, few(1), LONG);
    for node in ["n1", "n2"] {
        let recorded = Recorded::default();
        pool.rebuild(node, &recorded, LONG).await.unwrap();
    }

    let first = pool.lease("n1", "a", LONG).await.unwrap();
    let second = pool.lease("n2", "a", LONG).await.unwrap();
    pool.release("n1", "a", first).await.unwrap();

    assert_eq!(first, second);
    assert!(pool.leases("n1").await.unwrap().is_empty());
    let held = [("a".to_owned(), second)];
    assert_eq!(pool.renew_many("n2", &held, LONG).await.unwrap(), [true]);
    let full = pool.lease("n2", "b", LONG).await.unwrap_err();
    assert_eq!(
        full.to_string(),
        "no free adb port on node n2: 1 of 1 leased"
    );
}

#[tokio::test]
async fn ports_that_are_due_all_at_once_are_leased_again_one_after_the_other() {
    let stores = stores().await;
    let pool = pool(&stores, few(400), Duration::ZERO);
    let soon = |port| RecordedRest {
        left: Duration::from_millis(1),
        ..at_rest(&(PortKind::Adb, port))
    };
    let recorded = Recorded {
        resting: (5555..5955).map(soon).collect(),
        ..Recorded::default()
    };
    pool.rebuild("n1", &recorded, LONG).await.unwrap();
    assert_eq!(pool.resting("n1").await.unwrap().len(), 400);
    until("they are due", async || {
        let now = pool.resting("n1").await.unwrap();
        now.iter()
            .all(|rest| rest.until < chrono::DateTime::<chrono::Utc>::from(SystemTime::now()))
    })
    .await;

    let mut sets = Vec::new();
    for number in 0..400 {
        let owner = format!("d{number}");
        sets.push(pool.lease("n1", &owner, LONG).await.unwrap());
    }

    assert_eq!(distinct(&sets), 1200);
    let none = pool.lease("n1", "one too many", LONG).await.unwrap_err();
    assert!(
        matches!(none, PortError::Exhausted { resting: 0, .. }),
        "{none}"
    );
}

#[tokio::test]
async fn a_port_that_is_due_behind_hundreds_of_another_kind_is_leased_at_once() {
    let stores = stores().await;
    let pool = pool(&stores, few(2), Duration::ZERO);
    let due = |kind, port, left| RecordedRest {
        left: Duration::from_millis(left),
        ..at_rest(&(kind, port))
    };
    let others = (8081..9080).map(|port| due(PortKind::Webrtc, port, 1));
    let adb = (5555..=5556).map(|port| due(PortKind::Adb, port, 2));
    let recorded = Recorded {
        resting: others.chain(adb).collect(),
        ..Recorded::default()
    };
    pool.rebuild("n1", &recorded, LONG).await.unwrap();
    until("all are due", async || {
        let resting = pool.resting("n1").await.unwrap();
        let now = chrono::DateTime::<chrono::Utc>::from(SystemTime::now());
        resting.len() == 1001 && resting.iter().all(|rest| rest.until < now)
    })
    .await;

    let leased = pool.lease("n1", "a", LONG).await.unwrap();

    assert_eq!((leased.adb, leased.webrtc), (5555, 8080));
    assert_eq!(pool.sweep("n1").await.unwrap().lost, 0);
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
    assert_eq!(pool.leases("n1").await.unwrap().len(), 1);
    assert_eq!(pool.resting("n1").await.unwrap().len(), 3);
    assert_eq!(pool.sweep("n1").await.unwrap().lost, 0);
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
    let rest = |kind| RecordedRest {
        kind,
        port: returned.of(kind),
        reason: RestReason::Returned,
        rested: SHORT,
        left: LONG,
    };
    let recorded = Recorded {
        held: held.clone(),
        resting: PortKind::ALL.map(rest).to_vec(),
    };

    stores.lose_everything().await;
    let arrivals: Vec<String> = (0..40).map(|n| format!("new-{n}")).collect();
    let sets = join_all(arrivals.iter().map(async |owner| {
        loop {
            match pool.lease("n1", owner, LONG).await {
                Err(PortError::IndexMissing { .. }) => {
                    pool.rebuild("n1", &recorded, LONG).await.unwrap();
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
    assert!(!pool.rebuild("n1", &recorded, LONG).await.unwrap());
    let resting = pool.resting("n1").await.unwrap();
    assert!(resting[0].since < resting[0].until - LONG);
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

    let after = pool(&stores, few(4), LONG);
    let second = lease(&after, "b", LONG).await.unwrap();

    assert_eq!(second.adb, first.adb + 1);
    assert_eq!(lease(&after, "a", LONG).await.unwrap(), first);
    // Replicas of both layouts go on, and never give out the same port.
    let third = before.lease("n1", "c", LONG).await.unwrap();
    let fourth = after.lease("n1", "d", LONG).await.unwrap();
    assert_eq!(distinct(&[first, second, third]), 9);
    assert_eq!(fourth.adb, third.adb + 1);
    assert_ne!(fourth.webrtc, third.webrtc);
    let full = after.lease("n1", "e", LONG).await.unwrap_err();
    assert!(full.to_string().contains("of 4 leased"), "{full}");
}

#[tokio::test]
async fn ports_of_a_set_that_another_took_over_are_free_once_when_it_is_rejected() {
    let stores = stores().await;
    let pool = pool(&stores, few(6), LONG);
    let early = lease(&pool, "e", LONG).await.unwrap();
    let other = PortSet {
        adb: early.adb,
        webrtc: 8083,
        scrcpy: 27187,
    };
    let recorded = Recorded {
        held: vec![("x".into(), other)],
        ..Recorded::default()
    };
    pool.reconcile("n1", &recorded, LONG).await.unwrap();

    let foreign = [(PortKind::Adb, RestReason::ForeignProcess)];
    pool.reject("n1", "e", early, &foreign, LONG).await.unwrap();

    assert!(pool.resting("n1").await.unwrap().is_empty());
    assert_eq!(pool.leases("n1").await.unwrap().len(), 1);
    assert_eq!(pool.sweep("n1").await.unwrap().lost, 0);
}

#[tokio::test]
async fn a_loss_is_found_beside_a_port_from_outside_of_the_ranges() {
    let stores = stores().await;
    let pool = pool(&stores, few(5), LONG);
    let outside = PortSet {
        adb: 9555,
        webrtc: 8080,
        scrcpy: 27183,
    };
    let recorded = Recorded {
        held: vec![("old".into(), outside)],
        ..Recorded::default()
    };
    pool.rebuild("n1", &recorded, LONG).await.unwrap();
    assert_eq!(pool.sweep("n1").await.unwrap().lost, 0);

    stores
        .remove(&(index(&stores, &few(5)) + ":free:adb"), "5557")
        .await;

    assert_eq!(pool.sweep("n1").await.unwrap().lost, 1);
}

#[tokio::test]
async fn the_reason_and_the_beginning_of_a_longer_rest_stay_whatever_comes_after() {
    let stores = stores().await;
    let pool = pool(&stores, few(5), LONG);
    let rest = |reason, rested, left| RecordedRest {
        kind: PortKind::Adb,
        port: 5555,
        reason,
        rested,
        left,
    };
    let recorded = Recorded {
        resting: vec![
            rest(RestReason::ForeignProcess, SHORT, LONG),
            rest(RestReason::Returned, LONG, SHORT),
        ],
        ..Recorded::default()
    };

    pool.rebuild("n1", &recorded, LONG).await.unwrap();

    let resting = pool.resting("n1").await.unwrap();
    assert_eq!(resting[0].reason, RestReason::ForeignProcess);
    let span = resting[0].until - resting[0].since;
    assert_eq!(span.to_std().unwrap(), LONG + SHORT);
}

#[tokio::test]
async fn what_the_database_says_stands_above_what_redis_says() {
    let stores = stores().await;
    let pool = pool(&stores, PortRanges::default(), LONG);
    let granted = lease(&pool, "unheard of", LONG).await.unwrap();
    let waiting = lease(&pool, "being created", LONG).await.unwrap();
    let recorded = Recorded {
        held: vec![("known".into(), granted)],
        ..Recorded::default()
    };

    pool.reconcile("n1", &recorded, LONG).await.unwrap();

    let held = [
        ("unheard of".to_owned(), granted),
        ("known".to_owned(), granted),
        ("being created".to_owned(), waiting),
    ];
    assert_eq!(
        pool.renew_many("n1", &held, LONG).await.unwrap(),
        [false, true, true]
    );
    assert!(!pool.release("n1", "unheard of", granted).await.unwrap());
    assert_eq!(pool.leases("n1").await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_owner_whom_the_database_gave_another_set_has_that_and_the_first_one_rests() {
    let stores = stores().await;
    let pool = pool(&stores, PortRanges::default(), LONG);
    let first = lease(&pool, "a", LONG).await.unwrap();
    let other = lease(&pool, "for a", LONG).await.unwrap();
    let rests = PortKind::ALL.map(|kind| at_rest(&(kind, first.of(kind))));
    let recorded = Recorded {
        held: vec![("a".into(), other)],
        resting: rests.to_vec(),
    };

    pool.reconcile("n1", &recorded, LONG).await.unwrap();

    let leases = pool.leases("n1").await.unwrap();
    assert_eq!(
        (leases.len(), &*leases[0].owner, leases[0].ports),
        (1, "a", other)
    );
    let resting = pool.resting("n1").await.unwrap();
    let resting: Vec<_> = resting
        .iter()
        .map(|rest| (rest.port, rest.reason))
        .collect();
    let foreign = RestReason::ForeignProcess;
    let expected = [first.adb, first.scrcpy, first.webrtc].map(|port| (port, foreign));
    assert_eq!(resting, expected);
    let held = [("a".to_owned(), other)];
    assert_eq!(pool.renew_many("n1", &held, LONG).await.unwrap(), [true]);
    assert_eq!(pool.sweep("n1").await.unwrap().lost, 0);
}

#[tokio::test]
async fn a_store_that_drops_a_part_of_the_index_is_found_out() {
    let stores = stores().await;
    let pool = pool(&stores, PortRanges::default(), LONG);
    let held = vec![("a".to_owned(), lease(&pool, "a", LONG).await.unwrap())];
    assert_eq!(pool.sweep("n1").await.unwrap().lost, 0);

    let index = index(&stores, &PortRanges::default());
    stores.delete(&(index + ":free:webrtc")).await;

    assert_eq!(pool.sweep("n1").await.unwrap().lost, 999);
    let recorded = Recorded {
        held,
        ..Recorded::default()
    };
    pool.reconcile("n1", &recorded, LONG).await.unwrap();
    assert_eq!(pool.sweep("n1").await.unwrap().lost, 0);
    let again = lease(&pool, "b", LONG).await.unwrap();
    assert_eq!(again.webrtc, 8081);
}
