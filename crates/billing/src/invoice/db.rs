//! Invoices in PostgreSQL.

use contracts::{Money, Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::{Invoice, Item, Kind, Status};

macro_rules! columns {
    () => {
        "id, invoice_number, user_id, type, status, items, subtotal, tax, discount, total, currency, generated,
        paid_amount, period_start, period_end, due_date, published_at, paid_at, created_at, updated_at"
    };
}

macro_rules! matching {
    () => {
        " from billing.invoices
        where ($1::text is null or user_id = $1) and ($2::text is null or status = $2) and ($3::text is null or type = $3)
            and ($4::timestamptz is null or period_end >= $4) and ($5::timestamptz is null or period_start <= $5)
            and (published_at is not null or not $6)"
    };
}

/// Which invoices are wanted; what is `None` does not restrict.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub user: Option<&'a UserId>,
    pub status: Option<Status>,
    pub kind: Option<Kind>,
    /// Of periods that end at or after this.
    pub from: Option<Timestamp>,
    /// Of periods that begin at or before this.
    pub to: Option<Timestamp>,
    /// Only those that their user sees.
    pub published: bool,
}

/// What a user's invoices come to.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub struct Sums {
    pub count: i64,
    pub paid_count: i64,
    pub unpaid_count: i64,
    pub total: Money,
    pub paid: Money,
    pub unpaid: Money,
    pub overdue: Money,
    pub refunded: Money,
}

/// Writes an invoice under the next number of its year; `None` where the user has one for the period: roll back then, or
/// its number is lost. Until the end of the transaction no other invoice is written.
pub async fn insert(conn: &mut PgConnection, invoice: &Invoice) -> sqlx::Result<Option<Invoice>> {
    sqlx::query_as(concat!(
        "-- invoice::insert
        with number as (
            insert into billing.invoice_counters as c (year, last)
            values (extract(year from $2 at time zone 'UTC')::integer, 1)
            on conflict (year) do update set last = c.last + 1
            returning 'INV' || year || lpad(last::text, 8, '0') as text
        )
        insert into billing.invoices
            (id, invoice_number, user_id, type, status, items, subtotal, tax, discount, total, generated, period_start,
             period_end, due_date, published_at, paid_amount, paid_at, created_at, updated_at)
        select $1, number.text, $3, $4, $15, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $16, $17, $2, $2 from number
        on conflict (user_id, period_start, period_end) where generated and status <> 'cancelled' do nothing
        returning ",
        columns!()
    ))
    .bind(&invoice.id)
    .bind(invoice.created_at)
    .bind(&invoice.user_id)
    .bind(invoice.kind)
    .bind(&invoice.items)
    .bind(invoice.subtotal)
    .bind(invoice.tax)
    .bind(invoice.discount)
    .bind(invoice.total)
    .bind(invoice.generated)
    .bind(invoice.period_start)
    .bind(invoice.period_end)
    .bind(invoice.due_date)
    .bind(invoice.published_at)
    .bind(invoice.status)
    .bind(invoice.paid_amount)
    .bind(invoice.paid_at)
    .fetch_optional(conn)
    .await
}

/// Lets nobody else generate an invoice of a user until the end of the transaction.
pub async fn lock_generation(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<()> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('billing.invoices:' || $1, 0))")
        .bind(user)
        .execute(conn)
        .await?;
    Ok(())
}

