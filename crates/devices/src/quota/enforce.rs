//! Stops what runs beyond a quota: hours or traffic are used up, or what was paid for has ended. A start is refused in its own
//! transaction; this is for what runs already.

use contracts::{DeviceId, Event, EventBody, UserId};
use platform::events::emit;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Limit, Quota, db, used};
use crate::device::{self, Status};
use crate::operation::{self, Decision, Wish, decide};
use crate::{Devices, metrics};

/// How many users one look takes.
const BATCH: i64 = 200;

/// Looks through all users with running devices, and stops devices until each is within the quota: those first that were
/// started last. Done again, or by two replicas at once, it stops no more than that.
pub async fn stop_beyond(state: &Devices, cancelled: &CancellationToken) -> anyhow::Result<()> {
    let mut behind = None;
    let (mut stopped, mut failed) = (0, None);
    while !cancelled.is_cancelled() {
        let over = {
            let mut conn = state.platform.db.acquire().await?;
            let users = running(&mut conn, behind.as_ref()).await?;
            let now = state.platform.clock.now();
            let Some(last) = users.last().cloned() else {
                break;
            };
            behind = Some(last);
            let quotas = db::find_all(&mut conn, &state.quotas, &users, now).await?;
            let over = quotas.into_iter().filter(|quota| beyond(quota).is_some());
            over.map(|quota| quota.user_id).collect::<Vec<_>>()
        };
        for user in over {
            match stop(state, &user).await {
                Ok(count) => stopped += count,
                // The others' turn comes all the same.
                Err(error) => {
                    let what = format!("stopping what runs beyond the quota of user {user}");
                    let error = anyhow::Error::from(error).context(what);
                    warn!("{error:#}");
                    failed = Some(error);
                }
            }
        }
    }
    if stopped > 0 {
        info!("stopped {stopped} devices that ran beyond quotas");
        state.operations_due.notify_one();
    }
    failed.map_or(Ok(()), Err)
}

/// Which limit what runs is beyond, how much is used, and how much is allowed.
fn beyond(quota: &Quota) -> Option<(Limit, i64, i64)> {
    let of = |limit: Limit| {
        let allowed = quota.limits.of(limit)?;
        Some((limit, used(&quota.used, limit), allowed))
    };
    let used_up = [
        Limit::HoursOfDay,
        Limit::HoursOfMonth,
        Limit::MonthlyTraffic,
    ];
    let used_up = used_up
        .into_iter()
        .filter_map(of)
        .find(|(_, used, allowed)| used >= allowed);
    let running = of(Limit::RunningDevices);
    used_up.or(running.filter(|(_, used, allowed)| used > allowed))
}

/// Stops devices of a user until what runs is within the quota; how many.
async fn stop(state: &Devices, user: &UserId) -> crate::error::Result<usize> {
    let devices = {
        let mut conn = state.platform.db.acquire().await?;
        running_of(&mut conn, user).await?
    };
    let mut stopped = 0;
    for id in devices {
        let mut tx = state.platform.db.begin().await?;
        let now = state.platform.clock.shared(&mut tx).await?;
        let device = device::db::lock(&mut tx, &id).await?;
        let Some(device) = device.filter(|device| device.status == Status::Running) else {
            continue;
        };
        let quota = db::lock(&mut tx, &state.quotas, user, None, now).await?;
        let Some((limit, current, allowed)) = beyond(&quota) else {
            break;
        };
        let (waiting, _) = operation::db::waiting(&mut tx, &id).await?;
        let waiting = waiting.map(|(_, kind)| kind);
        // Whatever is queued behind it is looked at again when it is over.
        let Decision::Begin(kind, status) = decide(Wish::Stop, device.status, waiting) else {
            continue;
        };
        if device.node_down {
            continue;
        }
        operation::db::insert(&mut tx, &id, kind, true, now).await?;
        operation::api::change_status(&mut tx, &device, status, None, now).await?;
        let body = EventBody::DeviceStoppedByQuota {
            device_id: id,
            name: device.name,
            quota: limit.name().to_owned(),
            current,
            limit: allowed,
        };
        emit(&mut tx, &Event::new(user.clone(), now, body)).await?;
        tx.commit().await?;
        metrics::stopped_by_quota(limit.name());
        stopped += 1;
    }
    Ok(stopped)
}

/// Users with running devices, by their ids, from behind one on.
async fn running(conn: &mut PgConnection, behind: Option<&UserId>) -> sqlx::Result<Vec<UserId>> {
    sqlx::query_scalar(
        "-- quota::running
        select distinct user_id from devices.devices
        where deleted_at is null and status = 'running' and ($1::text is null or user_id > $1) order by user_id limit $2",
    )
    .bind(behind)
    .bind(BATCH)
    .fetch_all(conn)
    .await
}

/// The running devices of a user, those first that were started last.
async fn running_of(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<Vec<DeviceId>> {
    sqlx::query_scalar(
        "select id from devices.devices where user_id = $1 and deleted_at is null and status = 'running'
        order by last_started_at desc nulls first, id desc",
    )
    .bind(user)
    .fetch_all(conn)
    .await
}
