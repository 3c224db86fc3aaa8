//! A private Redis and PostgreSQL that the test itself holds, so that replicas can be given other ones in their place.

use std::path::Path;
use std::thread;

use anyhow::Context as _;
use embedded::{Addresses, SupervisorCommand};
use tokio::sync::oneshot;

use crate::program;

/// The place at the private stores of a folder. Held by a thread of its own, because it is given up where nothing can
/// be awaited.
pub struct PrivateStores {
    addresses: Addresses,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl PrivateStores {
    /// Starts the stores of a folder, or joins them, and waits until both answer.
    pub async fn join(folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.to_owned();
        let supervisor = SupervisorCommand {
            program: program::gateway()?,
            args: vec!["stores".into(), "--dir".into(), folder.clone().into()],
        };
        let (started, starting) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                match embedded::join(&folder, supervisor).await {
                    Ok(stores) => {
                        let addresses = Addresses {
                            redis_url: stores.redis_url.clone(),
                            database_url: stores.database_url.clone(),
                        };
                        let _ = started.send(Ok(addresses));
                        let _ = ended.await;
                        stores.leave().await;
                    }
                    Err(error) => _ = started.send(Err(error)),
                }
            });
        });
        let addresses = starting.await.context("the private stores")??;
        Ok(Self {
            addresses,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// Where they are.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }
}

impl Drop for PrivateStores {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
