//! What paid orders grant: handled once for each order, whatever comes how often.

use anyhow::Context;
use chrono::TimeDelta;
use contracts::event::PlanTerms;
use contracts::{Event, EventBody, OrderId, PlanId, Timestamp, UserId};
use platform::events::Consumer;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{Limit, Limits, UNLIMITED};

/// Hears of paid and refunded orders.
#[derive(Clone, Copy, Debug)]
pub struct Grants;

impl Consumer for Grants {
    const NAME: &'static str = "device-quotas";
    const KINDS: &'static [&'static str] = &["order.paid", "order.refunded"];

    async fn apply(&self, tx: &mut PgConnection, event: &Event) -> anyhow::Result<()> {
        match &event.body {
            EventBody::OrderPaid {
                order_id,
                plan_id,
                plan: Some(terms),
                ..
            } => {
                let of = (&event.user_id, order_id, plan_id);
                grant(tx, of, terms, event.occurred_at)
                    .await
                    .with_context(|| format!("granting what order {order_id} was paid for"))
            }
            EventBody::OrderRefunded { order_id, .. } => {
                revoke(tx, (&event.user_id, order_id), event.occurred_at)
                    .await
                    .with_context(|| format!("revoking what order {order_id} granted"))
            }
            // An order of a replica that did not tell the terms, or news for others.
            _ => Ok(()),
        }
    }
}

/// What a plan allows, in the names of limits.
pub fn limits(terms: &PlanTerms) -> Limits {
    let gb = |mb: i64| (mb + 1023) / 1024;
    let devices = terms.max_devices;
    Limits(
        [
            (Limit::Devices, devices),
            (Limit::RunningDevices, devices),
            (Limit::CpuCoresOfDevice, terms.cpu_cores),
            (Limit::MemoryOfDevice, terms.memory_mb),
            (Limit::StorageOfDevice, gb(terms.storage_mb)),
            (Limit::CpuCores, devices * terms.cpu_cores),
            (Limit::Memory, gb(devices * terms.memory_mb)),
            (Limit::Storage, terms.storage_quota_gb),
            (Limit::MonthlyTraffic, terms.traffic_quota_gb),
            (Limit::HoursOfDay, UNLIMITED),
            (Limit::HoursOfMonth, UNLIMITED),
        ]
        .into(),
    )
}

/// A further order of the same plan begins where the last one ends; what two orders grant at a time does not add up.
async fn grant(
    tx: &mut PgConnection,
    (user, order, plan): (&UserId, &OrderId, &PlanId),
    terms: &PlanTerms,
    paid_at: Timestamp,
) -> sqlx::Result<()> {
    lock(tx, user, paid_at).await?;
    let insert = sqlx::query(
        "insert into devices.quota_grants (order_id, user_id, plan_id, plan_name, limits, valid_from, lasts, valid_until)
        select $1, $2, $3, $4, $5, $6, $7, greatest($6, coalesce(max(valid_until), $6)) + $7
        from devices.quota_grants where user_id = $2 and plan_id = $3 and revoked_at is null
        on conflict (order_id) do nothing",
    );
    insert
        .bind(order)
        .bind(user)
        .bind(plan)
        .bind(&terms.name)
        .bind(Json(limits(terms)))
        .bind(paid_at)
        .bind(TimeDelta::days(terms.days.clamp(1, 36_600)))
        .execute(tx)
        .await?;
    Ok(())
}

/// One that is refunded before its payment is heard of grants nothing then. What was left of it is taken from the further
/// orders of the same plan that began where it ended, so that each holds for the time that it paid for.
async fn revoke(
    tx: &mut PgConnection,
    (user, order): (&UserId, &OrderId),
    at: Timestamp,
) -> sqlx::Result<()> {
    lock(tx, user, at).await?;
    let revoke = sqlx::query(
        "insert into devices.quota_grants as g (order_id, user_id, revoked_at) values ($1, $2, $3)
        on conflict (order_id) do update set revoked_at = excluded.revoked_at where g.revoked_at is null",
    );
    let done = revoke
        .bind(order)
        .bind(user)
        .bind(at)
        .execute(&mut *tx)
        .await?;
    if done.rows_affected() == 0 {
        return Ok(());
    }
    sqlx::query(
        "update devices.quota_grants g set valid_until = greatest(g.valid_from + g.lasts,
            g.valid_until - greatest(interval '0', r.valid_until - greatest($2, r.valid_until - r.lasts)))
        from devices.quota_grants r
        where r.order_id = $1 and g.user_id = r.user_id and g.plan_id = r.plan_id and g.revoked_at is null
            and g.valid_until > r.valid_until",
    )
    .bind(order)
    .bind(at)
    .execute(tx)
    .await?;
    Ok(())
}

/// What is heard of the orders of one user is written one after the other.
async fn lock(tx: &mut PgConnection, user: &UserId, now: Timestamp) -> sqlx::Result<()> {
    super::db::ensure(tx, user, now).await?;
    sqlx::query("select 1 from devices.quotas where user_id = $1 for update")
        .bind(user)
        .execute(tx)
        .await?;
    Ok(())
}
