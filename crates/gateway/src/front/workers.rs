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

    /// Each of them, in the order of their numbers.
    pub fn each(&self) -> impl Iterator<Item = &Handle> {
        self.0.iter()
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test]
    async fn what_lasts_is_spread_over_all_threads_and_stays_where_it_began() {
        let workers = Workers::start(3).unwrap();
        let mut began = BTreeSet::new();
        for _ in 0..3 {
            let (told, number) = tokio::sync::oneshot::channel();
            workers.idlest().spawn(async move {
                told.send(number_after_a_pause().await).unwrap();
                std::future::pending::<()>().await;
            });
            began.insert(number.await.unwrap());
        }

        assert_eq!(began, BTreeSet::from([1, 2, 3]));
        assert_eq!(number(), 0, "a test's thread is no worker");
    }

    async fn number_after_a_pause() -> usize {
        let before = number();
        tokio::task::yield_now().await;
        assert_eq!(before, number());
        before
    }
}