/// Puts on an invoice, which is still to be written, what a user consumed in a span and what stands on no other: a line
/// for each plan ordered, one for devices, one for the rest, and one for what is owed. Gives them and what is owed.
///
/// What is owed stands where it was recorded, also once it is collected; the movement that collects it, or that pays an
/// invoice, states nothing new.
pub async fn claim(
    conn: &mut PgConnection,
    invoice: &str,
    user: &UserId,
    (from, to): (Timestamp, Timestamp),
) -> sqlx::Result<(Vec<Item>, Money)> {
    let mut lines: Vec<(String, i64, Money)> = sqlx::query_as(
        "-- invoice::claim_movements
        with claimed as (
            insert into billing.invoice_entries (invoice_id, transaction_id)
            select $4, t.id from billing.transactions t
            where t.user_id = $1 and t.type in ('consume', 'payment') and t.created_at between $2 and $3
                and not exists (select 1 from billing.invoices i where i.transaction_id = t.id)
                and not exists (select 1 from billing.debts d where d.transaction_id = t.id)
                and not exists (select 1 from billing.invoice_entries e where e.transaction_id = t.id)
            returning transaction_id
        )
        select case when t.order_id is not null then 'Orders: ' || coalesce(o.plan_name, 'other')
                when t.device_id is not null then 'Devices' else 'Other consumption' end as line,
            count(*), sum(t.amount)::bigint
        from claimed c join billing.transactions t on t.id = c.transaction_id
        left join billing.orders o on o.id = t.order_id
        group by 1 order by 1",
    )
    .bind(user)
    .bind(from)
    .bind(to)
    .bind(invoice)
    .fetch_all(&mut *conn)
    .await?;
    // Locked, so that one that is being collected meanwhile is seen as it ends.
    let (count, recorded, owed): (i64, Money, Money) = sqlx::query_as(
        "-- invoice::claim_debts
        with wanted as (
            select d.id, d.amount, d.settled_at from billing.debts d
            where d.user_id = $1 and d.created_at between $2 and $3
                and not exists (select 1 from billing.invoice_entries e where e.debt_id = d.id)
            order by d.seq for no key update of d
        ), claimed as (
            insert into billing.invoice_entries (invoice_id, debt_id) select $4, id from wanted
        )
        select count(*), coalesce(sum(amount), 0)::bigint,
            coalesce(sum(amount) filter (where settled_at is null), 0)::bigint
        from wanted",
    )
    .bind(user)
    .bind(from)
    .bind(to)
    .bind(invoice)
    .fetch_one(conn)
    .await?;
    if count > 0 {
        lines.push(("Devices, beyond the balance".to_owned(), count, recorded));
    }
    let item = |(place, (line, count, amount)): (usize, (String, i64, Money))| Item {
        id: (place + 1).to_string(),
        description: format!("{line} ({count})"),
        quantity: 1,
        unit_price: amount,
        amount,
    };
    Ok((lines.into_iter().enumerate().map(item).collect(), owed))
}

/// Counts a debt that was just settled on the invoice on which it stands; the last one pays it.
pub async fn settle_debt(
    conn: &mut PgConnection,
    debt: &str,
    amount: Money,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- invoice::settle_debt
        update billing.invoices i
        set paid_amount = i.paid_amount + $2, updated_at = $3,
            status = case when i.paid_amount + $2 = i.total then 'paid' else i.status end,
            paid_at = case when i.paid_amount + $2 = i.total then $3 end
        from billing.invoice_entries e where e.debt_id = $1 and i.id = e.invoice_id and i.status = 'unpaid'",
    )
    .bind(debt)
    .bind(amount)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether what a payment paid for falls into a period.
pub async fn is_billed(
    conn: &mut PgConnection,
    payment: &str,
    (from, to): (Timestamp, Timestamp),
) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "-- invoice::is_billed
        select exists (
            select 1 from billing.payments p join billing.transactions t on t.order_id = p.order_id
            where p.id = $1 and t.payment_id = p.id and t.type in ('consume', 'payment')
                and t.created_at between $2 and $3
        )",
    )
    .bind(payment)
    .bind(from)
    .bind(to)
    .fetch_one(conn)
    .await
}

/// The invoice that a payment has paid goes back with it.
pub async fn refund_paid_by(
    conn: &mut PgConnection,
    payment: &str,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- invoice::refund_paid_by
        update billing.invoices set status = 'refunded', updated_at = $2
        where payment_id = $1 and status = 'paid'",
    )
    .bind(payment)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// The invoice that a payment has paid is paid again, where its refund came back.
pub async fn unrefund_paid_by(
    conn: &mut PgConnection,
    payment: &str,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- invoice::unrefund_paid_by
        update billing.invoices set status = 'paid', updated_at = $2
        where payment_id = $1 and status = 'refunded'",
    )
    .bind(payment)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// The invoice generated for a user and period.
pub async fn find_generated(
    conn: &mut PgConnection,
    user: &UserId,
    (from, to): (Timestamp, Timestamp),
) -> sqlx::Result<Option<Invoice>> {
    sqlx::query_as(concat!(
        "-- invoice::find_generated
        select ",
        columns!(),
        " from billing.invoices
        where user_id = $1 and period_start = $2 and period_end = $3 and generated and status <> 'cancelled'"
    ))
    .bind(user)
    .bind(from)
    .bind(to)
    .fetch_optional(conn)
    .await
}

