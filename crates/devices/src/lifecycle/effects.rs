//! What rules do with one device, in a transaction of its own, and with which devices.

use contracts::{DeviceId, Event, EventBody, SnapshotId, Timestamp, UserId};
use platform::events::emit;
use sqlx::PgConnection;

use super::db::{self, Claimed};
use super::{Backup, Cleanup, ExpirationWarning, Rule};
use crate::device::{self, Device, Status, api::delete_locked};
use crate::operation::{self, Kind, api::MOST_OPEN};
use crate::snapshot::{self, api::CreateSnapshot};
use crate::{Devices, Error, error::Result};

/// The next devices that a rule is about; none for one that makes devices.
pub async fn candidates(
    conn: &mut PgConnection,
    (rule_id, rule): (&str, &Rule),
    page: (&str, i64),
    now: Timestamp,
) -> sqlx::Result<Vec<DeviceId>> {
    match rule {
        Rule::Cleanup(rule) => db::untouched(conn, rule, (None, page), now).await,
        Rule::Backup(rule) => db::to_back_up(conn, rule, page).await,
        Rule::ExpirationWarning(rule) => db::ending(conn, (rule_id, rule.days), page, now).await,
        Rule::Autoscaling(_) => Ok(Vec::new()),
    }
}

/// Does what a rule says with one device; `false` where it is no longer about it.
///
/// # Errors
/// Where the device forbids it: the transaction is to be given up.
pub async fn apply(
    state: &Devices,
    tx: &mut PgConnection,
    (claimed, rule): (&Claimed, &Rule),
    id: &DeviceId,
    now: Timestamp,
) -> Result<bool> {
    // Whoever is elsewhere with the device goes first, and the rule asks again how it is.
    let Some(device) = device::db::lock(tx, id).await? else {
        return Ok(false);
    };
    match rule {
        Rule::Cleanup(rule) => clean_up(tx, rule, &device, now).await,
        Rule::Backup(rule) => back_up(state, tx, (claimed, rule), &device, now).await,
        Rule::ExpirationWarning(rule) => warn(tx, (claimed, rule), &device, now).await,
        Rule::Autoscaling(_) => Ok(false),
    }
}

async fn clean_up(
    tx: &mut PgConnection,
    rule: &Cleanup,
    device: &Device,
    now: Timestamp,
) -> Result<bool> {
    // Under the lock again: its user may have asked for something since, or its node be down.
    let only = (Some(&device.id), ("", 1));
    let is_untouched = !db::untouched(tx, rule, only, now).await?.is_empty();
    if is_untouched {
        delete_locked(tx, &device.id, now).await?;
    }
    Ok(is_untouched)
}

async fn back_up(
    state: &Devices,
    tx: &mut PgConnection,
    (claimed, rule): (&Claimed, &Backup),
    device: &Device,
    now: Timestamp,
) -> Result<bool> {
    if !matches!(device.status, Status::Running | Status::Stopped) {
        return Ok(false);
    }
    if !device.runtime.keeps_snapshots() {
        return Err(Error::NoSnapshots {
            device: device.id.clone(),
            runtime: device.runtime,
        });
    }
    let tag = format!("rule:{}", claimed.rule_id);
    let config = &state.config;
    let (_, open) = operation::db::waiting(tx, &device.id).await?;
    if open >= MOST_OPEN {
        return Err(Error::Busy {
            device: device.id.clone(),
        });
    }
    // The new one needs room among them, and each that goes is an operation too: what is left of them goes next time. Where
    // there is room for one alone, the last one stays until the new one has been taken.
    let keep = rule.keep.min(config.snapshots_per_device - 1);
    let replaced = match keep {
        0 => db::newest(tx, &device.id, &tag).await?,
        _ => None,
    };
    let keep = keep.max(1);
    let most = MOST_OPEN - open - 1;
    for old in db::surplus(tx, &device.id, (&tag, keep), most).await? {
        snapshot::api::retire(tx, &device.id, &old, now).await?;
    }
    let (of_device, of_user) = snapshot::db::count_locked(tx, device).await?;
    let goes = i64::from(replaced.is_some());
    snapshot::room(
        (of_device - goes, of_user - goes),
        (config.snapshots_per_device, config.snapshots_per_user),
    )?;
    let id = SnapshotId::new();
    let made_by = claimed.created_by.clone();
    let made_by: UserId = made_by.unwrap_or_else(|| device.user_id.clone());
    let body = CreateSnapshot {
        name: format!("backup {}", now.utc().format("%Y-%m-%d %H:%M")),
        description: None,
        tags: Some(vec!["backup".to_owned(), tag]),
    };
    snapshot::db::insert(tx, &id, device, (&body, &made_by), now).await?;
    if let Some(replaced) = &replaced {
        snapshot::db::replace(tx, &id, replaced).await?;
    }
    operation::db::insert_about(tx, (&device.id, Some(&id)), Kind::Snapshot, true, now).await?;
    Ok(true)
}

async fn warn(
    tx: &mut PgConnection,
    (claimed, rule): (&Claimed, &ExpirationWarning),
    device: &Device,
    now: Timestamp,
) -> Result<bool> {
    let soon = now.utc() + chrono::TimeDelta::days(rule.days.into());
    let ends = device
        .expires_at
        .filter(|ends| ends.utc() > now.utc() && ends.utc() <= soon);
    let is_there = !matches!(device.status, Status::Deleting | Status::Deleted);
    let Some(expires_at) = ends.filter(|_| is_there) else {
        return Ok(false);
    };
    if !db::warn(tx, &claimed.rule_id, &device.id, expires_at).await? {
        return Ok(false);
    }
    let body = EventBody::DeviceExpiring {
        device_id: device.id.clone(),
        name: device.name.clone(),
        expires_at,
    };
    emit(tx, &Event::new(device.user_id.clone(), now, body)).await?;
    Ok(true)
}
