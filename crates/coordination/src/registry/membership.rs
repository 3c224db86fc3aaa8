//! One service of this process in the registry.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::entry::Stored;
use super::{Announcement, Load, Registry, instance_name};
use crate::StoreError;

type Report = Box<dyn Fn() -> Load + Send + Sync>;

/// What the heartbeat needs to know about a membership.
pub struct Member {
    announcement: Announcement,
    owner: String,
    slot: AtomicU32,
    draining: AtomicBool,
    report: OnceLock<Report>,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("field", &self.field())
            .finish_non_exhaustive()
    }
}

impl Member {
    pub fn new(announcement: Announcement) -> Self {
        Self {
            announcement,
            owner: Uuid::new_v4().to_string(),
            slot: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            report: OnceLock::new(),
        }
    }

    pub fn service(&self) -> &str {
        &self.announcement.service
    }

    pub fn owner(&self) -> &str {
        &self.owner
    }

    pub fn slot(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    pub fn set_slot(&self, slot: u32) {
        self.slot.store(slot, Ordering::Relaxed);
    }

    /// The field of its entry, which is also the end of its slot's key.
    pub fn field(&self) -> String {
        format!("{}:{}", self.service(), self.slot())
    }

    /// The entry as Redis keeps it.
    pub fn stored(&self) -> String {
        let mut load = self.report.get().map(|report| report()).unwrap_or_default();
        load.draining |= self.draining.load(Ordering::Relaxed);
        // JSON has no infinity; a rate that is none must not lose the entry.
        if !load.requests_per_second.is_finite() {
            load.requests_per_second = 0.0;
        }
        let stored = Stored {
            announcement: self.announcement.clone(),
            load,
        };
        serde_json::to_string(&stored).expect("plain strings and numbers are JSON")
    }
}

/// A slot that this process occupies. Dropped, it is given back in the background.
#[derive(Debug)]
pub struct Membership {
    registry: Registry,
    id: u64,
    member: Arc<Member>,
}

impl Membership {
    pub fn new(registry: Registry, id: u64, member: Arc<Member>) -> Self {
        Self {
            registry,
            id,
            member,
        }
    }

    /// The name of this instance right now: another one after its slot was lost to a successor.
    pub fn instance(&self) -> String {
        instance_name(self.slot())
    }

    /// The slot right now.
    pub fn slot(&self) -> u32 {
        self.member.slot()
    }

    /// Says where every heartbeat gets the load from. It is called on the heartbeat's task and must be quick; only the
    /// first call counts.
    pub fn report_load(&self, report: impl Fn() -> Load + Send + Sync + 'static) {
        let _ = self.member.report.set(Box::new(report));
    }

    /// Says to everybody, at once, whether new requests are wanted.
    pub fn set_draining(&self, draining: bool) {
        self.member.draining.store(draining, Ordering::Relaxed);
        self.registry.inner.beat_now.notify_one();
    }

    /// Gives the slot back. Without Redis it expires by itself.
    pub async fn leave(self) -> Result<(), StoreError> {
        match self.withdraw() {
            Some(member) => self.registry.inner.give_back(&[member]).await,
            None => Ok(()),
        }
    }

    fn withdraw(&self) -> Option<Arc<Member>> {
        let mut members = self.registry.inner.members();
        let at = members.iter().position(|(id, _)| *id == self.id)?;
        Some(members.swap_remove(at).1)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(member) = self.withdraw()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let inner = self.registry.inner.clone();
            runtime.spawn(async move {
                // What fails here expires.
                let _ = inner.give_back(&[member]).await;
            });
        }
    }
}
