//! HTTP clients for tests.

use std::time::Duration;

use reqwest::{Client, ClientBuilder};

/// A client that keeps connections.
pub fn client() -> Client {
    build(builder())
}

/// A client that connects anew for every request, and so reaches any replica that shares the port.
pub fn fresh() -> Client {
    build(builder().pool_max_idle_per_host(0))
}

fn builder() -> ClientBuilder {
    // The second test of a process finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let follow = reqwest::redirect::Policy::none();
    Client::builder()
        .no_proxy()
        .redirect(follow)
        .timeout(Duration::from_secs(30))
}

fn build(builder: ClientBuilder) -> Client {
    builder.build().expect("nothing in these settings can fail")
}
