//! A session that ended is refused everywhere at once, whatever Redis has lost.

use axum::Router;
use axum::routing::get;
use chrono::TimeDelta;
use contracts::{SessionId, UserId};
use fred::interfaces::KeysInterface;
use platform::auth::Sessions;
use platform::{CurrentUser, Platform, testing};
use sqlx::PgPool;

use crate::redis::PrivateRedis;
use crate::support::{App, until};

async fn two(db: &PgPool) -> (Platform, Platform) {
    let first = testing::platform(db.clone()).await;
    let prefix = first.settings.key_prefix.clone();
    let second = testing::with(db.clone(), |settings| settings.key_prefix = prefix).await;
    (first, second)
}

fn whoami(platform: &Platform) -> App {
    App::new(
        platform,
        Router::new().route("/me", get(async |user: CurrentUser| user.id.to_string())),
    )
}

async fn session_of(db: &PgPool, user: &UserId) -> SessionId {
    let ids: Vec<SessionId> =
        sqlx::query_scalar("select id from platform.sessions where user_id = $1")
            .bind(user)
            .fetch_all(db)
            .await
            .unwrap();
    ids.into_iter().next().unwrap()
}

async fn forget(platform: &Platform, id: &SessionId) {
    let key = platform.keys.key(&format!("session:{id}"));
    let _: () = platform.redis.del(key).await.unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_session_ended_on_one_instance_is_refused_on_another_at_once(db: PgPool) {
    let (first, second) = two(&db).await;
    let alice = UserId::new();
    let token = testing::sign_in(&first, &alice, &[]).await;
    let call = async |platform: &Platform| whoami(platform).get("/me").token(&token).send().await;
    assert_eq!(call(&second).await.text, alice.as_str());
    let id = session_of(&db, &alice).await;

    first
        .auth
        .sessions()
        .end(&id, first.clock.now())
        .await
        .unwrap();

    call(&second).await.refused(401, "UNAUTHENTICATED");
    // Redis may forget all of it.
    forget(&first, &id).await;
    call(&second).await.refused(401, "UNAUTHENTICATED");
    call(&first).await.refused(401, "UNAUTHENTICATED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_key_that_redis_lost_is_made_again_from_the_database(db: PgPool) {
    let (first, second) = two(&db).await;
    let alice = UserId::new();
    let token = testing::sign_in(&first, &alice, &[]).await;
    let id = session_of(&db, &alice).await;

    for platform in [&first, &second, &first] {
        assert_eq!(
            whoami(platform)
                .get("/me")
                .token(&token)
                .send()
                .await
                .status,
            200
        );
        forget(platform, &id).await;
    }

    // What is remembered outlives neither its bound nor the session.
    first
        .clock
        .advance(TimeDelta::days(1) - TimeDelta::seconds(2));
    assert!(
        first
            .auth
            .sessions()
            .is_living(&id, first.clock.now())
            .await
            .unwrap()
    );
    let rest: i64 = first
        .redis
        .pttl(first.keys.key(&format!("session:{id}")))
        .await
        .unwrap();
    assert!((1..=2_000).contains(&rest), "{rest}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn ending_all_others_leaves_the_named_one(db: PgPool) {
    let (first, second) = two(&db).await;
    let (alice, bob) = (UserId::new(), UserId::new());
    let kept = testing::sign_in(&first, &alice, &[]).await;
    let kept_id = session_of(&db, &alice).await;
    let mut others = Vec::new();
    for _ in 0..70 {
        others.push(testing::sign_in(&first, &alice, &[]).await);
    }
    let foreign = testing::sign_in(&first, &bob, &[]).await;

    let ended = first
        .auth
        .sessions()
        .end_others(&alice, Some(&kept_id), first.clock.now())
        .await
        .unwrap();

    assert_eq!(ended.len(), 70);
    let app = whoami(&second);
    for token in &others {
        app.get("/me")
            .token(token)
            .send()
            .await
            .refused(401, "UNAUTHENTICATED");
    }
    assert_eq!(app.get("/me").token(&kept).send().await.status, 200);
    assert_eq!(app.get("/me").token(&foreign).send().await.status, 200);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_session_that_ends_while_it_is_checked_everywhere_stays_ended(db: PgPool) {
    let (first, second) = two(&db).await;
    for _ in 0..20 {
        let alice = UserId::new();
        testing::sign_in(&first, &alice, &[]).await;
        let id = session_of(&db, &alice).await;
        let now = first.clock.now();

        let checks = (0..8).map(|_| second.auth.sessions().is_living(&id, now));
        let (ended, _, _) = tokio::join!(
            first.auth.sessions().end(&id, now),
            forget(&second, &id),
            futures::future::join_all(checks)
        );

        ended.unwrap();
        assert!(!second.auth.sessions().is_living(&id, now).await.unwrap());
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn without_redis_sessions_are_checked_but_none_is_ended_silently(db: PgPool) {
    let redis = PrivateRedis::start().await;
    // A pool of its own: sqlx waits ten seconds for one of its test pools that the test itself has closed.
    let own = PgPool::connect_with(db.connect_options().as_ref().clone());
    let platform = testing::beside(own.await.unwrap(), &redis.url(), |_| {}).await;
    let alice = UserId::new();
    let token = testing::sign_in(&platform, &alice, &[]).await;
    let id = session_of(&db, &alice).await;
    let app = whoami(&platform);

    redis.freeze();
    assert_eq!(app.get("/me").token(&token).send().await.status, 200);
    assert!(
        platform
            .auth
            .sessions()
            .end(&id, platform.clock.now())
            .await
            .is_err()
    );
    assert_eq!(app.get("/me").token(&token).send().await.status, 200);
    // Nor is anybody let in when neither store can tell.
    platform.db.close().await;
    app.get("/me")
        .token(&token)
        .send()
        .await
        .refused(503, "NOT_READY");

    redis.thaw();
    until("Redis is heard again", async || {
        let state: Result<Option<String>, _> = platform.redis.get(platform.keys.key("any")).await;
        state.is_ok()
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn sessions_are_forgotten_a_week_after_they_expired(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let alice = UserId::new();
    testing::sign_in(&platform, &alice, &[]).await;
    let mut conn = db.acquire().await.unwrap();

    for (days, deleted) in [(7, 0), (2, 1)] {
        platform.clock.advance(TimeDelta::days(days));
        let purged = Sessions::purge(&mut conn, platform.clock.now(), 100)
            .await
            .unwrap();
        assert_eq!(purged, deleted);
    }
}
