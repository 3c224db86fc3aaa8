//! The registry: lowest slots first, seen by all, and not forgotten because Redis forgot.

use std::time::Duration;

use coordination::{Announcement, Load, Pace, Registry};
use futures::future::join_all;

use crate::stores::{Stores, stores, until};

pub fn announcement(service: &str, replica: usize) -> Announcement {
    Announcement {
        service: service.into(),
        address: format!("127.0.0.1:{}", 40_000 + replica),
        host: "host".into(),
        zone: None,
        pid: 1,
        version: "0.1.0".into(),
        started_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        replica: format!("r{replica}"),
    }
}

fn registry(stores: &Stores) -> Registry {
    let pace = Pace {
        ttl: Duration::from_millis(1500),
        ..Pace::default()
    };
    Registry::with_pace(stores.redis.clone(), stores.keys.clone(), pace)
}

#[tokio::test]
async fn concurrent_joins_get_the_lowest_slots_and_a_free_one_is_used_again() {
    let stores = stores().await;
    let replicas: Vec<Registry> = (0..5).map(|_| registry(&stores)).collect();
    let joins = replicas
        .iter()
        .enumerate()
        .map(|(n, replica)| replica.join(announcement("users", n)));
    let mut members: Vec<_> = join_all(joins)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    members.sort_by_key(coordination::Membership::slot);
    let slots: Vec<String> = members
        .iter()
        .map(coordination::Membership::instance)
        .collect();
    assert_eq!(
        slots,
        [
            "instance-0",
            "instance-1",
            "instance-2",
            "instance-3",
            "instance-4"
        ]
    );

    members.remove(1).leave().await.unwrap();
    let billing = replicas[0].join(announcement("billing", 0)).await.unwrap();
    let again = replicas[0].join(announcement("users", 9)).await.unwrap();

    assert_eq!((billing.slot(), again.slot()), (0, 1));
    let snapshot = replicas[0].read().await.unwrap();
    assert_eq!(snapshot.of("users").len(), 5);
    assert_eq!(snapshot.of("users")[1].announcement.replica, "r9");
}

#[tokio::test]
async fn watchers_see_joins_load_draining_and_leaves() {
    let stores = stores().await;
    let (here, there) = (registry(&stores), registry(&stores));
    let watch = here.watch();
    let member = there.join(announcement("users", 1)).await.unwrap();
    until("the instance is seen", async || {
        watch.borrow().of("users").len() == 1
    })
    .await;

    member.report_load(|| Load {
        outstanding: 7,
        ..Load::default()
    });
    until("its load is seen", async || {
        watch.borrow().of("users")[0].load.outstanding == 7
    })
    .await;
    member.set_draining(true);
    until("it is seen draining", async || {
        watch.borrow().of("users")[0].load.draining
    })
    .await;

    there.leave_all().await.unwrap();
    until("it is seen no more", async || {
        watch.borrow().of("users").is_empty()
    })
    .await;
}

#[tokio::test]
async fn members_return_to_their_slots_after_redis_lost_them_and_nobody_is_missed() {
    let stores = stores().await;
    let (one, two) = (registry(&stores), registry(&stores));
    let first = one.join(announcement("users", 1)).await.unwrap();
    let second = two.join(announcement("users", 2)).await.unwrap();
    let mut watch = one.watch();
    until("both are seen", async || {
        watch.borrow().of("users").len() == 2
    })
    .await;
    watch.mark_unchanged();

    stores.lose_everything().await;
    until("both are back", async || {
        two.read().await.unwrap().of("users").len() == 2
    })
    .await;

    assert_eq!((first.slot(), second.slot()), (0, 1));
    for _ in 0..3 {
        watch.changed().await.unwrap();
        assert_eq!(watch.borrow_and_update().of("users").len(), 2);
    }
}

#[tokio::test]
async fn a_member_whose_slot_was_taken_takes_another() {
    let stores = stores().await;
    let paused = registry(&stores);
    let member = paused.join(announcement("users", 1)).await.unwrap();

    // What a long pause leads to: the lease ran out and a successor has the slot, all before the next heartbeat.
    stores.delete(&(stores.keys.slots() + "users:0")).await;
    let successor = registry(&stores)
        .join(announcement("users", 2))
        .await
        .unwrap();

    if successor.slot() == 0 {
        until("the paused one has moved", async || {
            member.instance() == "instance-1"
        })
        .await;
    }
    until("both are listed", async || {
        paused.read().await.unwrap().of("users").len() == 2
    })
    .await;
}
