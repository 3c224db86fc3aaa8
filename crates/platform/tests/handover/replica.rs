//! One replica: this test binary, run again with its settings in the environment.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, RawQuery};
use axum::routing::{get, post};
use platform::lifecycle::{Lifecycle, Stage};
use platform::listen::Listeners;
use platform::serve::{Drain, Server};

/// How long a replica is busy before its accept stops, when nothing in it runs.
const BUSY: Duration = Duration::from_millis(20);

/// Is a replica where the environment says so; no test of its own.
#[test]
#[ignore = "run by the other tests as a process"]
fn process() {
    let Ok(folder) = std::env::var("REPLICA_FOLDER") else {
        return;
    };
    let addresses: BTreeMap<String, SocketAddr> =
        serde_json::from_str(&std::env::var("REPLICA_ADDRESSES").unwrap()).unwrap();
    tracing_subscriber::fmt()
        .with_env_filter("debug,hyper=info,h2=info")
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    exit(runtime.block_on(live(folder.into(), addresses.into_iter().collect())));
}

async fn live(folder: PathBuf, addresses: Vec<(String, SocketAddr)>) -> i32 {
    let mut life = Lifecycle::new(Duration::from_secs(20)).unwrap();
    let drain = Drain::new();
    let listeners = match Listeners::open(&folder, &addresses).await {
        Ok(listeners) => Arc::new(listeners),
        Err(error) => {
            eprintln!("{error}");
            return 1;
        }
    };
    for (service, address) in &addresses {
        listeners
            .open_private(service, SocketAddr::new(address.ip(), 0))
            .unwrap();
        let server = Server::new("replica", router(), &drain);
        listeners.serve(service, server.handler());
    }
    let announced = drain.clone();
    life.on(Stage::Unregister, "announce", async move |_| {
        announced.announce()
    });
    life.on(Stage::StopAccepting, "listeners", async move |_| {
        std::thread::sleep(BUSY);
        listeners.hand_over().await;
    });
    life.on(Stage::FinishRequests, "requests", async move |left| {
        drain.finish(left).await;
    });
    life.ready();
    life.run().await
}

fn router() -> Router {
    let pid = || async { std::process::id().to_string() };
    Router::new()
        .route("/", get(pid))
        .route(
            "/echo",
            post(async |ConnectInfo(_): ConnectInfo<SocketAddr>, body: String| body),
        )
        .route("/slow", get(slow))
}

async fn slow(RawQuery(query): RawQuery) -> String {
    let wanted = query.unwrap_or_default();
    let milliseconds = wanted.trim_start_matches("milliseconds=").parse().unwrap();
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    std::process::id().to_string()
}
