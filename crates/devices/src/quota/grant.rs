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
                plan: terms,
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
            // News for others.
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
        values ($1, $2, $3, $4, $5, $6, $7, $6 + $7) on conflict (order_id) do nothing",
    );
    let done = insert
        .bind(order)
        .bind(user)
        .bind(plan)
        .bind(&terms.name)
        .bind(Json(limits(terms)))
        .bind(paid_at)
        .bind(TimeDelta::days(terms.days.clamp(1, 36_600)))
        .execute(&mut *tx)
        .await?;
    if done.rows_affected() == 1 {
        line_up(tx, order).await?;
    }
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
        on conflict (order_id) do update set revoked_at = excluded.revoked_at,
            lasts = greatest(interval '0', least(g.lasts, excluded.revoked_at - (g.valid_until - g.lasts)))
        where g.revoked_at is null",
    );
    let done = revoke
        .bind(order)
        .bind(user)
        .bind(at)
        .execute(&mut *tx)
        .await?;
    if done.rows_affected() == 1 {
        line_up(tx, order).await?;
    }
    Ok(())
}

/// Lets the orders of the same user and plan hold one after the other in the order of their payment, whichever was heard
/// of first. Of a revoked one the time counts that was used.
async fn line_up(tx: &mut PgConnection, like: &OrderId) -> sqlx::Result<()> {
    sqlx::query(
        "-- grant::line_up
        with recursive links as (
            select g.order_id, g.valid_from, g.lasts, row_number() over (order by g.valid_from, g.order_id) as place
            from devices.quota_grants g join devices.quota_grants l on l.user_id = g.user_id and l.plan_id = g.plan_id
            where l.order_id = $1),
        chain as (
            select order_id, place, valid_from + lasts as valid_until from links where place = 1
            union all
            select n.order_id, n.place, greatest(n.valid_from, c.valid_until) + n.lasts
            from chain c join links n on n.place = c.place + 1)
        update devices.quota_grants g set valid_until = c.valid_until
        from chain c where c.order_id = g.order_id and g.revoked_at is null and g.valid_until <> c.valid_until",
    )
    .bind(like)
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
