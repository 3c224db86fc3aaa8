//! Refunds of paid orders: to the balance at once, or to where the money came from, which takes its provider a while.
//!
//! From the request on, the amount counts in `refund_amount` of order and payment, under the order's lock and a check
//! constraint: so never more than was paid is on its way. It is booked when it succeeded, and taken back out where the
//! provider refuses.

pub mod api;
pub mod carry_out;
pub mod db;

use contracts::{Event, EventBody, Money, OrderId, Timestamp, TransactionId};
use serde::Serialize;
use sqlx::PgConnection;

use crate::balance::{self, Moved, Movement};
use crate::ledger::{self, Account, Details, Entry};
use crate::order::{self, Order, OrderState};
use crate::payment::{self, Payment};
use crate::provider::RefundStanding;
use crate::{Result, invoice, metrics};

/// Where a refund goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Destination {
    /// To the balance of the order's user.
    Balance,
    /// To where the payment came from, by its provider.
    Source,
}

/// The states of a refund.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum RefundState {
    /// Waits for the word of a second admin.
    Requested,
    /// Its provider was not told of it yet, as far as we know.
    Pending,
    /// Its provider knows of it.
    Processing,
    /// The money has gone back.
    Succeeded,
    /// Its provider refused it for good, or had made it and the money came back.
    Failed,
    /// A second admin did not allow it.
    Rejected,
}

/// A refund.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refund {
    pub id: String,
    /// `REF` and 20 digits, for a refund to its source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refund_no: Option<String>,
    pub order_id: OrderId,
    pub payment_id: String,
    pub amount: Money,
    pub reason: String,
    pub destination: Destination,
    pub state: RefundState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The provider's name of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_reference: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    /// The admin who asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator_id: Option<String>,
    /// The admin who approved or rejected it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    pub created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<Timestamp>,
}

/// A refund that somebody wants.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub amount: Money,
    pub reason: String,
    pub operator_id: String,
}

impl Refund {
    /// Its number at the provider; empty for one that no provider knows.
    pub fn number(&self) -> &str {
        self.refund_no.as_deref().unwrap_or_default()
    }
}

/// Gives back to the user's balance what a locked order was paid with, in the caller's transaction.
///
/// # Errors
/// 409 where less is left: roll back.
pub async fn to_balance(
    conn: &mut PgConnection,
    order: &Order,
    paid: &Payment,
    wanted: Wanted,
    now: Timestamp,
) -> Result<(Order, Refund, Moved)> {
    let details = Details {
        description: wanted.reason.clone(),
        order_id: Some(order.id.clone()),
        payment_id: Some(paid.id.clone()),
        operator_id: Some(wanted.operator_id.clone()),
        ..Details::default()
    };
    let user = &order.user_id;
    let moved =
        balance::move_money(conn, user, Movement::Refund, wanted.amount, details, now).await?;
    let transaction = Some(&moved.transaction.id);
    let refund = db::insert(
        conn,
        order,
        paid,
        &wanted,
        RefundState::Succeeded,
        transaction,
        now,
    )
    .await?;
    let order = count_in(conn, order, paid, wanted.amount, now).await?;
    if order.state == OrderState::Refunded {
        tell_whole(conn, &order, now).await?;
    }
    Ok((order, refund, moved))
}

/// Begins a refund to where the payment came from: counted at once, carried out after the commit.
///
/// # Errors
/// Where the store does not take it: roll back.
pub async fn to_source(
    conn: &mut PgConnection,
    order: &Order,
    paid: &Payment,
    wanted: Wanted,
    state: RefundState,
    now: Timestamp,
) -> Result<Refund> {
    let refund = db::insert(conn, order, paid, &wanted, state, None, now).await?;
    count_in(conn, order, paid, wanted.amount, now).await?;
    Ok(refund)
}

/// Settles an open refund by what its provider said, in a transaction that holds the order's lock; `None` where it was
/// settled before.
///
/// # Errors
/// Where the store does not take it: roll back.
pub async fn settle(
    conn: &mut PgConnection,
    id: &str,
    standing: &RefundStanding,
    now: Timestamp,
) -> Result<Option<Refund>> {
    let Some(order) = db::order_of(conn, id).await? else {
        return Ok(None);
    };
    let Some(order) = order::db::lock(conn, &order).await? else {
        return Ok(None);
    };
    let Some(refund) = db::lock_open(conn, id).await? else {
        return Ok(None);
    };
    let paid = payment::db::find(conn, &refund.payment_id).await?;
    let paid = paid.ok_or(sqlx::Error::RowNotFound)?;
    match standing {
        RefundStanding::Missing => Ok(Some(refund)),
        RefundStanding::Processing { reference } => {
            let reference = reference.as_deref();
            Ok(Some(db::processing(conn, id, reference).await?))
        }
        RefundStanding::Failed(reason) => {
            let refund = db::fail(conn, id, RefundState::Failed, reason, None, now).await?;
            count_in(conn, &order, &paid, -refund.amount, now).await?;
            Ok(Some(refund))
        }
        RefundStanding::Succeeded { reference } => {
            let transaction = book(conn, &order, &refund, Way::Out, now).await?;
            let refund = db::succeed(conn, id, reference.as_deref(), &transaction, now).await?;
            let order = count_in(conn, &order, &paid, Money::ZERO, now).await?;
            if order.state == OrderState::Refunded {
                tell_whole(conn, &order, now).await?;
            } else {
                let body = EventBody::PaymentRefunded {
                    order_id: order.id.clone(),
                    order_no: order.order_no.clone(),
                    amount: refund.amount,
                };
                let event = Event::new(order.user_id.clone(), now, body);
                platform::events::emit(conn, &event).await?;
            }
            Ok(Some(refund))
        }
    }
}

