//! Balances and their movements in PostgreSQL.

use contracts::{Money, Timestamp, TransactionId, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::{Balance, Shift, Transaction, TransactionType};
use crate::times::Bound;

macro_rules! columns {
    () => {
        "id, user_id, available, frozen, total_recharge, total_consume, currency, low_balance_threshold, alert_enabled,
        created_at, updated_at"
    };
}

/// Which movements of a user are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub kind: Option<TransactionType>,
    pub from: Option<Bound>,
    pub to: Option<Bound>,
    pub slice: Slice,
}

/// Opens the accounts of a user who has none.
pub async fn ensure(conn: &mut PgConnection, user: &UserId, now: Timestamp) -> sqlx::Result<()> {
    sqlx::query(
        "-- balance::ensure
        with opened as (
            insert into billing.balances (id, user_id, created_at, updated_at)
            select $1, $2, $3, $3 where not exists (select 1 from billing.balances where user_id = $2)
            on conflict (user_id) do nothing returning user_id
        )
        insert into billing.accounts (id, kind, user_id)
        select kind || ':' || user_id, kind, user_id from opened, unnest(array['available', 'frozen']) kind",
    )
    .bind(TransactionId::new().as_str())
    .bind(user)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// A user's balance.
pub async fn find(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<Option<Balance>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.balances where user_id = $1"
    ))
    .bind(user)
    .fetch_optional(conn)
    .await
}

/// Changes a balance, unless that would leave less than nothing.
pub async fn shift(
    conn: &mut PgConnection,
    user: &UserId,
    shift: &Shift,
    now: Timestamp,
) -> sqlx::Result<Option<Balance>> {
    sqlx::query_as(concat!(
        "-- balance::shift
        update billing.balances
        set available = available + $2, frozen = frozen + $3, total_recharge = total_recharge + $4,
            total_consume = total_consume + $5, updated_at = $6
        where user_id = $1 and available + $2 >= 0 and frozen + $3 >= 0
        returning ",
        columns!()
    ))
    .bind(user)
    .bind(shift.available)
    .bind(shift.frozen)
    .bind(shift.recharged)
    .bind(shift.consumed)
    .bind(now)
    .fetch_optional(conn)
    .await
}

/// A user's movements, newest first.
pub async fn list(
    conn: &mut PgConnection,
    user: &UserId,
    wanted: Wanted,
) -> sqlx::Result<Vec<Transaction>> {
    sqlx::query_as(
        "select id, user_id, type, amount, balance_before, balance_after, 'success' as status, description, order_id,
            payment_id, device_id, operator_id, metadata, created_at
        from billing.transactions
        where user_id = $1 and balance_after is not null and ($2::text is null or type = $2)
            and ($3::timestamptz is null or created_at >= $3) and ($4::timestamptz is null or created_at <= $4)
        order by created_at desc, seq desc limit $5 offset $6",
    )
    .bind(user)
    .bind(wanted.kind)
    .bind(wanted.from.map(Bound::start))
    .bind(wanted.to.map(Bound::end))
    .bind(wanted.slice.limit)
    .bind(wanted.slice.offset)
    .fetch_all(conn)
    .await
}

/// How many such movements a user has.
pub async fn count(conn: &mut PgConnection, user: &UserId, wanted: Wanted) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from billing.transactions
        where user_id = $1 and balance_after is not null and ($2::text is null or type = $2)
            and ($3::timestamptz is null or created_at >= $3) and ($4::timestamptz is null or created_at <= $4)",
    )
    .bind(user)
    .bind(wanted.kind)
    .bind(wanted.from.map(Bound::start))
    .bind(wanted.to.map(Bound::end))
    .fetch_one(conn)
    .await
}

/// A balance that fell to its threshold or below.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Fallen {
    /// What was available then.
    pub balance: Money,
    /// The threshold then.
    pub threshold: Money,
    /// When it fell.
    pub created_at: Timestamp,
}

/// Writes down that a balance fell to its threshold or below.
pub async fn insert_alert(
    conn: &mut PgConnection,
    balance: &Balance,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- balance::insert_alert
        insert into billing.low_balance_alerts (user_id, balance, threshold, created_at) values ($1, $2, $3, $4)",
    )
    .bind(&balance.user_id)
    .bind(balance.available)
    .bind(balance.low_balance_threshold)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// When the balance of a user fell so low, newest first.
pub async fn alerts(
    conn: &mut PgConnection,
    user: &UserId,
    limit: i64,
) -> sqlx::Result<Vec<Fallen>> {
    sqlx::query_as(
        "-- balance::alerts
        select balance, threshold, created_at from billing.low_balance_alerts where user_id = $1 order by seq desc limit $2",
    )
    .bind(user)
    .bind(limit)
    .fetch_all(conn)
    .await
}
