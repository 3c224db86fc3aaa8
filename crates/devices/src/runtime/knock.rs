//! Whether anything listens at the endpoint of an engine.

use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// How long an endpoint may take to accept a connection.
const PATIENCE: Duration = Duration::from_millis(500);

/// Opens a connection to an endpoint and closes it. The kernel accepts it while the engine has no time for anything, and
/// nobody does once the engine has ended.
pub async fn listens(endpoint: &str) -> bool {
    let opened = async {
        match endpoint.strip_prefix("unix://") {
            Some(path) => UnixStream::connect(path).await.map(drop),
            None => {
                let address = endpoint
                    .split_once("://")
                    .map_or(endpoint, |(_, rest)| rest);
                TcpStream::connect(address).await.map(drop)
            }
        }
    };
    timeout(PATIENCE, opened)
        .await
        .is_ok_and(|opened| opened.is_ok())
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, UnixListener};

    use super::listens;

    #[tokio::test]
    async fn an_endpoint_listens_until_its_engine_ends() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("tcp://{}", tcp.local_addr().unwrap());
        assert!(listens(&endpoint).await);
        drop(tcp);
        assert!(!listens(&endpoint).await);

        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("docker.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let endpoint = format!("unix://{}", path.display());
        assert!(listens(&endpoint).await);
        drop(unix);
        // The file is still there, as after a kill.
        assert!(!listens(&endpoint).await);
    }
}
