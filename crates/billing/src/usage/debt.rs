//! Charges for usage that has happened: taken from the balance, or owed until it covers them.

use anyhow::Context;
use contracts::{DeviceId, Event, EventBody, Money, OrderId, Timestamp, TransactionId, UserId};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::balance::{self, Movement};
use crate::ledger::Details;
use crate::{Billing, Error, Result, invoice};

const BATCH: i64 = 100;

/// What a device cost from a moment on.
#[derive(Clone, Copy, Debug)]
pub struct Charge<'a> {
    pub user: &'a UserId,
    pub device: &'a DeviceId,
    pub began_at: Timestamp,
    pub amount: Money,
}

/// A charge that the balance did not cover.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Debt {
    pub id: String,
    pub user_id: UserId,
    pub device_id: DeviceId,
    pub began_at: Timestamp,
    pub amount: Money,
}

/// Takes a charge from the balance, in the caller's transaction; what it does not cover is owed, and told.
///
/// # Errors
/// Where the store does not take it: roll back.
pub async fn charge(
    conn: &mut PgConnection,
    charge: Charge<'_>,
    now: Timestamp,
) -> Result<Option<TransactionId>> {
    match take(conn, charge, now).await {
        Ok(id) => Ok(Some(id)),
        Err(Error::InsufficientBalance { .. }) => {
            owe(conn, charge, now).await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn take(
    conn: &mut PgConnection,
    charge: Charge<'_>,
    now: Timestamp,
) -> Result<TransactionId> {
    let details = Details {
        description: format!("device {} from {}", charge.device, charge.began_at),
        order_id: None::<OrderId>,
        device_id: Some(charge.device.to_string()),
        ..Details::default()
    };
    let (user, amount) = (charge.user, charge.amount);
    let moved = balance::move_money(conn, user, Movement::Consume, amount, details, now).await?;
    Ok(moved.transaction.id)
}

async fn owe(conn: &mut PgConnection, charge: Charge<'_>, now: Timestamp) -> sqlx::Result<()> {
    sqlx::query(
        "-- debt::owe
        insert into billing.debts (id, user_id, device_id, began_at, amount, created_at)
        values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(TransactionId::new())
    .bind(charge.user)
    .bind(charge.device)
    .bind(charge.began_at)
    .bind(charge.amount)
    .bind(now)
    .execute(&mut *conn)
    .await?;
    let body = EventBody::DebtRecorded {
        device_id: charge.device.clone(),
        amount: charge.amount,
    };
    platform::events::emit(conn, &Event::new(charge.user.clone(), now, body)).await
}

/// Collects what is owed and covered by now, the oldest first, each debt with its movement. Two replicas at once take
/// different debts.
pub async fn collect(state: &Billing, cancelled: &CancellationToken) -> anyhow::Result<()> {
    while !cancelled.is_cancelled() {
        if collect_batch(state).await.context("collecting debts")? == 0 {
            break;
        }
    }
    Ok(())
}

async fn collect_batch(state: &Billing) -> Result<usize> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let covered: Vec<Debt> = sqlx::query_as(
        "-- debt::covered
        select d.id, d.user_id, d.device_id, d.began_at, d.amount
        from billing.debts d join billing.balances b on b.user_id = d.user_id and b.available >= d.amount
        where d.settled_at is null order by d.user_id, d.seq limit $1 for no key update of d skip locked",
    )
    .bind(BATCH)
    .fetch_all(&mut *tx)
    .await?;
    let mut collected = 0;
    for debt in covered {
        let charge = Charge {
            user: &debt.user_id,
            device: &debt.device_id,
            began_at: debt.began_at,
            amount: debt.amount,
        };
        match take(&mut tx, charge, now).await {
            Ok(transaction) => {
                settle(&mut tx, std::slice::from_ref(&debt), &transaction, now).await?;
                invoice::db::settle_debt(&mut tx, &debt.id, debt.amount, now).await?;
                collected += 1;
            }
            // The ones before it took what there was; it waits for more.
            Err(Error::InsufficientBalance { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    tx.commit().await?;
    Ok(collected)
}

/// The open debts that stand on an invoice, in the order of their age, which nobody else settles until the end of the
/// transaction. Debts are locked before invoices and balances.
pub async fn lock_on_invoice(conn: &mut PgConnection, invoice: &str) -> sqlx::Result<Vec<Debt>> {
    sqlx::query_as(
        "-- debt::lock_on_invoice
        select d.id, d.user_id, d.device_id, d.began_at, d.amount
        from billing.invoice_entries e join billing.debts d on d.id = e.debt_id
        where e.invoice_id = $1 and d.settled_at is null order by d.seq for no key update of d",
    )
    .bind(invoice)
    .fetch_all(conn)
    .await
}

/// Marks locked, open debts as settled by a movement.
pub async fn settle(
    conn: &mut PgConnection,
    debts: &[Debt],
    transaction: &TransactionId,
    now: Timestamp,
) -> sqlx::Result<()> {
    let ids: Vec<&str> = debts.iter().map(|debt| debt.id.as_str()).collect();
    sqlx::query(
        "-- debt::settle
        update billing.debts set transaction_id = $2, settled_at = $3 where id = any($1) and settled_at is null",
    )
    .bind(ids)
    .bind(transaction)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}
