//! What users leave behind whose accounts are deleted: their devices are deleted, too.

use anyhow::Context;
use contracts::{DeviceId, Event, Timestamp, UserId};
use platform::Clock;
use platform::events::Consumer;
use sqlx::PgConnection;

use super::api::delete_locked;
use crate::quota;

/// Hears of deleted accounts.
#[derive(Clone, Debug)]
pub struct Leavers(pub Clock);

impl Consumer for Leavers {
    const NAME: &'static str = "devices-of-leavers";
    const KINDS: &'static [&'static str] = &["user.deleted"];

    async fn apply(&self, tx: &mut PgConnection, event: &Event) -> anyhow::Result<()> {
        let user = &event.user_id;
        delete_all(tx, &self.0, user)
            .await
            .with_context(|| format!("deleting the devices of user {user}"))
    }
}

async fn delete_all(tx: &mut PgConnection, clock: &Clock, user: &UserId) -> sqlx::Result<()> {
    let now = clock.shared(tx).await?;
    delete_those_there(tx, user, now).await?;
    // Who is making one holds the quota; after that nobody makes one any more.
    quota::db::hold(tx, user, now).await?;
    delete_those_there(tx, user, now).await
}

async fn delete_those_there(
    tx: &mut PgConnection,
    user: &UserId,
    now: Timestamp,
) -> sqlx::Result<()> {
    let devices: Vec<DeviceId> = sqlx::query_scalar(
        "-- device::of_leaver
        select id from devices.devices
        where user_id = $1 and deleted_at is null and status <> 'deleting' order by id for update",
    )
    .bind(user)
    .fetch_all(&mut *tx)
    .await?;
    for device in &devices {
        delete_locked(tx, device, now).await?;
    }
    Ok(())
}
