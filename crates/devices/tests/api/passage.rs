//! A way to an engine on which an image can be held up in the middle.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use testkit::Engine;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::app::until;

/// How much of an image passes before it is held up.
const PASSES: usize = 32 * 1024;

/// The way.
pub struct Passage {
    folder: tempfile::TempDir,
    gate: Arc<Gate>,
    /// It ends with this.
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Gate {
    closed: AtomicBool,
    held: AtomicBool,
    opened: Notify,
}

impl Passage {
    /// Leads to an engine; images are held up.
    pub fn closed(engine: &Engine) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("docker.sock")).unwrap();
        let engine = PathBuf::from(engine.endpoint().trim_start_matches("unix://"));
        let gate = Arc::new(Gate::default());
        gate.closed.store(true, Ordering::SeqCst);
        let mut serving = JoinSet::new();
        let of = gate.clone();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, engine.clone(), of.clone()));
            }
        });
        Self {
            folder,
            gate,
            _serving: serving,
        }
    }

    /// Where it begins, as settings name it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}/docker.sock", self.folder.path().display())
    }

    /// Waits until an image is held up.
    pub async fn holds(&self) {
        let held = || self.gate.held.load(Ordering::SeqCst);
        until("an image is held up", async || held()).await;
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.gate.closed.store(false, Ordering::SeqCst);
        self.gate.opened.notify_waiters();
    }
}

async fn pass(client: UnixStream, engine: PathBuf, gate: Arc<Gate>) {
    let Ok(engine) = UnixStream::connect(engine).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_engine, mut to_engine) = engine.into_split();
    let asking = async {
        let (mut piece, mut loaded, mut loading) = (vec![0; 16 * 1024], 0, false);
        while let Ok(length @ 1..) = from_client.read(&mut piece).await {
            let piece = &piece[..length];
            loading |= piece.windows(12).any(|window| window == b"/images/load");
            if loading {
                loaded += length;
            }
            if loaded > PASSES {
                let opened = gate.opened.notified();
                if gate.closed.load(Ordering::SeqCst) {
                    gate.held.store(true, Ordering::SeqCst);
                    opened.await;
                }
            }
            if to_engine.write_all(piece).await.is_err() {
                return;
            }
        }
    };
    // Whichever side ends ends both.
    tokio::select! { () = asking => {}, _ = copy(&mut from_engine, &mut to_client) => {} }
}
