//! Who waits, who goes first, and who is told to come back.

use futures::future::join_all;
use http::{Method, StatusCode};
use media::job::claim;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{TestApp, picture, small};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn users_take_turns_and_none_has_more_than_its_share(db: PgPool) {
    let app = TestApp::with(db, [("MEDIA_USER_RUNNING", "4")]).await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let (hers, his) = (
        alice.upload(picture(9, 9, [0; 3])).await,
        bob.upload(picture(9, 9, [0; 3])).await,
    );
    for _ in 0..6 {
        alice.stitch(&hers).await;
    }
    for _ in 0..2 {
        bob.stitch(&his).await;
    }
    let mut urgent = small(&hers);
    urgent["priority"] = json!("high");
    let urgent = alice.post("/media/tasks", urgent).await.text("/id");
    let users = |claimed: &[media::job::Work]| {
        let mut users: Vec<_> = claimed
            .iter()
            .map(|work| work.user_id.to_string())
            .collect();
        users.sort_unstable();
        users
    };

    let first = claim(&app.media, 1).await.unwrap();
    assert_eq!(first[0].task_id.as_str(), urgent);
    // She is at work already, so it is his turn, then both.
    assert_eq!(users(&claim(&app.media, 1).await.unwrap()), ["bob"]);
    assert_eq!(
        users(&claim(&app.media, 2).await.unwrap()),
        ["alice", "bob"]
    );
    assert_eq!(
        users(&claim(&app.media, 20).await.unwrap()),
        ["alice", "alice"]
    );
    assert!(
        claim(&app.media, 20).await.unwrap().is_empty(),
        "four of hers are at work"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn claims_at_the_same_moment_never_get_the_same_job(db: PgPool) {
    let app = TestApp::with(db, [("MEDIA_USER_RUNNING", "100")]).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [0; 3])).await;
    for _ in 0..20 {
        alice.stitch(&key).await;
    }

    let claims = join_all((0..8).map(|_| claim(&app.media, 5))).await;

    let mut ids: Vec<_> = claims
        .into_iter()
        .flat_map(Result::unwrap)
        .map(|work| work.id)
        .collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_full_queue_is_said_early_and_exactly(db: PgPool) {
    let app = TestApp::with(db, [("MEDIA_USER_WAITING", "3"), ("MEDIA_WAITING", "5")]).await;
    let alice = app.user("alice").await;
    let key = alice.upload(picture(9, 9, [0; 3])).await;

    let replies = join_all((0..9).map(|_| alice.post("/media/tasks", small(&key)))).await;

    assert_eq!(
        replies
            .iter()
            .filter(|reply| reply.status == StatusCode::CREATED)
            .count(),
        3
    );
    let refused = alice
        .send(
            Method::POST,
            "/media/tasks",
            Some(small(&key)),
            Some("again"),
        )
        .await
        .refused(429, "RATE_LIMITED");
    assert!(refused.headers.contains_key("retry-after"));

    let bob = app.user("bob").await;
    let his = bob.upload(picture(9, 9, [0; 3])).await;
    for _ in 0..2 {
        bob.stitch(&his).await;
    }
    let refused = bob
        .post("/media/tasks", small(&his))
        .await
        .refused(503, "NOT_READY");
    assert!(refused.headers.contains_key("retry-after"));

    app.media.run_jobs().await.unwrap();
    // The key of a refusal is free: the same request goes through when there is room.
    alice
        .send(
            Method::POST,
            "/media/tasks",
            Some(small(&key)),
            Some("again"),
        )
        .await
        .expect(StatusCode::CREATED);
}
