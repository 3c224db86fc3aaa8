//! Which instance gets a request.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use contracts::Service;
use futures::future::join_all;
use gateway::front::{Balance, FrontConfig, Locality, Upstream};

use crate::backend::{Backend, nobody};
use crate::door::{Door, directory, eventually};

/// Everyone gets a whole share at once.
fn warm() -> FrontConfig {
    FrontConfig {
        balance: Balance {
            slow_start: Duration::ZERO,
            ..Balance::default()
        },
        ..FrontConfig::default()
    }
}

/// Whoever is left alone is so until the end of a test.
fn for_long() -> FrontConfig {
    FrontConfig {
        ejection: Duration::from_secs(600),
        ..FrontConfig::default()
    }
}

#[tokio::test]
async fn requests_are_spread_over_all_instances() {
    let (a, b, c) = (
        Backend::echo("a").await,
        Backend::echo("b").await,
        Backend::echo("c").await,
    );
    let door = Door::to(Service::Users, &[a.upstream(), b.upstream(), c.upstream()]).await;

    for _ in 0..150 {
        assert_eq!(door.get("/users").await.status, 200);
    }

    // With a fair choice one of three gets fewer than 20 of 150 once in 100 million runs.
    assert!([&a, &b, &c].iter().all(|backend| backend.hits() >= 20));
}

#[tokio::test]
async fn a_busy_instance_gets_no_more_than_an_idle_one() {
    let (busy, idle) = (Backend::hanging("busy").await, Backend::echo("idle").await);
    let door = Door::before(warm(), directory(Service::Users, &[busy.upstream()]), None).await;
    let waiting: Vec<_> = (0..3).map(|_| door.get("/users")).collect();
    let waiting = join_all(waiting);
    tokio::pin!(waiting);
    let reached = eventually("three requests wait", || async { busy.hits() == 3 });
    tokio::select! { _ = &mut waiting => panic!("it never answers"), () = reached => {} }

    door.register(Service::Users, &[busy.upstream(), idle.upstream()]);
    eventually("both are known", || async {
        door.report(Service::Users)["stats"]["instances"] == 2
    })
    .await;
    for _ in 0..30 {
        assert_eq!(door.get("/users").await.json()["by"], "idle");
    }
}

#[tokio::test]
async fn instances_come_and_go_with_the_registry_and_stay_when_it_falls_silent() {
    let (a, b) = (Backend::echo("a").await, Backend::echo("b").await);
    let mut door = Door::to(Service::Users, &[]).await;
    let reply = door.get("/users").await;
    reply.expect_problem(503, "UPSTREAM_DOWN");
    assert_eq!(reply.headers["retry-after"], "1");

    door.register(Service::Users, &[a.upstream()]);
    eventually("the first one answers", || async {
        door.get("/users").await.status == 200
    })
    .await;
    door.register(
        Service::Users,
        &[
            Upstream {
                draining: true,
                ..a.upstream()
            },
            b.upstream(),
        ],
    );
    eventually("the second one answers", || async {
        door.get("/users").await.json()["by"] == "b"
    })
    .await;

    let silent = tokio::sync::watch::channel(Default::default()).0;
    drop(std::mem::replace(&mut door.registry, silent));
    let before = a.hits();
    for _ in 0..20 {
        assert_eq!(door.get("/users").await.json()["by"], "b");
    }
    assert_eq!(a.hits(), before, "one that is leaving gets nothing new");
}

