//! Asking the masters to let a lock live longer.

use std::time::Duration;

use futures::Stream;
use futures::stream::FuturesUnordered;

use super::master::Master;

/// What a quorum of the masters says about a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is still ours, and lives for its whole time again.
    Held,
    /// So many no longer know it as ours that the others are no quorum.
    Gone,
    /// Neither: some do not answer.
    Unknown,
}

/// Counts answers.
#[derive(Debug)]
pub struct Tally {
    masters: usize,
    ours: usize,
    gone: usize,
}

impl Tally {
    pub fn of(masters: &[Master]) -> Self {
        Self {
            masters: masters.len(),
            ours: 0,
            gone: 0,
        }
    }

    /// One answer: whether the lock is ours there; `None` where there was none in time.
    pub fn count(&mut self, answer: Option<bool>) {
        match answer {
            Some(true) => self.ours += 1,
            Some(false) => self.gone += 1,
            None => {}
        }
    }

    pub fn said(&self) -> Said {
        let quorum = self.masters / 2 + 1;
        if self.ours >= quorum {
            Said::Held
        } else if self.masters - self.gone < quorum {
            Said::Gone
        } else {
            Said::Unknown
        }
    }
}

/// Asks all masters at once, each for a second at most, and gives their answers as they come.
pub fn ask<'a>(
    masters: &'a [Master],
    key: &'a [u8],
    owner: &'a [u8],
    ttl: Duration,
) -> impl Stream<Item = Option<bool>> + 'a {
    let asked = masters
        .iter()
        .map(move |master| master.renew(key, owner, ttl));
    asked.collect::<FuturesUnordered<_>>()
}
