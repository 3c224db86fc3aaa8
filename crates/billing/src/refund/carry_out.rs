//! Refunds to their source, carried out at their provider: at once after they were asked for, and by the cron until the
//! provider has said how they ended.

use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{RefundState, db, settle};
use crate::payment::ask::AT_ONCE;
use crate::provider::{Failure, RefundStanding};
use crate::{Billing, Result, order, payment};

/// How many one run of the cron takes on.
const BATCH: i64 = 100;

/// Carries an open refund out, or asks how it stands. One that somebody has just taken on is left to them. A process
/// that dies here leaves the refund open, and the next attempt finds at the provider what this one did.
///
/// # Errors
/// Where the store does not answer.
pub async fn carry_out(state: &Billing, id: &str) -> Result<()> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let Some(taken) = db::take(&mut conn, id, now).await? else {
        return Ok(());
    };
    let paid = payment::db::find(&mut conn, &taken.refund.payment_id).await?;
    drop(conn);
    let refund = &taken.refund;
    let provider = refund.provider.as_deref();
    let provider = provider.and_then(|name| state.providers.named(name));
    let (Some(provider), Some(paid)) = (provider, paid) else {
        let reason = "its provider is not configured here any more";
        warn!(
            refund.no = refund.number(),
            "refund {}: {reason}",
            refund.number()
        );
        let mut conn = state.platform.db.acquire().await?;
        return Ok(db::hindered(&mut conn, id, reason).await?);
    };
    let known = if taken.again {
        provider.ask_refund(refund, &paid).await
    } else {
        Ok(RefundStanding::Missing)
    };
    let answer = match known {
        Ok(RefundStanding::Missing) => provider.refund(refund, &paid).await,
        // That we may not ask says nothing of what an earlier attempt has done.
        Err(Failure::Refused(reason)) => Err(Failure::Unclear(reason)),
        known => known,
    };
    let standing = match answer {
        Ok(standing) => standing,
        Err(Failure::Refused(reason)) => RefundStanding::Failed(reason),
        Err(Failure::Unclear(reason)) => {
            warn!(
                refund.no = refund.number(),
                "refund {} goes on later: {reason}",
                refund.number()
            );
            let mut conn = state.platform.db.acquire().await?;
            return Ok(db::hindered(&mut conn, id, &reason).await?);
        }
    };
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let settled = settle(&mut tx, id, &standing, now).await?;
    let order = order::db::find(&mut tx, refund.order_id.as_str()).await?;
    tx.commit().await?;
    if let (Some(refund), Some(order)) = (settled, order) {
        match refund.state {
            RefundState::Succeeded => super::count(&refund, order.state),
            RefundState::Failed => {
                super::count(&refund, order.state);
                let reason = refund.failure_reason.as_deref().unwrap_or_default();
                warn!(
                    refund.no = refund.number(),
                    "refund {} failed: {reason}",
                    refund.number()
                );
            }
            _ => {}
        }
    }
    Ok(())
}

/// Goes on with every open refund whose time has come.
pub async fn carry_on(state: &Billing, cancelled: &CancellationToken) -> anyhow::Result<()> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let due = db::due(&mut conn, now, BATCH).await?;
    drop(conn);
    if !due.is_empty() {
        info!(
            refunds = due.len(),
            "asking providers about {} refunds",
            due.len()
        );
    }
    let carrying =
        stream::iter(due).for_each_concurrent(AT_ONCE, |id| carry_out_or_later(state.clone(), id));
    cancelled.run_until_cancelled(carrying).await;
    Ok(())
}

/// One that fails, or whose provider is silent, is due again later; it holds up no other.
async fn carry_out_or_later(state: Billing, id: String) {
    if let Err(error) = carry_out(&state, &id).await {
        warn!(refund.id = id, "a refund goes on later: {error}");
    }
}
