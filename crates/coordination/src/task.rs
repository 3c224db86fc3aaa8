//! The one place where this crate starts a task.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Starts a task whose end its owner sees to: each belongs to a lease, a lock, a run or a registry, and ends with it.
/// This crate stands below the life cycle of the platform and cannot spawn through it.
#[expect(
    clippy::disallowed_methods,
    reason = "the owner's tokens and handles end these tasks"
)]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    tokio::spawn(future)
}

/// The same on a given runtime, for an owner that is asked by threads of others.
pub fn spawn_on<F>(runtime: &Handle, future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    runtime.spawn(future)
}