/// An invoice.
pub async fn find(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Invoice>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.invoices where id = $1"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// An invoice that nobody else changes until the end of the transaction.
pub async fn lock(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Invoice>> {
    sqlx::query_as(concat!(
        "-- invoice::lock
        select ",
        columns!(),
        " from billing.invoices where id = $1 for no key update"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// Invoices that are wanted, newest first.
pub async fn list(
    conn: &mut PgConnection,
    wanted: Wanted<'_>,
    slice: Slice,
) -> sqlx::Result<Vec<Invoice>> {
    sqlx::query_as(concat!(
        "-- invoice::list
        select ",
        columns!(),
        matching!(),
        " order by created_at desc, seq desc limit $7 offset $8"
    ))
    .bind(wanted.user)
    .bind(wanted.status)
    .bind(wanted.kind)
    .bind(wanted.from)
    .bind(wanted.to)
    .bind(wanted.published)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many are wanted.
pub async fn count(conn: &mut PgConnection, wanted: Wanted<'_>) -> sqlx::Result<i64> {
    sqlx::query_scalar(concat!("select count(*)", matching!()))
        .bind(wanted.user)
        .bind(wanted.status)
        .bind(wanted.kind)
        .bind(wanted.from)
        .bind(wanted.to)
        .bind(wanted.published)
        .fetch_one(conn)
        .await
}

/// What the published invoices of a user come to; the cancelled count as no money.
pub async fn sums(conn: &mut PgConnection, user: &UserId, now: Timestamp) -> sqlx::Result<Sums> {
    sqlx::query_as(
        "-- invoice::sums
        select count(*), count(*) filter (where status = 'paid') as paid_count,
            count(*) filter (where status = 'unpaid') as unpaid_count,
            coalesce(sum(total) filter (where status <> 'cancelled'), 0)::bigint as total,
            coalesce(sum(case status when 'paid' then total when 'unpaid' then paid_amount end), 0)::bigint as paid,
            coalesce(sum(total - coalesce(paid_amount, 0)) filter (where status = 'unpaid'), 0)::bigint as unpaid,
            coalesce(sum(total - coalesce(paid_amount, 0)) filter (where status = 'unpaid' and due_date < $2), 0)::bigint
                as overdue,
            coalesce(sum(total) filter (where status = 'refunded'), 0)::bigint as refunded
        from billing.invoices where user_id = $1 and published_at is not null",
    )
    .bind(user)
    .bind(now)
    .fetch_one(conn)
    .await
}

/// Shows an unpaid invoice to its user; `None` where that is done or no longer due.
pub async fn publish(
    conn: &mut PgConnection,
    id: &str,
    now: Timestamp,
) -> sqlx::Result<Option<Invoice>> {
    sqlx::query_as(concat!(
        "-- invoice::publish
        update billing.invoices set published_at = $2, updated_at = $2
        where id = $1 and published_at is null and status = 'unpaid'
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(now)
    .fetch_optional(conn)
    .await
}

/// Cancels an unpaid invoice, and frees what stood on it; `None` where it is no longer unpaid. Its open debts are locked
/// before it.
pub async fn cancel(
    conn: &mut PgConnection,
    id: &str,
    reason: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<Option<Invoice>> {
    let cancelled: Option<Invoice> = sqlx::query_as(concat!(
        "-- invoice::cancel
        update billing.invoices set status = 'cancelled', cancel_reason = $3, updated_at = $2
        where id = $1 and status = 'unpaid'
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(now)
    .bind(reason)
    .fetch_optional(&mut *conn)
    .await?;
    if cancelled.is_some() {
        sqlx::query("delete from billing.invoice_entries where invoice_id = $1")
            .bind(id)
            .execute(conn)
            .await?;
    }
    Ok(cancelled)
}

/// Marks a locked, unpaid invoice as paid by a movement or by a payment. The key `invoices_payment_used_once` refuses a
/// payment that paid another one.
pub async fn mark_paid(
    conn: &mut PgConnection,
    id: &str,
    (transaction, payment): (Option<&str>, Option<&str>),
    now: Timestamp,
) -> sqlx::Result<Invoice> {
    sqlx::query_as(concat!(
        "-- invoice::mark_paid
        update billing.invoices
        set status = 'paid', paid_at = $2, updated_at = $2, transaction_id = $3, payment_id = $4,
            paid_amount = case when generated then total end
        where id = $1 and status = 'unpaid'
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(now)
    .bind(transaction)
    .bind(payment)
    .fetch_one(conn)
    .await
}