#[tokio::test]
async fn one_that_keeps_failing_is_left_alone_and_comes_back() {
    let (good, bad) = (Backend::echo("good").await, Backend::breaking("bad").await);
    let config = FrontConfig {
        // Longer than a slow machine needs to see it.
        ejection: Duration::from_secs(3),
        ..FrontConfig::default()
    };
    let door = Door::before(
        config,
        directory(Service::Users, &[good.upstream(), bad.upstream()]),
        None,
    )
    .await;

    let state = || door.report(Service::Users)["instances"][1]["state"].clone();
    eventually("it is ejected", || async {
        assert_eq!(
            door.get("/users").await.status,
            200,
            "a safe request is tried elsewhere"
        );
        state() == "OPEN"
    })
    .await;
    assert_eq!(bad.hits(), 5);
    assert_eq!(door.report(Service::Users)["state"], "CLOSED");

    bad.kill().await;
    let healed = Backend::serve_at("bad", bad.address, crate::backend::echo("bad")).await;
    eventually("it is asked again", || async {
        assert_eq!(door.get("/users").await.status, 200);
        healed.hits() > 0
    })
    .await;
    assert_eq!(state(), "CLOSED");
}

#[tokio::test]
async fn the_only_instance_is_never_left_alone() {
    let bad = Backend::breaking("bad").await;
    let door = Door::to(Service::Users, &[bad.upstream()]).await;

    for _ in 0..10 {
        door.post("/users", "x")
            .await
            .expect_problem(502, "UPSTREAM_DOWN");
    }

    assert_eq!(bad.hits(), 10);
    assert_eq!(door.report(Service::Users)["instances"][0]["ejections"], 0);
}

