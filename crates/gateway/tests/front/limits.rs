//! Limits that count a user's requests by what they cost, at whichever door and from whichever address.

use std::time::Duration;

use axum::body::Body;
use contracts::{Service, UserId};
use coordination::Limit;
use gateway::front::{FrontConfig, Identities, RateLimits};
use platform::auth::Edge;
use platform::lifecycle::Tasks;
use platform::testing;
use sqlx::PgPool;

use crate::backend::Backend;
use crate::door::{Door, Reply, directory};

const HOUR: Duration = Duration::from_secs(3600);

async fn call(door: &Door, method: &str, path: &str, token: &str) -> Reply {
    let request = door.request(method, path);
    let request = request.header("authorization", format!("Bearer {token}"));
    door.send(request.body(Body::empty()).unwrap()).await
}

fn tiers(reply: &Reply) -> Vec<String> {
    let policies = reply.headers.get_all("ratelimit-policy").iter();
    let mut tiers: Vec<String> = policies
        .map(|policy| policy.to_str().unwrap().replace(";w=3600", ""))
        .collect();
    tiers.sort();
    tiers
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_user_is_limited_over_all_gateways_by_what_the_route_costs(db: PgPool) {
    let platform = testing::platform(db).await;
    let instance = Backend::echo("a").await;
    let config = FrontConfig {
        limits: Some(RateLimits {
            address: Limit::per(1000, HOUR).tier("address"),
            auth: Limit::per(30, HOUR).tier("auth"),
            auth_user: Limit::per(3, HOUR).tier("auth-user"),
            read: Limit::per(10, HOUR).tier("read"),
            write: Limit::per(4, HOUR).tier("write"),
            upload: Limit::per(2, HOUR).tier("upload"),
        }),
        keys: platform.keys.clone(),
        ..FrontConfig::default()
    };
    let tasks = Tasks::new();
    let edge = Edge::new(&platform, &tasks);
    let door = async || {
        let mut directory = directory(Service::Devices, &[instance.upstream()]);
        for service in [Service::Apps, Service::Users] {
            directory.insert(service, vec![instance.upstream()]);
        }
        let identities = Identities::new(edge.clone(), []).unwrap();
        let redis = Some(platform.redis.clone());
        Door::knowing(config.clone(), directory, redis, Some(identities)).await
    };
    let doors = [door().await, door().await];
    let alice = testing::sign_in(&platform, &UserId::new(), &[]).await;
    let bob = testing::sign_in(&platform, &UserId::new(), &[]).await;

    for (method, path, tier, burst) in [
        ("GET", "/api/devices", "read", 10),
        ("DELETE", "/api/devices/7", "write", 4),
        ("POST", "/api/apps/upload", "upload", 2),
        ("POST", "/api/auth/change-password", "auth-user", 3),
    ] {
        let mut passed = 0;
        for round in 0..burst + 3 {
            let reply = call(&doors[round % 2], method, path, &alice).await;
            let mut wanted = vec![
                "\"address\";q=1000".to_owned(),
                format!("\"{tier}\";q={burst}"),
            ];
            if tier == "auth-user" {
                wanted.insert(1, "\"auth\";q=30".to_owned());
            }
            assert_eq!(tiers(&reply), wanted, "{method} {path}");
            assert_eq!(reply.headers["ratelimit-limit"], burst.to_string().as_str());
            if reply.status == 429 {
                reply.expect_problem(429, "RATE_LIMITED");
                assert_eq!(reply.headers["ratelimit-remaining"], "0");
                assert!(reply.headers.contains_key("retry-after"));
            } else {
                passed += 1;
            }
        }
        assert_eq!(passed, burst, "{method} {path}");
        let reply = call(&doors[0], method, path, &bob).await;
        assert_eq!(reply.status, 200, "another user");
    }
    // Who bears no token, or a bad one, is an address; and signing in is dear for one.
    for token in ["x", "y"] {
        let reply = call(&doors[0], "GET", "/api/devices", token).await;
        assert_eq!(tiers(&reply), ["\"address\";q=1000"]);
    }
    // However many users sign in there, they are one address.
    let mut passed = 0;
    for round in 0..40 {
        let user = testing::sign_in(&platform, &UserId::new(), &[]).await;
        let reply = call(&doors[round % 2], "POST", "/api/auth/login", &user).await;
        passed += usize::from(reply.status == 200);
    }
    assert_eq!(passed, 30 - 3 - 3 - 1);
    let reply = doors[0].post("/api/auth/login", "{}").await;
    reply.expect_problem(429, "RATE_LIMITED");
    tasks.stopping().cancel();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_key_is_counted_for_itself_and_its_user_and_whoever_is_unknown_by_his_address_first(
    db: PgPool,
) {
    let platform = testing::platform(db.clone()).await;
    let instance = Backend::echo("a").await;
    let config = FrontConfig {
        limits: Some(RateLimits {
            address: Limit::per(20, HOUR).tier("address"),
            auth: Limit::per(30, HOUR).tier("auth"),
            auth_user: Limit::per(3, HOUR).tier("auth-user"),
            read: Limit::per(4, HOUR).tier("read"),
            write: Limit::per(4, HOUR).tier("write"),
            upload: Limit::per(2, HOUR).tier("upload"),
        }),
        keys: platform.keys.clone(),
        trust_forwarded: true,
        ..FrontConfig::default()
    };
    let tasks = Tasks::new();
    platform.auth.api_keys().follow(&tasks);
    let identities = Identities::new(Edge::new(&platform, &tasks), []).unwrap();
    let directory = directory(Service::Devices, &[instance.upstream()]);
    let redis = Some(platform.redis.clone());
    let door = Door::knowing(config, directory, redis, Some(identities)).await;
    let alice = testing::account(&platform, &["user"]).await;
    let (_, one) = testing::api_key(&platform, &alice, &["*"]).await;
    let (_, other) = testing::api_key(&platform, &alice, &["*"]).await;
    let ask = async |address: &str, header: &str, value: &str| {
        let request = door.request("GET", "/api/devices").header(header, value);
        let request = request.header("x-forwarded-for", address);
        door.send(request.body(Body::empty()).unwrap()).await
    };

    // The first one, which is not known yet, counts as well.
    let wanted = ["\"address\";q=20", "\"read\";q=4", "\"read-key\";q=4"];
    for round in 0..6 {
        let (address, key) = match round % 2 {
            0 => ("198.51.100.1", &one),
            _ => ("198.51.100.2", &other),
        };
        let reply = ask(address, "x-api-key", key).await;
        assert_eq!(tiers(&reply), wanted, "{round}");
        // More keys, or one more address, are not more requests.
        assert_eq!(reply.status == 429, round >= 4, "{round}");
    }
    let (_, another) = testing::api_key(&platform, &alice, &["*"]).await;
    let reply = ask("198.51.100.4", "x-api-key", &another).await;
    reply.expect_problem(429, "RATE_LIMITED");
    // Nor is signing in. Another user has his own.
    let bearer = async |user| format!("Bearer {}", testing::sign_in(&platform, user, &[]).await);
    let reply = ask("198.51.100.3", "authorization", &bearer(&alice).await).await;
    assert_eq!(reply.status, 429);
    let reply = ask(
        "198.51.100.3",
        "authorization",
        &bearer(&UserId::new()).await,
    )
    .await;
    assert_eq!(reply.status, 200);

    // Who is over the limit of his address costs no look into the database: it would not answer.
    let unknown = |n: u8| platform.auth.api_key_secret(&[n; 32]).expose().to_owned();
    for n in 0..20 {
        assert_ne!(
            ask("198.51.100.9", "x-api-key", &unknown(n)).await.status,
            429
        );
    }
    let mut silence = db.begin().await.unwrap();
    sqlx::query("lock table users.api_keys")
        .execute(&mut *silence)
        .await
        .unwrap();
    let reply = ask("198.51.100.9", "x-api-key", &unknown(99)).await;
    reply.expect_problem(429, "RATE_LIMITED");
    silence.rollback().await.unwrap();
    tasks.stopping().cancel();
}
