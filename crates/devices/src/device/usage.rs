//! How long devices ran in each hour, told once for each device and hour.

use anyhow::Context;
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use contracts::{DeviceId, Event, EventBody, Timestamp, UserId};
use platform::events::emit;
use platform::lifecycle::Tick;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::Devices;

/// How many devices one transaction tells of.
const BATCH: i64 = 500;

/// Tells of the whole hour before a moment. Done again, or by two replicas at once, it tells what was not told.
pub async fn tell(
    state: &Devices,
    moment: DateTime<Utc>,
    cancelled: &CancellationToken,
) -> anyhow::Result<()> {
    let until = moment
        .duration_trunc(TimeDelta::hours(1))
        .context("cutting to the hour")?;
    let hour = (until - TimeDelta::hours(1), until);
    while !cancelled.is_cancelled() {
        let told = tell_batch(state, hour)
            .await
            .context("telling how long devices ran")?;
        if Tick::after_batch(told, BATCH) == Tick::Idle {
            break;
        }
    }
    Ok(())
}

async fn tell_batch(
    state: &Devices,
    (began, until): (DateTime<Utc>, DateTime<Utc>),
) -> sqlx::Result<usize> {
    let now = state.platform.clock.now();
    let (began, until) = (Timestamp::from(began), Timestamp::from(until));
    let mut tx = state.platform.db.begin().await?;
    let told = take(&mut tx, began, until).await?;
    for (device_id, user_id, minutes) in &told {
        // A device that ran for seconds is noted, and nobody is told.
        if *minutes > 0 {
            let body = EventBody::DeviceUsed {
                device_id: device_id.clone(),
                began_at: began,
                ended_at: until,
                minutes: *minutes,
            };
            emit(&mut tx, &Event::new(user_id.clone(), now, body)).await?;
        }
    }
    tx.commit().await?;
    Ok(told.len())
}

/// Writes the minutes of devices that nobody has written for the hour: whoever writes a row tells of it.
async fn take(
    tx: &mut PgConnection,
    began: Timestamp,
    until: Timestamp,
) -> sqlx::Result<Vec<(DeviceId, UserId, i32)>> {
    sqlx::query_as(
        "-- usage::take
        insert into devices.usage (device_id, began_at, user_id, minutes)
        select r.device_id, $1, r.user_id,
            least(60, round(extract(epoch from sum(least(coalesce(r.ended_at, $2), $2) - greatest(r.began_at, $1))) / 60))::integer
        from devices.runs r
        where r.began_at < $2 and (r.ended_at > $1 or r.ended_at is null)
            and not exists (select 1 from devices.usage u where u.device_id = r.device_id and u.began_at = $1)
        group by r.device_id, r.user_id order by r.device_id limit $3
        on conflict do nothing
        returning device_id, user_id, minutes",
    )
    .bind(began)
    .bind(until)
    .bind(BATCH)
    .fetch_all(tx)
    .await
}
