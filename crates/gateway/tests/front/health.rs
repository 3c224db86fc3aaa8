//! What `/health` says of the services.

use std::time::{Duration, Instant};

use contracts::Service;
use gateway::front::FrontConfig;
use gateway::front::health::{About, health};
use platform::Clock;
use tower::ServiceExt as _;

use crate::backend::{Backend, nobody};
use crate::door::{Door, directory};

async fn ask(router: &axum::Router) -> serde_json::Value {
    let request = http::Request::get("/health")
        .body(axum::body::Body::empty())
        .unwrap();
    let reply = router.clone().oneshot(request).await.unwrap();
    assert_eq!(reply.status(), 200);
    let body = axum::body::to_bytes(reply.into_body(), usize::MAX)
        .await
        .unwrap();
    serde_json::from_slice(&body).unwrap()
}

fn about() -> About {
    About {
        version: "1.2.3",
        environment: "development",
        clock: Clock::system(),
    }
}

#[tokio::test]
async fn every_service_is_asked_once_for_many_callers_and_one_that_hangs_delays_nobody() {
    let (well, hanging) = (Backend::echo("a").await, Backend::hanging("b").await);
    let mut all = directory(Service::Users, &[nobody("x").await, well.upstream()]);
    all.insert(Service::Apps, vec![hanging.upstream()]);
    let door = Door::before(FrontConfig::default(), all, None).await;
    let router = health(door.upstreams.clone(), about(), || "instance-2".to_owned());

    let began = Instant::now();
    let replies = futures::future::join_all((0..20).map(|_| ask(&router))).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "not 20 times in turn"
    );

    for told in &replies {
        assert_eq!(
            (told["service"].as_str(), told["instance"].as_str()),
            (Some("api-gateway"), Some("instance-2"))
        );
        assert_eq!(
            (told["status"].as_str(), told["version"].as_str()),
            (Some("degraded"), Some("1.2.3"))
        );
        assert_eq!(told["services"]["users"]["status"], "healthy");
        assert_eq!(
            told["services"]["users"]["url"],
            format!("http://{}", well.address)
        );
        assert!(told["services"]["users"]["responseTime"].is_u64());
        assert_eq!(told["services"]["apps"]["error"], "did not answer in time");
        assert_eq!(
            told["services"]["billing"]["error"],
            "no instance is registered"
        );
        assert!(told["services"].get("gateway").is_none());
    }
    assert_eq!((well.hits(), hanging.hits()), (1, 1));
}

#[tokio::test]
async fn all_is_well_when_every_service_answers() {
    let backend = Backend::echo("a").await;
    let services = Service::ALL
        .into_iter()
        .filter(|service| *service != Service::Gateway);
    let all = services
        .map(|service| (service, vec![backend.upstream()]))
        .collect();
    let door = Door::before(FrontConfig::default(), all, None).await;

    let told = ask(&health(door.upstreams.clone(), about(), || {
        "instance-0".to_owned()
    }))
    .await;

    assert_eq!(told["status"], "ok", "{told}");
}
