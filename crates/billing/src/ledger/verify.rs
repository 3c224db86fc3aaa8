//! Proves that what is kept follows from what was written.

use anyhow::Context;
use contracts::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::types::Json;
use tracing::error;

use crate::{Billing, metrics};

/// The most differences that are told; one is already one too many.
const MOST: i64 = 100;

/// What the proof found.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Whether everything follows.
    pub ok: bool,
    pub checked_at: Timestamp,
    /// What does not, at most a hundred.
    pub differences: Vec<Difference>,
}

/// Something kept that does not follow from the ledger.
#[derive(Clone, Debug, Serialize, Deserialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// `available`, `frozen`, `history`: a kept balance; `legs`: a movement that does not sum to zero; `order_paid_twice`;
    /// `paid_orders`: an order that counts as paid without a payment of its price; `payment_legs`: a payment, applied or given
    /// back, without as much in the ledger; `refunds`: what an order says was given back; `refund_legs`: a refund without as much
    /// in the ledger.
    pub kind: String,
    /// The account, user, transaction, order, payment or refund.
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
        union all
        select 'paid_orders', o.id, o.final_amount, coalesce(p.amount, 0)
        from billing.orders o left join billing.payments p on p.order_id = o.id and p.applied
        where o.state in ('PAID', 'COMPLETED', 'REFUNDING', 'REFUNDED') and o.final_amount <> coalesce(p.amount, 0)
        union all
        select 'payment_legs', p.id, p.amount, coalesce(l.total, 0)
        from billing.payments p left join (
            select t.payment_id, t.type = 'refund' as back, sum(g.amount)::bigint as total
            from billing.transactions t join billing.postings g on g.transaction_id = t.id and g.amount > 0
            where t.type in ('payment', 'consume', 'refund') and t.payment_id is not null group by 1, 2
        ) l on l.payment_id = p.id and l.back <> p.applied
        where (p.applied or p.status = 'refunded') and p.amount <> coalesce(l.total, 0)
        union all
        select 'refunds', o.id, coalesce(r.total, 0), o.refund_amount
        from billing.orders o left join (
            select order_id, sum(amount)::bigint as total from billing.refunds where state not in ('failed', 'rejected') group by order_id
        ) r on r.order_id = o.id
        where o.refund_amount <> coalesce(r.total, 0)
        union all
        select 'refund_legs', r.id, r.amount, coalesce(p.total, 0)
        from billing.refunds r left join (
            select transaction_id, sum(amount) filter (where amount > 0)::bigint as total from billing.postings group by transaction_id
        ) p on p.transaction_id = r.transaction_id
        where r.state = 'succeeded' and r.amount <> coalesce(p.total, 0)
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

/// A proof for who asks for one: of now where that does not take longer than a request may, else the last one there was.
///
/// # Errors
/// Where the database fails, or there was none yet.
pub async fn on_demand(state: &Billing) -> sqlx::Result<Verdict> {
    let mut tx = state.platform.db.begin().await?;
    sqlx::query("set local statement_timeout = '5s'")
        .execute(&mut *tx)
        .await?;
    match check(&mut tx, state.platform.clock.now()).await {
        Ok(verdict) => {
            keep(&mut tx, &verdict).await?;
            tx.commit().await?;
            Ok(verdict)
        }
        Err(error) if is_out_of_time(&error) => {
            tx.rollback().await?;
            let mut conn = state.platform.db.acquire().await?;
            last(&mut conn).await?.ok_or(error)
        }
        Err(error) => Err(error),
    }
}

fn is_out_of_time(error: &sqlx::Error) -> bool {
    // query_canceled
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "57014")
}

/// Keeps a verdict in the place of an older one.
async fn keep(conn: &mut PgConnection, verdict: &Verdict) -> sqlx::Result<()> {
    sqlx::query(
        "-- ledger::keep_verdict
        insert into billing.ledger_verdict as v (verdict, checked_at) values ($1, $2)
        on conflict (only_one) do update set verdict = $1, checked_at = $2 where v.checked_at <= $2",
    )
    .bind(Json(verdict))
    .bind(verdict.checked_at)
    .execute(conn)
    .await?;
    Ok(())
}

async fn last(conn: &mut PgConnection) -> sqlx::Result<Option<Verdict>> {
    let kept: Option<Json<Verdict>> =
        sqlx::query_scalar("select verdict from billing.ledger_verdict")
            .fetch_optional(conn)
            .await?;
    Ok(kept.map(|Json(verdict)| verdict))
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
    keep(&mut tx, &verdict).await?;
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
