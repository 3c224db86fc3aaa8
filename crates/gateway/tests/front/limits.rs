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
            auth: Limit::per(3, HOUR).tier("auth"),
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
        ("POST", "/api/auth/change-password", "auth", 3),
    ] {
        let mut passed = 0;
        for round in 0..burst + 3 {
            let reply = call(&doors[round % 2], method, path, &alice).await;
            let wanted = [
                "\"address\";q=1000".to_owned(),
                format!("\"{tier}\";q={burst}"),
            ];
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
    let mut refused = 0;
    for round in 0..5 {
        let reply = doors[round % 2].post("/api/auth/login", "{}").await;
        assert_eq!(tiers(&reply), ["\"address\";q=1000", "\"auth\";q=3"]);
        refused += usize::from(reply.status == 429);
    }
    assert_eq!(refused, 2);
    tasks.stopping().cancel();
}
