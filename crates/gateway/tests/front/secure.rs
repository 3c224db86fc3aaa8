//! The front door by TLS: what instances and browsers are told of it, and sockets through it.

use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::routing::any;
use contracts::Service;
use futures::{SinkExt, StreamExt};
use gateway::front::FrontConfig;
use platform::Clock;
use platform::serve::tls::{Certificates, PairFiles, Tls};
use platform::serve::{Drain, Server};
use reqwest::Certificate;
use tempfile::TempDir;
use testkit::Authority;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::backend::{Backend, echo};
use crate::door::{Door, directory};

/// A door by TLS.
struct Secure {
    door: Door,
    authority: Authority,
    port: u16,
    _accepting: AbortOnDropHandle<()>,
    _folder: TempDir,
}

async fn secure(backend: &Backend) -> Secure {
    let config = FrontConfig {
        hsts: 600,
        ..FrontConfig::default()
    };
    let behind = directory(Service::Notifications, &[backend.upstream()]);
    let door = Door::before(config, behind, None).await;
    let (authority, folder) = (Authority::new().unwrap(), TempDir::new().unwrap());
    let issued = authority.issue(&["localhost"]).unwrap();
    let (certificate, key) = issued.write(folder.path()).unwrap();
    let certificates = Certificates::open(PairFiles { certificate, key }, Clock::system()).unwrap();
    let tls = Tls::new(certificates).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Server::new("gateway", door.front.clone(), &Drain::new());
    let accepting = TaskTracker::new().spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            server.serve(Some(&tls), stream, peer);
        }
    });
    Secure {
        door,
        authority,
        port,
        _accepting: AbortOnDropHandle::new(accepting),
        _folder: folder,
    }
}

#[tokio::test]
async fn instances_and_browsers_are_told_that_the_client_came_by_tls() {
    let backend = Backend::echo("a").await;
    let secure = secure(&backend).await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = Certificate::from_pem(secure.authority.certificate().as_bytes()).unwrap();
    let client = || {
        reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([root.clone()])
    };
    let url = format!("https://localhost:{}/notifications", secure.port);

    for client in [client(), client().http1_only()] {
        let reply = client.build().unwrap().get(&url).send().await.unwrap();
        assert_eq!(reply.headers()["strict-transport-security"], "max-age=600");
        let told: serde_json::Value = reply.json().await.unwrap();
        assert_eq!(told["headers"]["x-forwarded-proto"], "https", "{told}");
    }
    let plain = secure.door.get("/notifications").await;
    assert!(!plain.headers.contains_key("strict-transport-security"));
    assert_eq!(plain.json()["headers"]["x-forwarded-proto"], "http");
}

#[tokio::test]
async fn sockets_pass_by_tls() {
    let parrot = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move {
            while let Some(Ok(frame)) = socket.recv().await {
                socket.send(frame).await.ok();
            }
        })
    };
    let router = Router::new().route("/ws/notifications", any(parrot));
    let backend = Backend::serve("a", router.merge(echo("a"))).await;
    let secure = secure(&backend).await;
    // As browsers do: HTTP/1.1 is what is left for sockets.
    let config = secure.authority.client(&["http/1.1"]).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", secure.port))
        .await
        .unwrap();
    let connector = TlsConnector::from(Arc::clone(&config));
    let stream = connector.connect("localhost".try_into().unwrap(), stream);
    let url = format!("wss://localhost:{}/ws/notifications", secure.port);

    let (mut socket, reply) = client_async(url, stream.await.unwrap()).await.unwrap();

    assert_eq!(reply.status(), 101);
    for size in [0, 125, 70_000, 1_000_000] {
        socket.send(Message::binary(vec![7; size])).await.unwrap();
        let back = socket.next().await.unwrap().unwrap();
        assert_eq!(back.into_data().len(), size);
    }
    socket.close(None).await.unwrap();
}
