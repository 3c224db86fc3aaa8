//! SQL of findings. Every time here is the database's own.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{FromRow, PgConnection, PgPool};

use super::{FencedWrites, Finding, Found};

/// Looks in a row after which a finding that is not certain counts.
const LOOKS: i32 = 3;
/// Looks further apart than this are not in a row: nobody looked in between, or nobody could do better.
const IN_A_ROW: &str = "150 seconds";
/// Looks closer together than this count as one, however often somebody asks for them.
const APART: &str = "45 seconds";

/// When an invariant was last looked at.
#[derive(Clone, Debug, FromRow)]
pub struct Checked {
    pub invariant: String,
    pub checked_at: DateTime<Utc>,
    pub instance: String,
    pub error: Option<String>,
    pub total: i64,
}

pub async fn now(db: &PgPool) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar("select clock_timestamp()")
        .fetch_one(db)
        .await
}

/// Writes down what a look that began at `begun` found, forgets what it no longer found and was never confirmed, and
/// answers the subjects that are confirmed by it.
pub async fn record(
    conn: &mut PgConnection,
    invariant: &str,
    found: &[Finding],
    begun: DateTime<Utc>,
) -> sqlx::Result<Vec<String>> {
    // One statement must not write a row twice.
    let found: BTreeMap<&str, &Finding> = found
        .iter()
        .map(|each| (each.subject.as_str(), each))
        .collect();
    let subjects: Vec<&str> = found.keys().copied().collect();
    let details: Vec<&Value> = found.values().map(|each| &each.detail).collect();
    let certain: Vec<bool> = found.values().map(|each| each.certain).collect();
    let insert = sqlx::query_as(
        "-- invariants::record
        insert into coordination.findings as f (invariant, subject, detail, confirmed_at)
        select $1, subject, detail, case when certain then clock_timestamp() end
        from unnest($2::text[], $3::jsonb[], $4::boolean[]) as found (subject, detail, certain)
        on conflict (invariant, subject) do update
        set detail = case when f.confirmed_at is null then excluded.detail else f.detail end,
            looks = case when f.last_seen_at < clock_timestamp() - $5::interval then 1
                when f.counted_at > clock_timestamp() - $8::interval then f.looks else f.looks + 1 end,
            counted_at = case when f.last_seen_at >= clock_timestamp() - $5::interval
                    and f.counted_at > clock_timestamp() - $8::interval
                then f.counted_at else clock_timestamp() end,
            last_seen_at = clock_timestamp(),
            confirmed_at = coalesce(f.confirmed_at, excluded.confirmed_at,
                case when f.last_seen_at >= clock_timestamp() - $5::interval
                    and f.counted_at <= clock_timestamp() - $8::interval and f.looks + 1 >= $6
                    then clock_timestamp() end)
        returning subject, confirmed_at >= $7 as confirmed",
    );
    let rows: Vec<(String, Option<bool>)> = insert
        .bind(invariant)
        .bind(subjects)
        .bind(details)
        .bind(certain)
        .bind(IN_A_ROW)
        .bind(LOOKS)
        .bind(begun)
        .bind(APART)
        .fetch_all(&mut *conn)
        .await?;
    let delete = sqlx::query(
        "-- invariants::forget
        delete from coordination.findings
        where invariant = $1 and confirmed_at is null and last_seen_at < $2",
    );
    delete.bind(invariant).bind(begun).execute(conn).await?;
    let confirmed = rows.into_iter().filter(|(_, new)| *new == Some(true));
    Ok(confirmed.map(|(subject, _)| subject).collect())
}

pub async fn checked(
    conn: &mut PgConnection,
    invariant: &str,
    instance: &str,
    error: Option<&str>,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "-- invariants::checked
        insert into coordination.invariant_checks as c (invariant, instance, error) values ($1, $2, $3)
        on conflict (invariant) do update
        set checked_at = case when excluded.error is null then clock_timestamp() else c.checked_at end,
            instance = excluded.instance, error = excluded.error",
    );
    insert
        .bind(invariant)
        .bind(instance)
        .bind(error)
        .execute(conn)
        .await?;
    Ok(())
}

pub async fn add_fenced(db: &PgPool, told: &BTreeMap<String, i64>) -> sqlx::Result<()> {
    if told.is_empty() {
        return Ok(());
    }
    let insert = sqlx::query(
        "-- invariants::add_fenced
        insert into coordination.fenced_writes as f (kind, total)
        select * from unnest($1::text[], $2::bigint[])
        on conflict (kind) do update set total = f.total + excluded.total, last_at = clock_timestamp()",
    );
    insert
        .bind(told.keys().map(String::as_str).collect::<Vec<_>>())
        .bind(told.values().copied().collect::<Vec<_>>())
        .execute(db)
        .await?;
    Ok(())
}

pub async fn report(
    db: &PgPool,
    limit: i64,
) -> sqlx::Result<(Vec<Checked>, Vec<Found>, Vec<FencedWrites>)> {
    let checks = sqlx::query_as(
        "-- invariants::checks
        select invariant, checked_at, instance, error,
            (select count(*) from coordination.findings f
                where f.invariant = c.invariant and confirmed_at is not null) as total
        from coordination.invariant_checks c order by invariant",
    );
    let checks = checks.fetch_all(db).await?;
    let found = sqlx::query_as(
        "-- invariants::findings
        select f.* from coordination.invariant_checks c cross join lateral (
            select invariant, subject, detail, first_seen_at, last_seen_at, confirmed_at
            from coordination.findings where invariant = c.invariant order by last_seen_at desc, subject limit $1
        ) f",
    );
    let found = found.bind(limit).fetch_all(db).await?;
    let fenced =
        sqlx::query_as("select kind, total, last_at from coordination.fenced_writes order by kind");
    Ok((checks, found, fenced.fetch_all(db).await?))
}
