//! Proves that what is kept follows from what was written.

use anyhow::Context;
use contracts::Timestamp;
use serde::Serialize;
use sqlx::PgConnection;
use tracing::error;

use crate::{Billing, metrics};

/// The most differences that are told; one is already one too many.
const MOST: i64 = 100;

/// What the proof found.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Whether everything follows.
    pub ok: bool,
    pub checked_at: Timestamp,
    /// What does not, at most a hundred.
    pub differences: Vec<Difference>,
}

/// Something kept that does not follow from the ledger.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// `available`, `frozen`, `history`, `legs` or `order_paid_twice`.
    pub kind: String,
    /// The account, user, transaction or order.
    pub subject: String,
    /// What follows from the ledger, in fen.
    pub expected: i64,
    /// What is kept, in fen.
    pub actual: i64,
}

/// Compares all kept balances with the postings and the movements, every movement with zero, and orders with the
/// payments that paid them.
pub async fn check(conn: &mut PgConnection, now: Timestamp) -> sqlx::Result<Verdict> {
    // One statement sees one state of the store, whatever is written meanwhile.
    let differences: Vec<Difference> = sqlx::query_as(
        "-- ledger::verify
        with sums as (
            select a.user_id, a.kind, sum(p.amount)::bigint as total
            from billing.postings p join billing.accounts a on a.id = p.account_id
            where a.user_id is not null group by a.user_id, a.kind
        ), movements as (
            select user_id, sum(case type when 'consume' then -amount when 'freeze' then -amount else amount end)::bigint as total
            from billing.transactions where balance_after is not null group by user_id
        )
        select 'available' as kind, b.user_id as subject, coalesce(s.total, 0) as expected, b.available as actual
        from billing.balances b left join sums s on s.user_id = b.user_id and s.kind = 'available'
        where b.available <> coalesce(s.total, 0)
        union all
        select 'frozen', b.user_id, coalesce(s.total, 0), b.frozen
        from billing.balances b left join sums s on s.user_id = b.user_id and s.kind = 'frozen'
        where b.frozen <> coalesce(s.total, 0)
        union all
        select 'history', b.user_id, coalesce(m.total, 0), b.available
        from billing.balances b left join movements m on m.user_id = b.user_id
        where b.available <> coalesce(m.total, 0)
        union all
        select 'legs', p.transaction_id, 0, sum(p.amount)::bigint
        from billing.postings p group by p.transaction_id having sum(p.amount) <> 0
        union all
        select 'order_paid_twice', order_id, 1, count(*)
        from billing.payments where applied group by order_id having count(*) > 1
        limit $1",
    )
    .bind(MOST)
    .fetch_all(conn)
    .await?;
    Ok(Verdict {
        ok: differences.is_empty(),
        checked_at: now,
        differences,
    })
}

/// The nightly proof: shows the result as metrics that must stay 0.
pub async fn measure(state: &Billing) -> anyhow::Result<()> {
    let mut tx = state
        .platform
        .db
        .begin()
        .await
        .context("proving the ledger")?;
    // A proof reads everything and may take longer than a request.
    sqlx::query("set local statement_timeout = '4min'")
        .execute(&mut *tx)
        .await?;
    let verdict = check(&mut tx, state.platform.clock.now())
        .await
        .context("proving the ledger")?;
    tx.commit().await?;
    let twice = |difference: &&Difference| difference.kind == "order_paid_twice";
    let paid_twice = verdict.differences.iter().filter(twice).count();
    for difference in &verdict.differences {
        error!(
            ledger.kind = difference.kind,
            ledger.subject = difference.subject,
            "the ledger says {} and the store {}",
            difference.expected,
            difference.actual
        );
    }
    metrics::invariants(verdict.differences.len() - paid_twice, paid_twice as i64);
    Ok(())
}
