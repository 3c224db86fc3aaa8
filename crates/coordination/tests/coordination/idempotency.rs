//! Idempotency keys: one effect, its answer repeated, and patience that ends.

use std::time::Duration;

use coordination::idempotency::{Claim, claim, purge, store};
use futures::future::join_all;
use serde_json::json;
use sqlx::PgPool;

const DAY: Duration = Duration::from_secs(86_400);

/// A request that is carried out at most once; answers what it was told.
async fn request(db: &PgPool, fingerprint: &[u8]) -> Claim {
    let mut tx = db.begin().await.unwrap();
    let claimed = claim(&mut tx, "orders", "key", fingerprint, DAY)
        .await
        .unwrap();
    if claimed == Claim::Fresh {
        let effect = sqlx::query(
            "insert into coordination.fences (key, token) values (gen_random_uuid()::text, 1)",
        );
        effect.execute(&mut *tx).await.unwrap();
        store(&mut tx, "orders", "key", 201, &json!({"id": "o1"}))
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
    claimed
}

async fn effects(db: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from coordination.fences")
        .fetch_one(db)
        .await
        .unwrap()
}

#[sqlx::test(migrations = "../../migrations")]
async fn of_concurrent_requests_one_acts_and_all_others_repeat_its_answer(db: PgPool) {
    let answers = join_all((0..5).map(|_| request(&db, b"body"))).await;

    let replay = Claim::Replay {
        status: 201,
        body: json!({"id": "o1"}),
    };
    assert_eq!(
        answers
            .iter()
            .filter(|answer| **answer == Claim::Fresh)
            .count(),
        1
    );
    assert_eq!(
        answers.iter().filter(|answer| **answer == replay).count(),
        4
    );
    assert_eq!(effects(&db).await, 1);
    assert_eq!(request(&db, b"another body").await, Claim::Mismatch);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_request_that_rolls_back_gives_the_key_back(db: PgPool) {
    let mut tx = db.begin().await.unwrap();
    assert_eq!(
        claim(&mut tx, "orders", "key", b"body", DAY).await.unwrap(),
        Claim::Fresh
    );
    tx.rollback().await.unwrap();

    assert_eq!(request(&db, b"body").await, Claim::Fresh);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_wait_that_is_too_long_leaves_the_transaction_usable(db: PgPool) {
    let mut slow = db.begin().await.unwrap();
    claim(&mut slow, "orders", "key", b"body", DAY)
        .await
        .unwrap();

    let mut tx = db.begin().await.unwrap();
    sqlx::query("set local lock_timeout = '7s'")
        .execute(&mut *tx)
        .await
        .unwrap();
    assert_eq!(
        claim(&mut tx, "orders", "key", b"body", DAY).await.unwrap(),
        Claim::Running
    );
    assert_eq!(
        claim(&mut tx, "orders", "other", b"body", DAY)
            .await
            .unwrap(),
        Claim::Fresh
    );
    let setting: String = sqlx::query_scalar("select current_setting('lock_timeout')")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();

    assert_eq!(setting, "7s");
}

#[sqlx::test(migrations = "../../migrations")]
async fn expired_keys_are_taken_over_and_purged(db: PgPool) {
    request(&db, b"body").await;
    let expire =
        "update coordination.idempotency_keys set expires_at = now() - interval '1 second'";
    sqlx::query(expire).execute(&db).await.unwrap();

    assert_eq!(request(&db, b"another body").await, Claim::Fresh);
    assert_eq!(effects(&db).await, 2);
    sqlx::query(expire).execute(&db).await.unwrap();
    let mut conn = db.acquire().await.unwrap();
    assert_eq!(purge(&mut conn, 10).await.unwrap(), 1);
    assert_eq!(purge(&mut conn, 10).await.unwrap(), 0);
}