/// Undoes a refund to its source that had succeeded, and that its provider gave up later: the money is with us again, the
/// order is what it was before, and may be refunded another way. In a transaction that holds the order's lock; `None` where it has
/// not succeeded, or was undone before.
///
/// # Errors
/// Where the store does not take it: roll back.
pub async fn undo(
    conn: &mut PgConnection,
    order: &Order,
    id: &str,
    reason: &str,
    now: Timestamp,
) -> Result<Option<Refund>> {
    let Some(refund) = db::lock_gone(conn, id).await? else {
        return Ok(None);
    };
    let paid = payment::db::find(conn, &refund.payment_id).await?;
    let paid = paid.ok_or(sqlx::Error::RowNotFound)?;
    let reversal = book(conn, order, &refund, Way::Back, now).await?;
    let refund = db::reverse(conn, id, reason, &reversal, now).await?;
    count_in(conn, order, &paid, -refund.amount, now).await?;
    invoice::db::unrefund_paid_by(conn, &paid.id, now).await?;
    let body = EventBody::RefundFailed {
        order_id: order.id.clone(),
        order_no: order.order_no.clone(),
        amount: refund.amount,
    };
    platform::events::emit(conn, &Event::new(order.user_id.clone(), now, body)).await?;
    Ok(Some(refund))
}

/// Takes a refund back that a second admin did not allow.
///
/// # Errors
/// Where the store does not take it: roll back.
pub async fn reject(
    conn: &mut PgConnection,
    order: &Order,
    refund: &Refund,
    admin: &str,
    reason: &str,
    now: Timestamp,
) -> Result<Refund> {
    let paid = payment::db::find(conn, &refund.payment_id).await?;
    let paid = paid.ok_or(sqlx::Error::RowNotFound)?;
    let id = &refund.id;
    let refund = db::fail(conn, id, RefundState::Rejected, reason, Some(admin), now).await?;
    count_in(conn, order, &paid, -refund.amount, now).await?;
    Ok(refund)
}

/// Counts an amount into, or out of, what is given back of a locked order and its payment.
async fn count_in(
    conn: &mut PgConnection,
    order: &Order,
    paid: &Payment,
    amount: Money,
    now: Timestamp,
) -> sqlx::Result<Order> {
    payment::db::add_refund(conn, &paid.id, amount, now).await?;
    let order = order::db::add_refund(conn, &order.id, amount, now).await?;
    if order.state == OrderState::Refunded {
        invoice::db::refund_paid_by(conn, &paid.id, now).await?;
    }
    Ok(order)
}

/// Which way the money of a refund goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// What was earned goes to the world outside.
    Out,
    /// It has come back from there.
    Back,
}

/// Writes the way of the money into the ledger.
async fn book(
    conn: &mut PgConnection,
    order: &Order,
    refund: &Refund,
    way: Way,
    now: Timestamp,
) -> sqlx::Result<TransactionId> {
    let (kind, from, to) = match way {
        Way::Out => ("payout", Account::Refunds, Account::CashIn),
        Way::Back => ("payout_returned", Account::CashIn, Account::Refunds),
    };
    let entry = Entry {
        id: TransactionId::new(),
        user_id: order.user_id.clone(),
        kind,
        amount: refund.amount,
        balances: None,
        from,
        to,
        value: refund.amount,
        details: Details {
            description: refund.reason.clone(),
            order_id: Some(order.id.clone()),
            payment_id: Some(refund.payment_id.clone()),
            operator_id: refund.operator_id.clone(),
            ..Details::default()
        },
        created_at: now,
    };
    ledger::db::post(conn, &entry).await?;
    Ok(entry.id)
}

async fn tell_whole(conn: &mut PgConnection, order: &Order, now: Timestamp) -> Result<()> {
    let body = EventBody::OrderRefunded {
        order_id: order.id.clone(),
        order_no: order.order_no.clone(),
        amount: order.final_amount,
    };
    let event = Event::new(order.user_id.clone(), now, body);
    platform::events::emit(conn, &event).await?;
    Ok(())
}

/// Counts a refund that is over, after the commit.
pub fn count(refund: &Refund, order: OrderState) {
    metrics::refund(refund.state);
    if order == OrderState::Refunded {
        metrics::orders_reached(order, 1);
    }
}
