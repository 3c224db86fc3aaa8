//! What can keep a replica from its private stores.

use std::io;
use std::path::PathBuf;

/// Why the private stores could not be joined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that the stores consist of is not on this machine.
    #[error(
        "{what} not found on this machine: install it with `{install}`, or set REDIS_URL and DATABASE_URL"
    )]
    Missing { what: String, install: &'static str },
    /// The folder cannot be created, read or written.
    #[error(
        "could not use the folder {path} for the private stores (CLOUDPHONE_HOME names another)"
    )]
    Folder { path: PathBuf, source: io::Error },
    /// The supervisor's program did not start.
    #[error("could not start the supervisor of the private stores with {program}")]
    Spawn { program: PathBuf, source: io::Error },
    /// The supervisor started and gave up.
    #[error("the private stores did not start: {reason} (more in {log})")]
    Failed { reason: String, log: PathBuf },
    /// Nothing was heard of the stores for too long.
    #[error("the private stores did not answer in time: {step} (more in {log})")]
    Deadline { step: String, log: PathBuf },
}
