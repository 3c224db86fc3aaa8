//! Works a notice off: stored, decided and carried out in one transaction.

use contracts::{Event, EventBody, OrderId, Timestamp};
use serde::Serialize;
use sqlx::PgConnection;

use super::db::{self, Delivery};
use super::message::Said;
use super::notice::{Notice, Told};
use super::{Facts, Outcome, decide, refund_told};
use crate::order::{self, Order};
use crate::payment::{self, Funding, Method, Paying, Payment, PaymentStatus};
use crate::{Billing, Error, Result};

/// What the sender of a notice is told.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Always true.
    pub received: bool,
    /// Whether it changed nothing because it was known.
    pub duplicate: bool,
    pub order_id: String,
    /// The state of the order, in upper case.
    pub status: String,
}

/// How a notice was settled: the answer, and what it was made of.
pub struct Settled {
    pub outcome: Outcome,
    pub answer: Result<Receipt>,
}

/// Settles a notice. Whatever the outcome, the notice is kept; whatever line this dies on, the next delivery finds
/// either all of it done or nothing.
///
/// # Errors
/// Where the database does not answer: the sender delivers again, and the event's key makes that safe.
pub async fn settle(
    state: &Billing,
    delivery: Delivery<'_>,
    said: Option<&Said>,
) -> Result<Settled> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    if !db::insert(&mut tx, delivery, said, now).await? {
        let earlier = db::repeat(&mut tx, delivery, now).await?;
        if earlier.outcome.is_final() {
            tx.commit().await?;
            let receipt = Receipt {
                received: true,
                duplicate: true,
                order_id: earlier.order_id.unwrap_or_default(),
                status: earlier.order_state.unwrap_or_default(),
            };
            return Ok(Settled {
                outcome: Outcome::Duplicate,
                answer: Ok(receipt),
            });
        }
    }
    let settled = match said {
        Some(Said::Payment { notice }) => match lock_order(&mut tx, notice).await? {
            Some((order, named)) => {
                settle_order(&mut tx, delivery, notice, order, named, now).await?
            }
            None => keep(&mut tx, delivery, said, Outcome::UnknownOrder, now).await?,
        },
        Some(Said::Refund { refund }) => {
            let (outcome, order) = refund_told::settle(&mut tx, delivery, refund, now).await?;
            let reached = order.as_ref().map(|order| (&order.id, order.state.name()));
            db::conclude(&mut tx, delivery, said, outcome, reached, now).await?;
            Settled {
                outcome,
                answer: refund_told::answer(outcome, order.as_ref()),
            }
        }
        Some(Said::Other { .. }) => keep(&mut tx, delivery, said, Outcome::Ignored, now).await?,
        Some(Said::Foreign { outcome, .. }) => keep(&mut tx, delivery, said, *outcome, now).await?,
        None => keep(&mut tx, delivery, said, Outcome::Unreadable, now).await?,
    };
    tx.commit().await?;
    Ok(settled)
}

/// Keeps a notice that touches no order.
async fn keep(
    conn: &mut PgConnection,
    delivery: Delivery<'_>,
    said: Option<&Said>,
    outcome: Outcome,
    now: Timestamp,
) -> Result<Settled> {
    db::conclude(conn, delivery, said, outcome, None, now).await?;
    let answer = match outcome {
        Outcome::UnknownOrder => Err(Error::OrderNotFound),
        Outcome::Ignored => Ok(Receipt {
            received: true,
            duplicate: false,
            order_id: String::new(),
            status: String::new(),
        }),
        _ => Err(Error::NoticeKept { outcome }),
    };
    Ok(Settled { outcome, answer })
}

