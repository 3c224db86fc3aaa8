//! How many users and devices there are, as their services tell. What is told twice or late changes nothing.

use anyhow::Context;
use contracts::{DeviceId, Event, EventBody};
use platform::events::Consumer;
use sqlx::PgConnection;

/// Hears of users and devices.
#[derive(Clone, Copy, Debug)]
pub struct Census;

impl Consumer for Census {
    const NAME: &'static str = "billing-census";
    const KINDS: &'static [&'static str] = &[
        "user.registered",
        "device.created",
        "device.status_changed",
        "device.deleted",
    ];

    async fn apply(&self, tx: &mut PgConnection, event: &Event) -> anyhow::Result<()> {
        match &event.body {
            EventBody::UserRegistered { .. } => count_user(tx, event).await,
            EventBody::DeviceCreated { device_id, .. } => {
                count_device(tx, event, device_id, "creating").await
            }
            EventBody::DeviceStatusChanged {
                device_id, status, ..
            } => count_device(tx, event, device_id, status).await,
            EventBody::DeviceDeleted { device_id, .. } => {
                count_device(tx, event, device_id, "deleted").await
            }
            // News for others.
            _ => return Ok(()),
        }
        .with_context(|| format!("counting {}", event.body.kind()))
    }
}

async fn count_user(conn: &mut PgConnection, event: &Event) -> sqlx::Result<()> {
    sqlx::query(
        "-- census::count_user
        insert into billing.known_users (user_id, registered_at) values ($1, $2) on conflict do nothing",
    )
    .bind(&event.user_id)
    .bind(event.occurred_at)
    .execute(conn)
    .await?;
    Ok(())
}

async fn count_device(
    conn: &mut PgConnection,
    event: &Event,
    device: &DeviceId,
    status: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- census::count_device
        insert into billing.known_devices as d (device_id, user_id, status, changed_at) values ($1, $2, $3, $4)
        on conflict (device_id) do update set user_id = $2, status = $3, changed_at = $4
        where d.changed_at <= $4 and d.status <> 'deleted'",
    )
    .bind(device)
    .bind(&event.user_id)
    .bind(status)
    .bind(event.occurred_at)
    .execute(conn)
    .await?;
    Ok(())
}
