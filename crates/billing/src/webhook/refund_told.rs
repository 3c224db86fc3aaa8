//! Refunds that a provider tells of: ours, which it has made or given up, and those that somebody made in its console.

use contracts::{Money, Timestamp};
use sqlx::PgConnection;

use super::Outcome;
use super::db::Delivery;
use super::message::{RefundTold, Stands};
use super::settle::Receipt;
use crate::order::{self, Order};
use crate::payment::{self, Payment};
use crate::refund::{self, Refund, RefundState, Wanted};
use crate::{Error, Result};

/// Settles or books a refund, in the transaction that keeps the notice.
///
/// # Errors
/// Where the store does not take it: roll back.
pub async fn settle(
    conn: &mut PgConnection,
    delivery: Delivery<'_>,
    told: &RefundTold,
    now: Timestamp,
) -> Result<(Outcome, Option<Order>)> {
    if let Some(known) = find_known(conn, delivery, told).await? {
        return settle_known(conn, delivery, told, &known.id, now).await;
    }
    // What was not made through us counts once it is done.
    if told.stands != Stands::Succeeded {
        return Ok((Outcome::Ignored, None));
    }
    let Some(payment) = find_payment(conn, told).await? else {
        return Ok((Outcome::Held, None));
    };
    let Some(order) = order::db::lock(conn, &payment.order_id).await? else {
        return Ok((Outcome::Held, None));
    };
    // Looked for again under the lock: the same refund, told by another event, may have just been booked.
    if let Some(known) = find_known(conn, delivery, told).await? {
        return settle_known(conn, delivery, told, &known.id, now).await;
    }
    let applied = payment::db::applied(conn, &order.id).await?;
    let Some(paid) = applied.filter(|applied| applied.id == payment.id) else {
        // Either its payment is still on its way to us, or it went to the balance and is no longer the order's.
        return Ok((Outcome::Held, Some(order)));
    };
    book(conn, delivery, told, order, paid, now).await
}

async fn find_known(
    conn: &mut PgConnection,
    delivery: Delivery<'_>,
    told: &RefundTold,
) -> sqlx::Result<Option<Refund>> {
    let (number, reference) = (told.refund_no.as_deref(), told.reference.as_deref());
    refund::db::find_told(conn, delivery.provider, number, reference).await
}

/// Settles a refund of ours, or one that was booked before.
async fn settle_known(
    conn: &mut PgConnection,
    delivery: Delivery<'_>,
    told: &RefundTold,
    id: &str,
    now: Timestamp,
) -> Result<(Outcome, Option<Order>)> {
    refund::settle(conn, id, &told.standing(), now).await?;
    let refund = refund::db::find(conn, id).await?;
    let mut refund = refund.ok_or(sqlx::Error::RowNotFound)?;
    let mut order = order::db::lock(conn, &refund.order_id).await?;
    if let (Stands::Failed, Some(locked)) = (told.stands, &order)
        && let Some(undone) =
            refund::undo(conn, locked, id, "came back after it had gone out", now).await?
    {
        order = order::db::lock(conn, &undone.order_id).await?;
        refund = undone;
    }
    let contradicts = match told.stands {
        Stands::Processing => false,
        Stands::Succeeded => refund.state != RefundState::Succeeded,
        Stands::Failed => refund.state == RefundState::Succeeded,
    };
    if contradicts {
        // Money has gone another way than the ledger says: somebody has to look.
        return Ok((Outcome::Held, order));
    }
    let is_total = told.is_total && told.stands == Stands::Succeeded;
    let Some(order) = order.clone().filter(|_| is_total) else {
        return Ok((Outcome::RefundSettled, order));
    };
    let applied = payment::db::applied(conn, &order.id).await?;
    let Some(paid) = applied.filter(|applied| applied.id == refund.payment_id) else {
        return Ok((Outcome::RefundSettled, Some(order)));
    };
    // The total may tell of another one, made in the console, whose own notice came too early or not at all.
    let rest = RefundTold {
        refund_no: None,
        reference: None,
        ..told.clone()
    };
    book(conn, delivery, &rest, order, paid, now).await
}

async fn find_payment(conn: &mut PgConnection, told: &RefundTold) -> Result<Option<Payment>> {
    if let Some(number) = &told.payment_no {
        return Ok(payment::db::find_by_number(conn, number).await?);
    }
    match &told.transaction_id {
        Some(transaction) => Ok(payment::db::find_by_transaction(conn, transaction).await?),
        None => Ok(None),
    }
}

/// Books a refund that was made in the provider's console. The order is locked.
async fn book(
    conn: &mut PgConnection,
    delivery: Delivery<'_>,
    told: &RefundTold,
    order: Order,
    paid: Payment,
    now: Timestamp,
) -> Result<(Outcome, Option<Order>)> {
    let amount = if told.is_total {
        // Nobody can tell how much of a total is one of ours that is on its way: first that one is settled.
        let refunds = refund::db::of_payment(conn, &paid.id).await?;
        let is_open = |refund: &Refund| {
            matches!(refund.state, RefundState::Pending | RefundState::Processing)
        };
        if refunds.iter().any(is_open) {
            return Ok((Outcome::Held, Some(order)));
        }
        told.amount - refund::db::gone_back(conn, &paid.id).await?
    } else {
        told.amount
    };
    if amount <= Money::ZERO {
        return Ok((Outcome::RefundSettled, Some(order)));
    }
    if order.refundable(Some(amount)).is_err() {
        return Ok((Outcome::AmountMismatch, Some(order)));
    }
    let wanted = Wanted {
        amount,
        reason: format!("refunded at {}", delivery.provider),
        operator_id: delivery.provider.to_owned(),
    };
    let paid = Payment {
        provider: Some(delivery.provider.to_owned()),
        ..paid
    };
    let made = refund::to_source(conn, &order, &paid, wanted, RefundState::Pending, now).await?;
    refund::settle(conn, &made.id, &told.standing(), now).await?;
    let order = order::db::find(conn, order.id.as_str()).await?;
    Ok((Outcome::RefundSettled, order))
}

/// What the provider is told: that we have it, unless it does not add up.
pub fn answer(outcome: Outcome, order: Option<&Order>) -> Result<Receipt> {
    if outcome == Outcome::AmountMismatch {
        return Err(Error::NoticeKept { outcome });
    }
    Ok(Receipt {
        received: true,
        duplicate: false,
        order_id: order.map_or_else(String::new, |order| order.id.to_string()),
        status: order.map_or_else(String::new, |order| order.state.name().to_owned()),
    })
}
