//! What the provider of the sandbox knows, in PostgreSQL: any replica is that provider.

use chrono::TimeDelta;
use contracts::Money;
use sqlx::PgConnection;

use super::super::Standing;
use crate::payment::Payment;
use crate::refund::Refund;

/// A payment as the provider knows it.
#[derive(Debug, sqlx::FromRow)]
pub struct Known {
    pub amount: Money,
    state: String,
    pub transaction_id: String,
}

/// A notice to be delivered.
#[derive(Debug, sqlx::FromRow)]
pub struct Due {
    pub id: i64,
    pub webhook_id: String,
    pub body: String,
    pub attempts: i32,
}

impl Known {
    pub fn standing(self) -> Standing {
        match &*self.state {
            "paid" => Standing::Paid {
                transaction_id: self.transaction_id,
                amount: self.amount,
            },
            "failed" => Standing::Failed("refused in the sandbox".to_owned()),
            "closed" => Standing::Closed,
            _ => Standing::Open,
        }
    }
}

pub async fn open(conn: &mut PgConnection, payment: &Payment) -> sqlx::Result<()> {
    sqlx::query(
        "-- sandbox::open
        insert into billing.sandbox_payments (payment_no, amount, state, transaction_id, created_at)
        values ($1, $2, 'open', 'sandbox-' || $1, now()) on conflict do nothing",
    )
    .bind(&payment.payment_no)
    .bind(payment.amount)
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn find(conn: &mut PgConnection, number: &str) -> sqlx::Result<Option<Known>> {
    sqlx::query_as(
        "select amount, state, transaction_id from billing.sandbox_payments where payment_no = $1",
    )
    .bind(number)
    .fetch_optional(conn)
    .await
}

/// Ends an open payment; `None` where it is not open.
pub async fn end(
    conn: &mut PgConnection,
    number: &str,
    state: &str,
) -> sqlx::Result<Option<Known>> {
    sqlx::query_as(
        "-- sandbox::end
        update billing.sandbox_payments set state = $2 where payment_no = $1 and state = 'open'
        returning amount, state, transaction_id",
    )
    .bind(number)
    .bind(state)
    .fetch_optional(conn)
    .await
}

/// Makes a refund, or finds it made; `false` where less was paid.
pub async fn refund(
    conn: &mut PgConnection,
    refund: &Refund,
    of: &Payment,
    takes: TimeDelta,
) -> sqlx::Result<bool> {
    let known: Option<String> = sqlx::query_scalar(
        "-- sandbox::refund
        with paid as (
            select p.payment_no from billing.sandbox_payments p
            where p.payment_no = $2 and p.state = 'paid' and p.amount >= $3 + coalesce(
                (select sum(r.amount) from billing.sandbox_refunds r where r.payment_no = $2 and r.refund_no <> $1), 0)
            for update
        )
        insert into billing.sandbox_refunds (refund_no, payment_no, amount, done_at)
        select $1, payment_no, $3, now() + make_interval(secs => $4) from paid
        on conflict (refund_no) do update set refund_no = excluded.refund_no
        returning refund_no",
    )
    .bind(refund.number())
    .bind(&of.payment_no)
    .bind(refund.amount)
    .bind(takes.as_seconds_f64())
    .fetch_optional(conn)
    .await?;
    Ok(known.is_some())
}

/// Whether a refund has arrived; `None` where there is none.
pub async fn is_refunded(conn: &mut PgConnection, number: &str) -> sqlx::Result<Option<bool>> {
    sqlx::query_scalar("select done_at <= now() from billing.sandbox_refunds where refund_no = $1")
        .bind(number)
        .fetch_optional(conn)
        .await
}

/// Writes down what is to be told, and when.
pub async fn tell(
    conn: &mut PgConnection,
    webhook_id: &str,
    body: &str,
    after: TimeDelta,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- sandbox::tell
        insert into billing.sandbox_notices (webhook_id, body, due_at)
        values ($1, $2, now() + make_interval(secs => $3))",
    )
    .bind(webhook_id)
    .bind(body)
    .bind(after.as_seconds_f64())
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes notices whose time has come; each comes again, later each time, unless it is [`answered`].
pub async fn take_due(conn: &mut PgConnection, batch: i64) -> sqlx::Result<Vec<Due>> {
    sqlx::query_as(
        "-- sandbox::take_due
        update billing.sandbox_notices
        set attempts = attempts + 1, due_at = now() + make_interval(secs => 10 * (attempts + 1))
        where id in (
            select id from billing.sandbox_notices where due_at <= now()
            order by due_at limit $1 for update skip locked
        )
        returning id, webhook_id, body, attempts",
    )
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// Forgets a notice that was answered, or that nobody will answer.
pub async fn answered(conn: &mut PgConnection, id: i64) -> sqlx::Result<()> {
    sqlx::query("delete from billing.sandbox_notices where id = $1")
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}
