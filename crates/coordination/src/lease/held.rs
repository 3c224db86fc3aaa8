//! A lease in its holder's hands.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::keeper::Keeper;
use super::{Fence, Guard, Leases};
use crate::StoreError;

/// Who holds what, as Redis knows it.
#[derive(Debug)]
pub struct Holder {
    pub name: String,
    /// Never used twice.
    pub owner: String,
}

/// A lease that is held. It is renewed at a third of its time to live, together with the others of its [`Leases`],
/// until it is released, dropped or lost. Dropped, it is given back in the background, for five seconds at most.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    holder: Arc<Holder>,
    id: u64,
    token: Fence,
    lost: CancellationToken,
    released: bool,
}

impl Lease {
    pub fn start(
        leases: &Leases,
        holder: Arc<Holder>,
        token: Fence,
        since: Instant,
        ttl: Duration,
    ) -> Self {
        let lost = CancellationToken::new();
        let id = Keeper::keep(leases, holder.clone(), ttl, since, lost.clone());
        Self {
            leases: leases.clone(),
            holder,
            id,
            token,
            lost,
            released: false,
        }
    }

    /// The name that is leased.
    pub fn name(&self) -> &str {
        &self.holder.name
    }

    /// The value that Redis keeps for this holder; no other holder ever has the same.
    pub fn owner(&self) -> &str {
        &self.holder.owner
    }

    /// The fencing token: higher than that of every earlier holder.
    pub fn token(&self) -> Fence {
        self.token
    }

    /// Fires before another can have taken the lease, except where nothing could ([`crate::lease`]): this process or its
    /// machine was stopped, or Redis lost its data or set its clock.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// How long the lease is certainly held if nothing renews it; zero once it is lost. Unlike [`Self::lost`] it needs no
    /// timer to have fired, so it is right also in the first instruction after a pause of this process.
    pub fn remaining(&self) -> Duration {
        let until = self.leases.inner.keeper.valid_until(self.id);
        until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }

    /// What a transaction needs to write for the holder; can be sent elsewhere.
    pub fn guard(&self) -> Guard {
        Guard {
            name: self.holder.name.clone(),
            fence: self.token,
        }
    }

    /// Gives the lease back and says whether it was still held. One round trip; none, at once, where the lease has run
    /// out. What fails, or is no longer waited for, goes on in the background.
    pub async fn release(mut self) -> Result<bool, StoreError> {
        if !self.leases.inner.keeper.forget(self.id) {
            return Ok(false);
        }
        let released = self.leases.release(&self.holder).await?;
        self.released = true;
        Ok(released)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.inner.keeper.forget(self.id);
        if !self.released {
            Keeper::part(&self.leases, self.holder.clone());
        }
    }
}
