//! How many files, and so connections, the process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

/// More is of no use: every connection costs memory as well.
const ENOUGH: u64 = 1024 * 1024;
/// With fewer a busy replica runs out of them.
const FEW: u64 = 16 * 1024;

/// Raises the process's limit of open files as far as the system lets it. Many systems start programs with 1024, which is
/// the number of connections at which a server begins to refuse.
pub fn raise_open_files() {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => return warn!("the limit of open files is not known: {error}"),
    };
    let wanted = hard.min(ENOUGH);
    let mut limit = soft;
    if soft < wanted {
        match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
            Ok(()) => limit = wanted,
            Err(error) => warn!("the limit of {soft} open files could not be raised: {error}"),
        }
    }
    if limit < FEW {
        warn!(
            "at most {limit} files can be open, connections included: raise the hard limit (`ulimit -Hn`, \
             LimitNOFILE= of systemd)"
        );
    } else {
        info!("at most {limit} files can be open, connections included");
    }
}
