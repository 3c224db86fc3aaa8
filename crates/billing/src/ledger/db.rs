//! Ledger entries in PostgreSQL.

use sqlx::PgConnection;

use super::Entry;

/// Writes a movement and its pair of postings, in the transaction of its effect. At the commit, a trigger refuses legs
/// that do not sum to zero.
pub async fn post(conn: &mut PgConnection, entry: &Entry) -> sqlx::Result<()> {
    let (before, after) = entry.balances.unzip();
    sqlx::query(
        "-- ledger::post
        with entry as (
            insert into billing.transactions
                (id, user_id, type, amount, balance_before, balance_after, description, order_id, payment_id, device_id,
                 operator_id, metadata, created_at)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        )
        insert into billing.postings (transaction_id, leg, account_id, amount)
        values ($1, 1, $14, -$16::bigint), ($1, 2, $15, $16)",
    )
    .bind(&entry.id)
    .bind(&entry.user_id)
    .bind(entry.kind)
    .bind(entry.amount)
    .bind(before)
    .bind(after)
    .bind(&entry.details.description)
    .bind(&entry.details.order_id)
    .bind(&entry.details.payment_id)
    .bind(&entry.details.device_id)
    .bind(&entry.details.operator_id)
    .bind(&entry.details.metadata)
    .bind(entry.created_at)
    .bind(entry.from.id())
    .bind(entry.to.id())
    .bind(entry.value)
    .execute(conn)
    .await?;
    Ok(())
}
