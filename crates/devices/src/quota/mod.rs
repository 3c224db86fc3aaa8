//! Quotas: how much a user may have. A creation, a growth and a start are charged in their own transaction, under the lock
//! of the user's quota: of many at once on whichever replicas as many succeed as there is room for. What is used is counted
//! from the devices, so that a deletion gives back what it held, once.

pub mod api;
pub mod book;
pub mod db;
pub mod enforce;
pub mod grant;
pub mod limits;
pub mod report;

use std::sync::Arc;

use contracts::{DeviceId, PlanId, Timestamp, UserId};
use platform::Platform;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::Config;
use crate::device::Status as DeviceStatus;
use crate::error::{Error, Result};
pub use limits::{Limit, Limits, UNLIMITED};

names! {
    /// How a quota stands.
    Status, "status" {
        /// It can be charged.
        Active = "active",
        /// More is used than it allows, since it allowed more before.
        Exceeded = "exceeded",
        /// An admin closed it.
        Suspended = "suspended",
        /// What was granted for a time has ended; the limits are those without it.
        Expired = "expired",
    }
}

/// What quotas need: their routes stand at another service than the devices.
#[derive(Clone)]
pub struct Quotas {
    /// The stores.
    pub platform: Platform,
    /// What a user has without a plan.
    pub defaults: Arc<Limits>,
}

impl Quotas {
    /// Quotas with the defaults of the settings.
    pub fn new(platform: &Platform, config: &Config) -> Self {
        Self {
            platform: platform.clone(),
            defaults: Arc::new(config.quota.clone()),
        }
    }
}

/// The sizes of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Processor cores.
    pub cpu_cores: i32,
    /// Memory.
    pub memory_mb: i32,
    /// Storage.
    pub storage_mb: i32,
}

/// How much of everything, used or wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Amounts {
    /// Devices.
    pub devices: i64,
    /// Devices that run or shall.
    pub running: i64,
    /// Processor cores.
    pub cpu_cores: i64,
    /// Memory.
    pub memory_mb: i64,
    /// Storage.
    pub storage_mb: i64,
    /// Minutes that devices have run since midnight UTC, each counted by itself.
    pub minutes_today: i64,
    /// The same since the first of the month.
    pub minutes_of_month: i64,
    /// Bytes over the network since the first of the month.
    pub traffic: i64,
}

