//! A wire to a Redis on which the first request with a given text is held up, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Ends with the test.
pub struct Proxy {
    pub port: u16,
    /// A request is held.
    pub holds: Arc<AtomicBool>,
    /// The held request was answered.
    pub answered: Arc<AtomicBool>,
    go: CancellationToken,
    _serving: JoinSet<()>,
}

#[derive(Clone)]
struct Wire {
    text: String,
    holds: Arc<AtomicBool>,
    answered: Arc<AtomicBool>,
    go: CancellationToken,
}

impl Proxy {
    pub async fn start(server: u16, text: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let wire = Wire {
            text: text.to_owned(),
            holds: Arc::default(),
            answered: Arc::default(),
            go: CancellationToken::new(),
        };
        let mut serving = JoinSet::new();
        let (holds, answered, go) = (wire.holds.clone(), wire.answered.clone(), wire.go.clone());
        serving.spawn(async move {
            let mut wires = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let redis = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                wires.spawn(wire.clone().carry(client, redis));
            }
        });
        Self {
            port,
            holds,
            answered,
            go,
            _serving: serving,
        }
    }

    /// Lets the held request go on.
    pub fn let_go(&self) {
        self.go.cancel();
    }
}

impl Wire {
    async fn carry(self, client: TcpStream, redis: TcpStream) {
        let (from_client, to_client) = client.into_split();
        let (from_redis, to_redis) = redis.into_split();
        let mine = Arc::new(AtomicBool::new(false));
        tokio::join!(
            self.requests(from_client, to_redis, &mine),
            self.answers(from_redis, to_client, &mine)
        );
    }

    async fn requests(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mine: &AtomicBool) {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            let request = &bytes[..count];
            let text = self.text.as_bytes();
            if request.windows(text.len()).any(|window| window == text)
                && !self.holds.swap(true, Ordering::SeqCst)
            {
                self.go.cancelled().await;
                mine.store(true, Ordering::SeqCst);
            }
            if to.write_all(request).await.is_err() {
                break;
            }
        }
    }

    async fn answers(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mine: &AtomicBool) {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            if mine.load(Ordering::SeqCst) {
                self.answered.store(true, Ordering::SeqCst);
            }
            if to.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
    }
}
