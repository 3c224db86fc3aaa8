//! Leases: one holder, who is told of the loss; tokens that only grow; a late write that changes nothing.

use std::time::Duration;

use coordination::{Fence, Leases, Store};
use fred::interfaces::ClientLike;
use futures::future::join_all;
use sqlx::PgPool;

use crate::stores::{Stores, stores, until};

const TTL: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);

fn leases(stores: &Stores, db: &PgPool) -> Leases {
    Leases::new(stores.redis.clone(), db.clone(), stores.keys.clone())
}

#[sqlx::test(migrations = "../../migrations")]
async fn of_many_one_gets_the_lease_and_the_next_a_higher_token(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);

    let tries = join_all((0..20).map(|_| leases.acquire("a", TTL))).await;
    let mut won: Vec<_> = tries.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(won.len(), 1);
    let first = won.remove(0);
    let token = first.token();
    assert!(first.release().await.unwrap());

    let second = leases.acquire("a", TTL).await.unwrap().unwrap();
    assert!(second.token() > token);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_lease_outlives_its_time_to_live_and_ends_when_dropped(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let lease = leases.acquire("a", SHORT).await.unwrap().unwrap();

    let longer = tokio::time::timeout(SHORT * 4, lease.lost().cancelled_owned()).await;
    assert!(longer.is_err(), "renewed, it is not lost");
    assert!(leases.acquire("a", SHORT).await.unwrap().is_none());

    drop(lease);
    until("the dropped lease is free", async || {
        leases.acquire("a", SHORT).await.unwrap().is_some()
    })
    .await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_holder_whose_lease_is_gone_is_told_and_releases_nothing_of_its_successor(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let first = leases.acquire("a", SHORT).await.unwrap().unwrap();

    stores.lose_everything().await;
    let second = leases.acquire("a", TTL).await.unwrap().unwrap();
    first.lost().cancelled().await;

    assert!(second.token() > first.token());
    assert!(!first.release().await.unwrap());
    assert!(leases.acquire("a", TTL).await.unwrap().is_none());
}

#[sqlx::test(migrations = "../../migrations")]
async fn tokens_grow_over_a_redis_that_lost_its_data_or_went_back_in_time(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let mut last = Fence(0);
    for round in 0..6 {
        let lease = leases.acquire("a", TTL).await.unwrap().unwrap();
        assert!(lease.token() > last, "round {round}");
        last = lease.token();
        lease.release().await.unwrap();
        if round % 2 == 0 {
            stores.lose_everything().await;
        } else {
            // A token the database knows and Redis has forgotten.
            last = Fence(last.0 + 10);
            let update = sqlx::query("update coordination.fences set token = $1 where key = 'a'");
            update.bind(last.0).execute(&db).await.unwrap();
        }
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_late_holder_changes_nothing(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let late = leases.acquire("a", TTL).await.unwrap().unwrap();

    let mut tx = db.begin().await.unwrap();
    assert!(late.verify(&mut tx).await.unwrap());
    stores.lose_everything().await;
    // The successor waits for the transaction that proved itself in time.
    let successor = leases.acquire("a", TTL);
    tokio::pin!(successor);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut successor).await;
    assert!(early.is_err());
    tx.commit().await.unwrap();
    let successor = successor.await.unwrap().unwrap();

    let mut tx = db.begin().await.unwrap();
    assert!(!late.guard().verify(&mut tx).await.unwrap());
    assert!(successor.verify(&mut tx).await.unwrap());
}

#[sqlx::test(migrations = "../../migrations")]
async fn many_leases_are_handled_in_one_go(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let names: Vec<String> = (0..300).map(|n| format!("device-{n}")).collect();
    let single = leases.acquire(&names[7], TTL).await.unwrap().unwrap();

    let mine = leases.acquire_many(&names, "me", TTL).await.unwrap();
    assert_eq!(mine.iter().filter(|held| **held).count(), 299);
    assert!(!mine[7]);
    assert!(
        leases
            .acquire_many(&names, "other", TTL)
            .await
            .unwrap()
            .iter()
            .all(|held| !held)
    );
    assert_eq!(leases.acquire_many(&names, "me", TTL).await.unwrap(), mine);

    let pairs: Vec<_> = names
        .iter()
        .map(|name| (name.clone(), "me".to_owned()))
        .collect();
    assert_eq!(leases.renew_many(&pairs, TTL).await.unwrap(), mine);
    assert_eq!(leases.release_many(&pairs).await.unwrap(), mine);
    assert!(
        leases
            .renew_many(&pairs, TTL)
            .await
            .unwrap()
            .iter()
            .all(|held| !held)
    );
    assert!(single.release().await.unwrap());
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_holder_that_cannot_reach_redis_is_told_and_the_next_one_waits_for_the_end_of_the_lease(
    db: PgPool,
) {
    let (cut, stores) = (stores().await, stores().await);
    let cut_off = Leases::new(cut.redis.clone(), db.clone(), stores.keys.clone());
    let lease = cut_off.acquire("a", SHORT * 4).await.unwrap().unwrap();
    cut.redis.quit().await.unwrap();

    let leases = leases(&stores, &db);
    assert!(leases.acquire("a", TTL).await.unwrap().is_none());
    until("the lease has run out", async || {
        leases.acquire("a", TTL).await.unwrap().is_some()
    })
    .await;

    assert!(
        lease.lost().is_cancelled(),
        "told before another could have the lease"
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn an_acquisition_that_nobody_waits_for_leaves_nothing_behind(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);

    for microseconds in [1, 100, 300, 600, 1000, 2000] {
        let _ = tokio::time::timeout(
            Duration::from_micros(microseconds),
            leases.acquire("a", TTL),
        )
        .await;
    }

    until("the lease is free", async || {
        leases.acquire("a", TTL).await.unwrap().is_some()
    })
    .await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn without_the_database_there_is_no_lease_and_the_error_says_so(db: PgPool) {
    let stores = stores().await;
    let healthy = leases(&stores, &db);
    let closed = sqlx::PgPool::connect_lazy_with((*db.connect_options()).clone());
    closed.close().await;

    let error = leases(&stores, &closed)
        .acquire("a", TTL)
        .await
        .unwrap_err();

    assert!(
        error.is_unreachable() && error.store() == Store::PostgreSql,
        "{error}"
    );
    until("the lease is free", async || {
        healthy.acquire("a", TTL).await.unwrap().is_some()
    })
    .await;
}
