//! The threads on which the front door serves its connections. Each has a runtime of its own, so that a request stays on
//! one thread from its first byte to its last: no other thread is woken for it, and none is waited for.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Handle};

/// The threads. They live as long as the process.
#[derive(Clone, Debug)]
pub struct Workers(Arc<[Handle]>);

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// Which worker this thread is, from 1; 0 for every other thread.
pub fn number() -> usize {
    NUMBER.get()
}

impl Workers {
    /// Starts so many threads.
    ///
    /// # Errors
    /// Where the system gives no thread, or a runtime no means to wait for events.
    pub fn start(count: usize) -> io::Result<Self> {
        (1..=count).map(start).collect::<io::Result<_>>().map(Self)
    }

    /// The one that has the least to look after.
    ///
    /// # Panics
    /// Where none was started.
    pub fn idlest(&self) -> &Handle {
        let tasks = |worker: &&Handle| worker.metrics().num_alive_tasks();
        self.0
            .iter()
            .min_by_key(tasks)
            .expect("at least one was started")
    }
}

fn start(number: usize) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name(format!("door-{number}"))
        .spawn(move || {
            NUMBER.set(number);
            // What runs here ends by itself, or with the process.
            runtime.block_on(std::future::pending::<()>());
        })?;
    Ok(handle)
}
