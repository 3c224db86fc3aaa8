//! Restarts under load: not one failed request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::ensure;
use cluster_tests::{BILLING, GATEWAY, PATIENCE};
use reqwest::Client;
use serde_json::json;
use testkit::{Cluster, eventually};
use tokio::task::JoinSet;

const ROUNDS: usize = 4;

struct Load {
    ended: AtomicBool,
    answered: AtomicUsize,
    failures: std::sync::Mutex<Vec<String>>,
}

impl Load {
    /// Callers that keep their connections and callers that do not; reads and writes; through the door and directly.
    fn on(cluster: &Cluster) -> (Arc<Self>, JoinSet<()>) {
        let load = Arc::new(Self {
            ended: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            failures: Default::default(),
        });
        let mut callers = JoinSet::new();
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
        (load, callers)
    }

    /// Ends it; not one request may have failed.
    async fn end(&self, callers: JoinSet<()>) {
        self.ended.store(true, Ordering::Relaxed);
        callers.join_all().await;
        let failures = self.failures.lock().expect("no caller panics");
        assert!(
            failures.is_empty(),
            "{} of {} failed, such as {:#?}",
            failures.len(),
            self.answered.load(Ordering::Relaxed),
            &failures[..failures.len().min(5)]
        );
    }
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
    ensure!(status.is_success(), "{status} {text}");
    Ok(())
}

#[tokio::test]
async fn replicas_stopped_and_started_in_a_loop_fail_no_request() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let (load, callers) = Load::on(&cluster);

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
    load.end(callers).await;
    Ok(())
}

#[tokio::test]
async fn a_replica_that_is_asked_to_leave_while_it_starts_fails_no_request() -> anyhow::Result<()> {
    // The ports are open, and the first service answers; others may not yet.
    const MIDST: &str = " listens on ";
    let cluster = Cluster::start(2).await?;
    let (load, callers) = Load::on(&cluster);
    let replica = cluster.replica(1);
    replica.sigterm();
    assert!(replica.wait_exit().await?.success());

    for _ in 0..ROUNDS {
        let before = replica.logs_containing(MIDST).len();
        replica.begin_again()?;
        eventually(
            PATIENCE,
            "a replica in the midst of its start",
            async || {
                ensure!(replica.logs_containing(MIDST).len() > before);
                Ok(())
            },
        )
        .await;
        replica.sigterm();
        assert!(replica.wait_exit().await?.success());
    }
    load.end(callers).await;
    Ok(())
}