/// A user's quota as it holds now.
#[derive(Clone, Debug)]
pub struct Quota {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub user_id: UserId,
    /// The plan that was paid and holds, with its name.
    pub plan: Option<(PlanId, String)>,
    /// What is allowed.
    pub limits: Limits,
    /// What is used.
    pub used: Amounts,
    /// How it stands.
    pub status: Status,
    /// Since when.
    pub valid_from: Timestamp,
    /// Until when, where there is an end.
    pub valid_until: Option<Timestamp>,
    /// Whether it shall be renewed by itself.
    pub auto_renew: bool,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// Megabytes in a gigabyte, as devices are measured.
const GB: i64 = 1024;
/// Bytes in a gigabyte, as traffic is measured.
const TRAFFIC_GB: i64 = 1_000_000_000;

/// How much is used of a limit, in its unit, rounded up; of what one device may have, nothing.
pub fn used(used: &Amounts, limit: Limit) -> i64 {
    let up = |amount: i64, unit: i64| amount.max(0).div_euclid(unit) + i64::from(amount % unit > 0);
    match limit {
        Limit::Devices => used.devices,
        Limit::RunningDevices => used.running,
        Limit::CpuCores => used.cpu_cores,
        Limit::Memory => up(used.memory_mb, GB),
        Limit::Storage => up(used.storage_mb, GB),
        Limit::MonthlyTraffic => used.traffic / TRAFFIC_GB,
        Limit::HoursOfDay => used.minutes_today / 60,
        Limit::HoursOfMonth => used.minutes_of_month / 60,
        Limit::Bandwidth
        | Limit::CpuCoresOfDevice
        | Limit::MemoryOfDevice
        | Limit::StorageOfDevice => 0,
    }
}

/// Refuses a device of sizes that one device may not have.
pub fn fits(limits: &Limits, size: Size) -> Result<()> {
    let storage_gb = (i64::from(size.storage_mb) + GB - 1) / GB;
    for (limit, wanted) in [
        (Limit::CpuCoresOfDevice, i64::from(size.cpu_cores)),
        (Limit::MemoryOfDevice, i64::from(size.memory_mb)),
        (Limit::StorageOfDevice, storage_gb),
    ] {
        if let Some(allowed) = limits.of(limit)
            && wanted > allowed
        {
            return Err(exceeded(limit, wanted, allowed));
        }
    }
    Ok(())
}

/// Refuses what would use more than is allowed. Of what is not wanted more may be used already.
pub fn room(limits: &Limits, before: &Amounts, wanted: &Amounts) -> Result<()> {
    let after = Amounts {
        devices: before.devices + wanted.devices,
        running: before.running + wanted.running,
        cpu_cores: before.cpu_cores + wanted.cpu_cores,
        memory_mb: before.memory_mb + wanted.memory_mb,
        storage_mb: before.storage_mb + wanted.storage_mb,
        ..*before
    };
    for (limit, asked) in [
        (Limit::Devices, wanted.devices),
        (Limit::CpuCores, wanted.cpu_cores),
        (Limit::Memory, wanted.memory_mb),
        (Limit::Storage, wanted.storage_mb),
        (Limit::RunningDevices, wanted.running),
    ] {
        if let Some(allowed) = limits.of(limit)
            && asked > 0
            && used(&after, limit) > allowed
        {
            return Err(exceeded(limit, used(before, limit), allowed));
        }
    }
    for limit in [
        Limit::HoursOfDay,
        Limit::HoursOfMonth,
        Limit::MonthlyTraffic,
    ] {
        if let Some(allowed) = limits.of(limit)
            && wanted.running > 0
            && used(before, limit) >= allowed
        {
            return Err(exceeded(limit, used(before, limit), allowed));
        }
    }
    Ok(())
}

fn exceeded(limit: Limit, current: i64, allowed: i64) -> Error {
    Error::QuotaExceeded {
        quota: limit.name(),
        key: limit.key(),
        current,
        limit: allowed,
    }
}

impl Size {
    /// One device of these sizes.
    pub fn amounts(self) -> Amounts {
        Amounts {
            devices: 1,
            cpu_cores: self.cpu_cores.into(),
            memory_mb: self.memory_mb.into(),
            storage_mb: self.storage_mb.into(),
            ..Amounts::default()
        }
    }
}

/// Charges a device that is being made, in the transaction that has written it: it counts as used already.
///
/// # Errors
/// [`Error::QuotaExceeded`] where there is no room, 403 where the account is switched off: roll back.
pub async fn charge_creation(
    tx: &mut PgConnection,
    quotas: &Quotas,
    owner: &UserId,
    (size, shall_run): (Size, bool),
    now: Timestamp,
) -> Result<()> {
    let quota = db::lock(tx, quotas, owner, None, now).await?;
    // Under that lock: what a deleted account leaves behind is looked for under it, too.
    if db::is_switched_off(tx, owner).await? {
        return Err(
            platform::Problem::forbidden("the account of the owner is switched off").into(),
        );
    }
    fits(&quota.limits, size)?;
    let wanted = Amounts {
        running: shall_run.into(),
        ..size.amounts()
    };
    let before = Amounts {
        devices: quota.used.devices - wanted.devices,
        running: quota.used.running - wanted.running,
        cpu_cores: quota.used.cpu_cores - wanted.cpu_cores,
        memory_mb: quota.used.memory_mb - wanted.memory_mb,
        storage_mb: quota.used.storage_mb - wanted.storage_mb,
        ..quota.used
    };
    room(&quota.limits, &before, &wanted)
}

/// Charges what a device grows by, in the transaction that lets it grow. What it shrinks by is given back by that alone.
///
/// # Errors
/// [`Error::QuotaExceeded`] where there is no room: roll back.
pub async fn charge_growth(
    tx: &mut PgConnection,
    quotas: &Quotas,
    owner: &UserId,
    (from, to): (Size, Size),
    now: Timestamp,
) -> Result<()> {
    let (before, after) = (from.amounts(), to.amounts());
    let wanted = Amounts {
        cpu_cores: after.cpu_cores - before.cpu_cores,
        memory_mb: after.memory_mb - before.memory_mb,
        storage_mb: after.storage_mb - before.storage_mb,
        ..Amounts::default()
    };
    if wanted.cpu_cores <= 0 && wanted.memory_mb <= 0 && wanted.storage_mb <= 0 {
        return Ok(());
    }
    let quota = db::lock(tx, quotas, owner, None, now).await?;
    // What it has already it may keep.
    let grown = Size {
        cpu_cores: if wanted.cpu_cores > 0 {
            to.cpu_cores
        } else {
            0
        },
        memory_mb: if wanted.memory_mb > 0 {
            to.memory_mb
        } else {
            0
        },
        storage_mb: if wanted.storage_mb > 0 {
            to.storage_mb
        } else {
            0
        },
    };
    fits(&quota.limits, grown)?;
    room(&quota.limits, &quota.used, &wanted)
}

/// Charges one more running device, in the transaction that accepts its start; one that runs or shall run already is not
/// charged again. The caller holds the lock of the device.
///
/// # Errors
/// [`Error::QuotaExceeded`] where there is no room: roll back.
pub async fn charge_start(
    tx: &mut PgConnection,
    quotas: &Quotas,
    (owner, device): (&UserId, &DeviceId),
    now: Timestamp,
) -> Result<()> {
    let quota = db::lock(tx, quotas, owner, Some(device), now).await?;
    let wanted = Amounts {
        running: 1,
        ..Amounts::default()
    };
    room(&quota.limits, &quota.used, &wanted)
}

/// Whether a start of a device in this status makes one more run.
pub fn makes_one_more_run(status: DeviceStatus, wanted: DeviceStatus) -> bool {
    match status {
        DeviceStatus::Stopped | DeviceStatus::Stopping | DeviceStatus::Error => true,
        DeviceStatus::Creating | DeviceStatus::Rebooting => wanted != DeviceStatus::Running,
        DeviceStatus::Starting
        | DeviceStatus::Running
        | DeviceStatus::Deleting
        | DeviceStatus::Deleted => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exceeds(outcome: Result<()>) -> Option<(&'static str, i64, i64)> {
        match outcome {
            Ok(()) => None,
            Err(Error::QuotaExceeded {
                quota,
                current,
                limit,
                ..
            }) => Some((quota, current, limit)),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_last_room_is_given_and_no_more() {
        let limits = Limits::defaults(true);
        let size = Size {
            cpu_cores: 2,
            memory_mb: 4_096,
            storage_mb: 10_240,
        };
        let one = size.amounts();
        let running = Amounts { running: 1, ..one };
        let two = Amounts {
            devices: 2,
            cpu_cores: 4,
            memory_mb: 8_192,
            storage_mb: 20_480,
            ..Amounts::default()
        };

        assert_eq!(exceeds(room(&limits, &Amounts::default(), &running)), None);
        assert_eq!(exceeds(room(&limits, &one, &running)), None);
        assert_eq!(
            exceeds(room(&limits, &running, &running)),
            Some(("running devices", 1, 1))
        );
        assert_eq!(exceeds(room(&limits, &two, &one)), Some(("devices", 2, 2)));
        let growth = Amounts {
            memory_mb: 1,
            ..Amounts::default()
        };
        assert_eq!(
            exceeds(room(&limits, &two, &growth)),
            Some(("memory in GB", 8, 8))
        );
        let tired = Amounts {
            minutes_today: 480,
            ..Amounts::default()
        };
        assert_eq!(exceeds(room(&limits, &tired, &one)), None);
        assert_eq!(
            exceeds(room(&limits, &tired, &running)),
            Some(("hours of a day", 8, 8))
        );
    }

    #[test]
    fn a_device_may_be_as_large_as_one_may_and_no_larger() {
        let limits = Limits::defaults(true);
        let size = |cpu_cores, memory_mb, storage_mb| Size {
            cpu_cores,
            memory_mb,
            storage_mb,
        };
        assert_eq!(exceeds(fits(&limits, size(2, 4_096, 10_240))), None);
        for (size, expected) in [
            (size(3, 4_096, 10_240), ("CPU cores of a device", 3, 2)),
            (
                size(2, 4_097, 10_240),
                ("memory of a device in MB", 4_097, 4_096),
            ),
            (
                size(2, 4_096, 10_241),
                ("storage of a device in GB", 11, 10),
            ),
        ] {
            assert_eq!(exceeds(fits(&limits, size)), Some(expected));
        }
        assert!(exceeds(fits(&limits.closed(), size(1, 512, 1_024))).is_some());
    }
}