#[tokio::test]
async fn half_of_the_instances_are_never_left_alone() {
    let dead = [
        nobody("a").await,
        nobody("b").await,
        nobody("c").await,
        nobody("d").await,
    ];
    let door = Door::before(for_long(), directory(Service::Users, &dead), None).await;

    for _ in 0..12 {
        door.get("/users")
            .await
            .expect_problem(503, "UPSTREAM_DOWN");
    }

    let report = door.report(Service::Users);
    let ejected = report["instances"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|instance| instance["ejections"] != 0)
        .count();
    assert_eq!(ejected, 2);
    assert_eq!(report["state"], "OPEN");
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_refused_at_once_until_it_does() {
    let gone = nobody("a").await;
    let door = Door::to(Service::Users, std::slice::from_ref(&gone)).await;
    let mut told = HashMap::<String, usize>::new();
    for _ in 0..4 {
        for reply in join_all((0..10).map(|_| door.post("/users", "x"))).await {
            reply.expect_problem(503, "UPSTREAM_DOWN");
            assert!(reply.headers.contains_key("retry-after"));
            *told
                .entry(reply.json()["message"].as_str().unwrap().to_owned())
                .or_default() += 1;
        }
    }
    assert_eq!(told["the service is recovering; try again"], 20);
    assert_eq!(door.report(Service::Users)["state"], "OPEN");

    let back = Backend::serve_at(
        "a",
        gone.address.parse().unwrap(),
        crate::backend::echo("a"),
    )
    .await;
    eventually("it closes again", || async {
        door.get("/users").await.status == 200
    })
    .await;
    assert_eq!(door.report(Service::Users)["state"], "CLOSED");
    assert!(back.hits() > 0);
}

#[tokio::test]
async fn one_that_is_new_gets_a_growing_share() {
    let (old, new) = (Backend::echo("old").await, Backend::echo("new").await);
    let config = FrontConfig {
        balance: Balance {
            slow_start: Duration::from_secs(3),
            ..Balance::default()
        },
        ..FrontConfig::default()
    };
    let door = Door::before(config, directory(Service::Users, &[old.upstream()]), None).await;
    let grown = |index: usize| {
        let report = door.report(Service::Users);
        report["instances"][index]["slowStart"].as_u64()
    };
    eventually("the first one is warm", || async { grown(0) == Some(100) }).await;

    door.register(Service::Users, &[old.upstream(), new.upstream()]);
    eventually("both are known", || async { grown(1).is_some() }).await;
    assert!(grown(1) < Some(100), "its share grows from a small one");
    eventually("it is warm", || async { grown(1) == Some(100) }).await;
    let before = new.hits();
    for _ in 0..100 {
        assert_eq!(door.get("/users").await.status, 200);
    }
    assert!(new.hits() - before >= 25, "{} of 100", new.hits() - before);
}

#[tokio::test]
async fn one_that_lags_far_behind_its_siblings_is_left_alone_until_it_does_no_more() {
    let lags = Arc::new(AtomicBool::new(true));
    let lagging = lags.clone();
    let router = Router::new().fallback(move || {
        let lags = lagging.load(Ordering::Relaxed);
        async move {
            if lags {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    });
    let (a, b) = (Backend::echo("a").await, Backend::echo("b").await);
    let slow = Backend::serve("slow", router).await;
    let config = FrontConfig {
        ejection: Duration::from_millis(300),
        balance: Balance {
            outlier_every: Duration::from_secs(2),
            slow_start: Duration::from_millis(300),
            ..Balance::default()
        },
        ..FrontConfig::default()
    };
    let all = [a.upstream(), b.upstream(), slow.upstream()];
    let door = Door::before(config, directory(Service::Users, &all), None).await;
    let told = || door.report(Service::Users)["instances"][2].clone();

    eventually("it is left alone", || async {
        for reply in join_all((0..30).map(|_| door.get("/users"))).await {
            assert_eq!(reply.status, 200);
        }
        told()["ejectedFor"] == "latency"
    })
    .await;
    let report = door.report(Service::Users);
    assert_eq!(report["stats"]["ejected"], 1);
    assert_eq!(told()["failures"], 0, "it was only slow");

    lags.store(false, Ordering::Relaxed);
    let before = slow.hits();
    eventually("it has its share again", || async {
        assert_eq!(door.get("/users").await.status, 200);
        slow.hits() > before + 10 && told()["slowStart"] == 100
    })
    .await;
}

#[tokio::test]
async fn the_near_one_is_preferred_until_it_is_much_busier_or_gone() {
    let here = Locality {
        host: "here".to_owned(),
        zone: None,
    };
    let near = |backend: &Backend| Upstream {
        locality: here.clone(),
        ..backend.upstream()
    };
    let config = FrontConfig {
        balance: Balance {
            locality: Some(here.clone()),
            ..warm().balance
        },
        ..FrontConfig::default()
    };
    let (local, far) = (Backend::echo("local").await, Backend::echo("far").await);
    let both = [far.upstream(), near(&local)];
    let door = Door::before(config.clone(), directory(Service::Users, &both), None).await;
    for _ in 0..20 {
        assert_eq!(door.get("/users").await.json()["by"], "local");
    }
    local.kill().await;
    for _ in 0..20 {
        assert_eq!(door.post("/users", "x").await.json()["by"], "far");
    }

    let busy = Backend::hanging("busy").await;
    let both = [far.upstream(), near(&busy)];
    let door = Door::before(config, directory(Service::Users, &both), None).await;
    let waiting = join_all((0..5).map(|_| door.post("/users", "x")));
    tokio::pin!(waiting);
    let reached = eventually("five wait", || async { busy.hits() == 5 });
    tokio::select! { _ = &mut waiting => panic!("it never answers"), () = reached => {} }
    for _ in 0..10 {
        assert_eq!(door.post("/users", "x").await.json()["by"], "far");
    }
}

#[tokio::test]
async fn the_operator_says_how_many_may_be_left_alone() {
    for (percent, most) in [(0, 0), (1, 1), (75, 3), (100, 3)] {
        let dead = [
            nobody("a").await,
            nobody("b").await,
            nobody("c").await,
            nobody("d").await,
        ];
        let config = FrontConfig {
            balance: Balance {
                most_ejected_percent: percent,
                ..Balance::default()
            },
            ..for_long()
        };
        let door = Door::before(config, directory(Service::Users, &dead), None).await;

        for _ in 0..15 {
            door.get("/users")
                .await
                .expect_problem(503, "UPSTREAM_DOWN");
        }

        let ejected = &door.report(Service::Users)["stats"]["ejected"];
        assert_eq!(ejected, most, "{percent} %");
    }
}
