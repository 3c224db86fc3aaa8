//! Snapshots: what was on a device at a moment, to be brought back later. Each is taken, restored and removed by an
//! operation of its device, so that what is asked next waits for what was asked before.

pub mod api;
pub mod copies;
pub mod db;
pub mod jobs;
pub mod steps;

use contracts::{DeviceId, SnapshotId, Timestamp, UserId};
use serde::{Deserialize, Serialize};

use crate::device::Status as DeviceStatus;
use crate::error::{Error, Result};
use crate::operation::{Decision, Kind};

names! {
    /// Where a snapshot stands. Clients never see the last one.
    Status, "status" {
        /// It is being taken, or will be.
        Creating = "creating",
        /// It can be restored.
        Ready = "ready",
        /// Its device is being made of it.
        Restoring = "restoring",
        /// It could not be taken.
        Error = "error",
        /// Deleted by its owner; its space is not free yet.
        Deleting = "deleting",
    }
}

/// A snapshot as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Of which device.
    pub device_id: DeviceId,
    /// The owner of that device.
    pub user_id: UserId,
    /// What its maker calls it.
    pub name: String,
    /// What its maker says about it.
    pub description: Option<String>,
    /// Marks of its maker.
    pub tags: Vec<String>,
    /// Where it stands.
    #[sqlx(try_from = "String")]
    pub status: Status,
    /// Bytes; 0 until it is ready.
    pub size: i64,
    /// Why it is in error.
    pub error: Option<String>,
    /// Who asked for it.
    pub created_by: UserId,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// A snapshot as clients see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Snapshot)]
pub struct SnapshotView {
    id: SnapshotId,
    device_id: DeviceId,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[schema(inline)]
    status: Status,
    /// Bytes; 0 while it is being taken.
    size: i64,
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    created_by: UserId,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl Snapshot {
    /// How clients see it.
    pub fn view(self) -> SnapshotView {
        SnapshotView {
            id: self.id,
            device_id: self.device_id,
            name: self.name,
            description: self.description,
            status: self.status,
            size: self.size,
            tags: self.tags,
            error: self.error,
            created_by: self.created_by,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// Decides whether a device takes a restore in its status; `waits` where something is queued and has not begun.
pub fn decide(status: DeviceStatus, waits: bool) -> Decision {
    use DeviceStatus as On;
    match status {
        On::Deleting | On::Deleted => Decision::Refuse,
        // An earlier snapshot is the way out of an error.
        On::Running | On::Stopped | On::Error if !waits => {
            Decision::Begin(Kind::Restore, On::Rebooting)
        }
        On::Running
        | On::Stopped
        | On::Error
        | On::Creating
        | On::Starting
        | On::Stopping
        | On::Rebooting => Decision::Queue(Kind::Restore),
    }
}

/// Where a device shall be when a restore is over: where it was before.
pub fn after_restore(before: DeviceStatus, wanted: DeviceStatus) -> DeviceStatus {
    match before {
        DeviceStatus::Running => DeviceStatus::Running,
        DeviceStatus::Stopped => DeviceStatus::Stopped,
        DeviceStatus::Creating
        | DeviceStatus::Starting
        | DeviceStatus::Stopping
        | DeviceStatus::Rebooting
        | DeviceStatus::Error
        | DeviceStatus::Deleting
        | DeviceStatus::Deleted => wanted,
    }
}

/// Refuses one snapshot more than a device or its owner may have.
pub fn room((of_device, of_user): (i64, i64), (per_device, per_user): (i64, i64)) -> Result<()> {
    let full = |(quota, key), current, limit| Error::QuotaExceeded {
        quota,
        key,
        current,
        limit,
    };
    if of_device >= per_device {
        return Err(full(
            ("snapshots of a device", "snapshotsPerDevice"),
            of_device,
            per_device,
        ));
    }
    if of_user >= per_user {
        return Err(full(("snapshots", "snapshotsPerUser"), of_user, per_user));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_begins_on_a_resting_device_and_waits_on_a_moving_one() {
        let begin = Decision::Begin(Kind::Restore, DeviceStatus::Rebooting);
        for status in DeviceStatus::ALL {
            let alone = match status {
                DeviceStatus::Running | DeviceStatus::Stopped | DeviceStatus::Error => begin,
                DeviceStatus::Deleting | DeviceStatus::Deleted => Decision::Refuse,
                _ => Decision::Queue(Kind::Restore),
            };
            assert_eq!(decide(*status, false), alone, "{status}");
            assert_ne!(decide(*status, true), begin, "{status}");
        }
    }

    #[test]
    fn the_last_place_is_taken_and_no_further_one() {
        for (used, limits, exceeded) in [
            ((9, 9), (10, 200), None),
            ((10, 10), (10, 200), Some("snapshots of a device")),
            ((0, 200), (10, 200), Some("snapshots")),
        ] {
            match (room(used, limits), exceeded) {
                (Ok(()), None) => {}
                (Err(Error::QuotaExceeded { quota, .. }), Some(expected)) => {
                    assert_eq!(quota, expected);
                }
                (outcome, _) => panic!("{used:?} of {limits:?}: {outcome:?}"),
            }
        }
    }
}