/// The order of the notice, locked, and the payment that it names.
async fn lock_order(
    conn: &mut PgConnection,
    notice: &Notice,
) -> Result<Option<(Order, Option<Payment>)>> {
    let mut order_id: Option<OrderId> = notice.order_id.as_ref().and_then(|id| id.parse().ok());
    if let Some(number) = &notice.payment_no {
        let payment = payment::db::find_by_number(conn, number).await?;
        let agrees = |payment: &Payment| {
            let named = notice.order_id.as_deref();
            named.is_none_or(|id| id == payment.order_id.as_str())
        };
        let Some(payment) = payment.filter(agrees) else {
            return Ok(None);
        };
        order_id = Some(payment.order_id);
    }
    let Some(order_id) = order_id else {
        return Ok(None);
    };
    let Some(order) = order::db::lock(conn, &order_id).await? else {
        return Ok(None);
    };
    // Read under the lock: another notice may have just changed it.
    let named = match &notice.payment_no {
        Some(number) => payment::db::find_by_number(conn, number).await?,
        None => None,
    };
    Ok(Some((order, named)))
}

async fn settle_order(
    conn: &mut PgConnection,
    delivery: Delivery<'_>,
    notice: &Notice,
    order: Order,
    named: Option<Payment>,
    now: Timestamp,
) -> Result<Settled> {
    let facts = Facts {
        applied: payment::db::applied(conn, &order.id).await?,
        earlier: db::earlier(conn, &order.id, delivery).await?,
        named,
        order,
    };
    let outcome = decide(notice, &facts, now);
    let Facts { order, named, .. } = facts;
    let mismatch = order.agrees(notice.amount);
    let method = named.as_ref().map(|payment| payment.method);
    let method = method
        .or_else(|| Method::from_outside(notice.provider()))
        .unwrap_or_else(|| Method::of_order(&order));
    let paying = Paying {
        method,
        transaction_id: notice.transaction_id.clone(),
        // One that has paid or was given back is not made another payment of.
        payment: named.filter(|payment| payment.status.is_open_or_failed()),
        operator_id: None,
    };
    let order = match outcome {
        Outcome::Paid => {
            let (order, payment) =
                payment::pay(conn, &order, paying, Funding::Outside, now).await?;
            let transaction_id = payment.transaction_id.as_deref();
            db::wake(conn, &payment.payment_no, transaction_id, now).await?;
            order
        }
        Outcome::Refunded => {
            payment::give_back(conn, &order, paying, notice.amount, now).await?;
            order
        }
        Outcome::Failed => {
            fail(conn, &order, paying, notice.told(), now).await?;
            order
        }
        Outcome::Received
        | Outcome::Duplicate
        | Outcome::Ignored
        | Outcome::RefundSettled
        | Outcome::AmountMismatch
        | Outcome::CurrencyMismatch
        | Outcome::MerchantMismatch
        | Outcome::UnknownOrder
        | Outcome::Held
        | Outcome::Unreadable => order,
    };
    let status = order.state.name();
    let said = Said::Payment {
        notice: notice.clone(),
    };
    let reached = Some((&order.id, status));
    db::conclude(conn, delivery, Some(&said), outcome, reached, now).await?;
    let receipt = Receipt {
        received: true,
        duplicate: outcome == Outcome::Duplicate,
        order_id: order.id.to_string(),
        status: status.to_owned(),
    };
    let answer = match outcome {
        Outcome::AmountMismatch => mismatch.map(|()| receipt),
        _ => Ok(receipt),
    };
    Ok(Settled { outcome, answer })
}

/// Keeps an attempt that failed; the order goes on waiting for another.
async fn fail(
    conn: &mut PgConnection,
    order: &Order,
    paying: Paying,
    told: Told,
    now: Timestamp,
) -> Result<()> {
    let payment = match paying.payment {
        Some(payment) => payment,
        None => payment::db::insert(conn, &Payment::of(order, paying.method, now)).await?,
    };
    let (status, reason) = match told {
        Told::Cancelled => (PaymentStatus::Cancelled, "given up at the provider"),
        Told::Failed | Told::Paid => (PaymentStatus::Failed, "refused by the provider"),
    };
    payment::db::end(conn, &payment.id, status, reason, now).await?;
    let body = EventBody::PaymentFailed {
        order_id: order.id.clone(),
        order_no: order.order_no.clone(),
        amount: order.final_amount,
    };
    platform::events::emit(conn, &Event::new(order.user_id.clone(), now, body)).await?;
    Ok(())
}
