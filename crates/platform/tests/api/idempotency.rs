//! The same key, caller and body have one effect and one reply.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use contracts::UserId;
use http::StatusCode;
use platform::idempotency::{Idempotent, Turn};
use platform::{CurrentUser, Platform, Problem, testing};
use serde::Deserialize;
use serde_json::json;
use sqlx::PgPool;

use crate::support::{App, Call};

#[derive(Deserialize, garde::Validate)]
struct Spend {
    #[garde(range(min = 1))]
    amount: i32,
    #[serde(default)]
    #[garde(skip)]
    fails: bool,
}

/// Spends, and dies between the effect and the commit where asked to.
async fn spend(
    State(db): State<PgPool>,
    user: CurrentUser,
    Idempotent { body, key }: Idempotent<Spend>,
) -> Result<Response, Problem> {
    let mut tx = db.begin().await?;
    let turn = match key.claim(&mut tx, user.id.as_str()).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return Ok(reply),
    };
    let number: i64 =
        sqlx::query_scalar("insert into public.spent (amount) values ($1) returning number")
            .bind(body.amount)
            .fetch_one(&mut *tx)
            .await?;
    let reply = turn
        .reply(&mut tx, StatusCode::CREATED, &json!({ "number": number }))
        .await?;
    if body.fails {
        return Err(Problem::not_ready("gone before the commit"));
    }
    tx.commit().await?;
    Ok(reply.into_response())
}

async fn start(db: &PgPool) -> (Platform, App) {
    sqlx::query(
        "create table public.spent (number bigint generated always as identity, amount int)",
    )
    .execute(db)
    .await
    .unwrap();
    let platform = testing::platform(db.clone()).await;
    let routes = Router::new()
        .route("/spend", post(spend))
        .route("/waste", post(spend))
        .with_state(db.clone());
    let app = App::new(&platform, routes);
    (platform, app)
}

async fn spent(db: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from public.spent")
        .fetch_one(db)
        .await
        .unwrap()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn twenty_at_once_have_one_effect_and_one_reply(db: PgPool) {
    let (platform, app) = start(&db).await;
    let token = testing::sign_in(&platform, &UserId::new(), &[]).await;

    let calls = (0..20).map(|_| {
        app.post("/spend", r#"{"amount":5}"#)
            .token(&token)
            .header("idempotency-key", "k")
            .send()
    });
    let replies = futures::future::join_all(calls).await;

    assert_eq!(spent(&db).await, 1);
    let firsts = replies
        .iter()
        .filter(|reply| reply.header("idempotent-replayed").is_empty());
    assert_eq!(firsts.count(), 1);
    for reply in &replies {
        assert_eq!(
            (reply.status, &reply.body),
            (StatusCode::CREATED, &replies[0].body)
        );
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_effect_that_did_not_commit_leaves_the_key_free(db: PgPool) {
    let (platform, app) = start(&db).await;
    let token = testing::sign_in(&platform, &UserId::new(), &[]).await;
    let call = |body: &'static str| {
        app.post("/spend", body)
            .token(&token)
            .header("idempotency-key", "k")
    };

    call(r#"{"amount":5,"fails":true}"#)
        .send()
        .await
        .refused(503, "NOT_READY");
    call(r#"{"amount":0}"#)
        .send()
        .await
        .refused(400, "VALIDATION_FAILED");
    assert_eq!(spent(&db).await, 0);

    let reply = call(r#"{"amount":5}"#).send().await;
    assert_eq!(
        (reply.status, reply.header("idempotent-replayed")),
        (StatusCode::CREATED, "")
    );
    assert_eq!(spent(&db).await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_key_belongs_to_its_caller_route_and_body(db: PgPool) {
    let (platform, app) = start(&db).await;
    let (alice, bob) = (
        testing::sign_in(&platform, &UserId::new(), &[]).await,
        testing::sign_in(&platform, &UserId::new(), &[]).await,
    );
    let call = |path: &str, body: &'static str, token: &str| -> Call {
        app.post(path, body)
            .token(token)
            .header("idempotency-key", "k")
    };

    assert_eq!(
        call("/spend", r#"{"amount":5}"#, &alice)
            .send()
            .await
            .status,
        201
    );
    call("/spend", r#"{"amount":6}"#, &alice)
        .send()
        .await
        .refused(422, "IDEMPOTENCY_MISMATCH");
    assert_eq!(spent(&db).await, 1);
    for (path, token) in [("/spend", &bob), ("/waste", &alice)] {
        let reply = call(path, r#"{"amount":6}"#, token).send().await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("idempotent-replayed")),
            (201, "")
        );
    }
    assert_eq!(spent(&db).await, 3);
    // Without a key each call counts, and a key that is none is refused.
    for _ in 0..2 {
        assert_eq!(
            app.post("/spend", r#"{"amount":5}"#)
                .token(&alice)
                .send()
                .await
                .status,
            201
        );
    }
    assert_eq!(spent(&db).await, 5);
    for key in [String::new(), "k".repeat(129)] {
        let reply = app
            .post("/spend", r#"{"amount":5}"#)
            .token(&alice)
            .header("idempotency-key", key)
            .send()
            .await;
        reply.refused(400, "VALIDATION_FAILED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_first_request_that_is_still_at_work_is_told(db: PgPool) {
    let (platform, app) = start(&db).await;
    let alice = UserId::new();
    let token = testing::sign_in(&platform, &alice, &[]).await;
    let mut first = db.begin().await.unwrap();
    let scope = format!("{alice} POST /spend");
    let day = std::time::Duration::from_secs(86_400);
    coordination::idempotency::claim(&mut first, &scope, "k", b"anything", day)
        .await
        .unwrap();

    let reply = app
        .post("/spend", r#"{"amount":5}"#)
        .token(&token)
        .header("idempotency-key", "k")
        .send()
        .await;

    reply.refused(409, "CONFLICT");
    assert_eq!(reply.header("retry-after"), "1");
    first.rollback().await.unwrap();
}
