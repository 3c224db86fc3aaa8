//! Restarts under load: not one failed request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cluster_tests::{BILLING, GATEWAY};
use reqwest::Client;
use serde_json::json;
use testkit::Cluster;
use tokio::task::JoinSet;

const ROUNDS: usize = 4;

struct Load {
    ended: AtomicBool,
    answered: AtomicUsize,
    failures: std::sync::Mutex<Vec<String>>,
}

/// Asks without pause until told to end; whatever is not a whole 2xx reply is a failure.
async fn ask(load: Arc<Load>, client: Client, url: String, write: bool) {
    while !load.ended.load(Ordering::Relaxed) {
        match once(&client, &url, write).await {
            Ok(()) => _ = load.answered.fetch_add(1, Ordering::Relaxed),
            Err(error) => load
                .failures
                .lock()
                .expect("no caller panics")
                .push(format!("{url}: {error:?}")),
        }
    }
}

async fn once(client: &Client, url: &str, write: bool) -> anyhow::Result<()> {
    let request = match write {
        true => client
            .post(url)
            .json(&json!({ "userId": "restarts", "planId": "basic" })),
        false => client.get(url),
    };
    let reply = request.send().await?;
    let status = reply.status();
    let text = reply.text().await?;
    anyhow::ensure!(status.is_success(), "{status} {text}");
    Ok(())
}

#[tokio::test]
async fn replicas_stopped_and_started_in_a_loop_fail_no_request() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let load = Arc::new(Load {
        ended: AtomicBool::new(false),
        answered: AtomicUsize::new(0),
        failures: Default::default(),
    });
    let mut callers = JoinSet::new();
    // Callers that keep their connections and callers that do not; reads and writes; through the door and directly.
    for (url, write) in [
        (cluster.url(GATEWAY, "/health"), false),
        (cluster.url(GATEWAY, "/api/plans/active"), false),
        (cluster.url(BILLING, "/plans/active"), false),
        (cluster.url(GATEWAY, "/api/billing/orders"), true),
    ] {
        for client in [testkit::client(), testkit::fresh()] {
            callers.spawn(ask(load.clone(), client, url.clone(), write));
        }
    }

    for round in 0..ROUNDS {
        let replica = cluster.replica(round % 3);
        let before = load.answered.load(Ordering::Relaxed);
        replica.sigterm();
        assert!(
            replica.wait_exit().await?.success(),
            "a replica leaves with exit code 0"
        );
        replica.restart().await?;
        assert!(
            load.answered.load(Ordering::Relaxed) > before,
            "the others answer meanwhile"
        );
    }
    load.ended.store(true, Ordering::Relaxed);
    callers.join_all().await;

    let failures = load.failures.lock().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {} failed, such as {:#?}",
        failures.len(),
        load.answered.load(Ordering::Relaxed),
        &failures[..failures.len().min(5)]
    );
    Ok(())
}
