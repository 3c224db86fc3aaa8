//! The periodic work on orders.

use anyhow::Context;
use contracts::{Event, EventBody};
use platform::lifecycle::Tick;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{OrderState, db};
use crate::{Billing, metrics, payment};

const BATCH: i64 = 100;

/// Expires every order whose time is over, batch by batch, each with its event in the transaction that closes it. Two
/// replicas at once take different orders.
pub async fn expire_orders(state: &Billing, cancelled: &CancellationToken) -> anyhow::Result<()> {
    let mut total = 0;
    while !cancelled.is_cancelled() {
        let expired = expire_batch(state).await.context("expiring orders")?;
        total += expired;
        if Tick::after_batch(expired, BATCH) == Tick::Idle {
            break;
        }
    }
    if total > 0 {
        info!(
            orders = total,
            "expired {total} orders that were not paid in time"
        );
    }
    Ok(())
}

async fn expire_batch(state: &Billing) -> sqlx::Result<usize> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let expired = db::expire_due(&mut tx, now, BATCH).await?;
    for order in &expired {
        payment::db::cancel_open(&mut tx, &order.id, now).await?;
        let body = EventBody::OrderExpired {
            order_id: order.id.clone(),
            order_no: order.order_no.clone(),
            amount: order.final_amount,
        };
        platform::events::emit(&mut tx, &Event::new(order.user_id.clone(), now, body)).await?;
    }
    tx.commit().await?;
    metrics::orders_reached(OrderState::Expired, expired.len());
    Ok(expired.len())
}

/// Completes every paid order whose term is over, batch by batch, each with its event in the transaction that does it.
pub async fn complete_orders(state: &Billing, cancelled: &CancellationToken) -> anyhow::Result<()> {
    while !cancelled.is_cancelled() {
        let completed = complete_batch(state).await.context("completing orders")?;
        if Tick::after_batch(completed, BATCH) == Tick::Idle {
            break;
        }
    }
    Ok(())
}

async fn complete_batch(state: &Billing) -> sqlx::Result<usize> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let completed = db::complete_due(&mut tx, now, BATCH).await?;
    for order in &completed {
        let body = EventBody::OrderCompleted {
            order_id: order.id.clone(),
            order_no: order.order_no.clone(),
        };
        platform::events::emit(&mut tx, &Event::new(order.user_id.clone(), now, body)).await?;
    }
    tx.commit().await?;
    metrics::orders_reached(OrderState::Completed, completed.len());
    Ok(completed.len())
}
