//! Who may call: users, admins, services, and nobody known from this machine alone.

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use chrono::TimeDelta;
use contracts::{Service, UserId};
use http::Method;
use platform::auth::SERVICE_HEADER;
use platform::http::Query;
use platform::{Admin, Caller, CurrentUser, Platform, testing};
use serde::Deserialize;
use sqlx::PgPool;

use crate::support::App;

#[derive(Deserialize, garde::Validate)]
#[serde(rename_all = "camelCase")]
struct Ask {
    #[garde(skip)]
    user_id: Option<UserId>,
}

async fn for_whom(caller: Caller, Query(ask): Query<Ask>) -> Response {
    match caller.acting_for(ask.user_id) {
        Ok(user) => user.to_string().into_response(),
        Err(problem) => problem.into_response(),
    }
}

fn app(platform: &Platform) -> App {
    let routes = Router::new()
        .route("/me", get(async |user: CurrentUser| user.id.to_string()))
        .route("/admin", get(async |admin: Admin| admin.0.id.to_string()))
        .route("/orders", post(for_whom));
    App::new(platform, routes)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn only_a_living_token_of_ours_makes_a_user(db: PgPool) {
    let platform = testing::platform(db).await;
    let app = app(&platform);
    let alice = UserId::new();
    let token = testing::sign_in(&platform, &alice, &["user"]).await;

    assert_eq!(
        app.get("/me").token(&token).send().await.text,
        alice.as_str()
    );
    assert_eq!(
        app.get("/me")
            .header("authorization", format!("bEARER   {token}"))
            .send()
            .await
            .status,
        200
    );
    app.get("/me").send().await.refused(401, "UNAUTHENTICATED");
    for header in [
        "Basic YTpi",
        "Bearer",
        "Bearer ",
        "Bearer x.y.z",
        &token,
        &format!("Bearer {token}x"),
    ] {
        app.get("/me")
            .header("authorization", header)
            .send()
            .await
            .refused(401, "UNAUTHENTICATED");
    }
    app.get("/me")
        .header("x-user-id", alice.as_str())
        .send()
        .await
        .refused(401, "UNAUTHENTICATED");
    platform.clock.advance(TimeDelta::days(2));
    app.get("/me")
        .token(&token)
        .send()
        .await
        .refused(401, "TOKEN_EXPIRED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_signature_alone_is_no_session(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let token = testing::sign_in(&platform, &UserId::new(), &[]).await;
    sqlx::query("delete from platform.sessions")
        .execute(&db)
        .await
        .unwrap();

    app(&platform)
        .get("/me")
        .token(token)
        .send()
        .await
        .refused(401, "UNAUTHENTICATED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn admins_alone_are_admins_and_exempt_from_the_owner_rule(db: PgPool) {
    let platform = testing::platform(db).await;
    let app = app(&platform);
    let (alice, root) = (UserId::new(), UserId::new());
    let token = testing::sign_in(&platform, &alice, &["user", "administrator"]).await;
    let orders = |user: &UserId| format!("/orders?userId={user}");

    app.get("/admin")
        .token(&token)
        .send()
        .await
        .refused(403, "FORBIDDEN");
    app.post(&orders(&root), "")
        .token(&token)
        .send()
        .await
        .refused(403, "FORBIDDEN");
    assert_eq!(
        app.post("/orders", "").token(&token).send().await.text,
        alice.as_str()
    );
    assert_eq!(
        app.post(&orders(&alice), "")
            .token(&token)
            .send()
            .await
            .text,
        alice.as_str()
    );
    for role in ["admin", "super_admin"] {
        let admin = testing::sign_in(&platform, &root, &[role]).await;
        assert_eq!(
            app.get("/admin").token(&admin).send().await.text,
            root.as_str()
        );
        assert_eq!(
            app.post(&orders(&alice), "")
                .token(&admin)
                .send()
                .await
                .text,
            alice.as_str()
        );
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_sandbox_is_open_to_this_machine_alone(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let app = app(&platform);
    let orders = || app.post("/orders?userId=test", "");

    assert_eq!(orders().send().await.text, "test");
    assert_eq!(
        orders()
            .peer("::1")
            .header("x-forwarded-for", "127.0.0.1")
            .send()
            .await
            .text,
        "test"
    );
    app.post("/orders", "")
        .send()
        .await
        .refused(400, "VALIDATION_FAILED");
    for peer in [
        "10.0.0.1",
        "192.168.0.9",
        "8.8.8.8",
        "fe80::1",
        "::ffff:10.0.0.1",
    ] {
        orders()
            .peer(peer)
            .send()
            .await
            .refused(401, "UNAUTHENTICATED");
        orders()
            .peer(peer)
            .header("x-forwarded-for", "127.0.0.1")
            .send()
            .await
            .refused(401, "UNAUTHENTICATED");
    }
    for hops in [
        "8.8.8.8",
        "127.0.0.1, 10.0.0.1",
        "10.0.0.1, 127.0.0.1",
        "",
        "localhost",
        "127.0.0.1,",
    ] {
        orders()
            .header("x-forwarded-for", hops)
            .send()
            .await
            .refused(401, "UNAUTHENTICATED");
    }
    // A second header counts as much as the first.
    let twice = orders()
        .header("x-forwarded-for", "127.0.0.1")
        .header("x-forwarded-for", "8.8.8.8");
    twice.send().await.refused(401, "UNAUTHENTICATED");
    // A token that is not good does not become nobody.
    orders()
        .token("x")
        .send()
        .await
        .refused(401, "UNAUTHENTICATED");
    orders()
        .header(SERVICE_HEADER, "x")
        .send()
        .await
        .refused(401, "UNAUTHENTICATED");

    let closed = testing::with(db, |settings| settings.sandbox = false).await;
    self::app(&closed)
        .post("/orders?userId=test", "")
        .send()
        .await
        .refused(401, "UNAUTHENTICATED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_service_proves_itself_for_one_method_and_path_and_a_moment(db: PgPool) {
    let platform = testing::platform(db).await;
    let app = app(&platform);
    let sign = |method: Method, path: &str| {
        platform
            .auth
            .service_credential(Service::Devices, platform.clock.now(), &method, path)
    };
    let call = |credential: &str| {
        app.post("/orders?userId=alice", "")
            .peer("8.8.8.8")
            .header(SERVICE_HEADER, credential)
    };

    let good = sign(Method::POST, "/orders");
    assert_eq!(call(&good).send().await.text, "alice");
    let renamed = good.replacen("devices", "billing", 1);
    let (stem, _) = good.rsplit_once('.').unwrap();
    let others = [
        sign(Method::GET, "/orders"),
        sign(Method::POST, "/refunds"),
        renamed,
        stem.to_owned(),
        format!("{stem}."),
        "..".to_owned(),
    ];
    for credential in &others {
        call(credential)
            .send()
            .await
            .refused(401, "UNAUTHENTICATED");
    }
    // It is no user.
    app.get("/me")
        .header(SERVICE_HEADER, sign(Method::GET, "/me"))
        .send()
        .await
        .refused(401, "UNAUTHENTICATED");
    for seconds in [31, -62] {
        platform.clock.advance(TimeDelta::seconds(seconds));
        call(&good).send().await.refused(401, "UNAUTHENTICATED");
    }
}
