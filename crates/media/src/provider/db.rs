//! Statements about providers.

use std::time::Duration;

use contracts::Timestamp;
use sqlx::PgConnection;

/// Failures in a row that open the circuit …
const FAILURES: i32 = 5;
/// … and for how many seconds, until one call tries.
const OPEN_SECONDS: f64 = 30.0;

/// Notes how a call went. A call that works closes the circuit.
pub async fn note(
    conn: &mut PgConnection,
    name: &str,
    worked: bool,
    took: Duration,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- provider::note
        with hour as (
            insert into media.provider_hours (ref, hour, succeeded, failed, milliseconds)
            values ($1, date_trunc('hour', $3::timestamptz), $2::boolean::integer, (not $2)::integer, $4)
            on conflict (ref, hour) do update set succeeded = provider_hours.succeeded + excluded.succeeded,
                failed = provider_hours.failed + excluded.failed, milliseconds = provider_hours.milliseconds + excluded.milliseconds
        )
        insert into media.providers as p (ref, failures) values ($1, (not $2)::integer)
        on conflict (ref) do update set failures = case when $2 then 0 else p.failures + 1 end,
            open_until = case
                when $2 then case when p.state = 'down' then p.open_until end
                when p.failures + 1 >= $5 then $3 + make_interval(secs => $6)
                else p.open_until end",
    )
    .bind(name)
    .bind(worked)
    .bind(now)
    .bind(millis(took))
    .bind(FAILURES)
    .bind(OPEN_SECONDS)
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether something new may be sent there. Where the circuit was open, the caller's is the one call that tries.
pub async fn may_send(conn: &mut PgConnection, name: &str, now: Timestamp) -> sqlx::Result<bool> {
    let refused: Option<bool> = sqlx::query_scalar(
        "-- provider::may_send
        with probe as (
            update media.providers set open_until = $2 + make_interval(secs => $3) where ref = $1 and open_until <= $2
            returning 1
        )
        select exists (select from media.providers where ref = $1 and open_until is not null) and not exists (select from probe)",
    )
    .bind(name)
    .bind(now)
    .bind(OPEN_SECONDS)
    .fetch_optional(conn)
    .await?;
    Ok(!refused.unwrap_or(false))
}

/// Notes a check: degraded after one that failed, down after three in a row, up after two that worked. The state before
/// and after it.
pub async fn checked(
    conn: &mut PgConnection,
    name: &str,
    latency: Option<Duration>,
    error: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<(String, String)> {
    sqlx::query("insert into media.providers (ref) values ($1) on conflict do nothing")
        .bind(name)
        .execute(&mut *conn)
        .await?;
    sqlx::query_as(
        "-- provider::checked
        with seen as (
            select ref, state as was, case when $3::text is null then 0 else check_failures + 1 end as failed,
                case when $3::text is null then check_successes + 1 else 0 end as worked
            from media.providers where ref = $1 for update
        ), decided as (
            select *, case
                when failed >= 3 and $2::bigint is null then 'down'
                when failed > 0 and was <> 'down' then 'degraded'
                when worked >= 2 then 'up'
                else was end as becomes
            from seen
        )
        update media.providers p set state = becomes, check_failures = failed, check_successes = worked,
            latency_ms = coalesce($2, latency_ms), last_error = coalesce($3, last_error), last_check_at = $4,
            failures = case when becomes = 'up' and worked > 0 then 0 else failures end,
            open_until = case
                when becomes = 'down' then $4::timestamptz + interval '1 minute'
                when becomes = 'up' and worked > 0 then null
                else open_until end,
            recovered_at = case when becomes = 'up' and was <> 'up' then $4 else recovered_at end
        from decided where decided.ref = p.ref
        returning was, becomes",
    )
    .bind(name)
    .bind(latency.map(millis))
    .bind(error)
    .bind(now)
    .fetch_one(conn)
    .await
}

/// How a provider does.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Standing {
    /// By its checks.
    pub state: String,
    /// Whether nothing new is sent there.
    pub is_open: bool,
    /// Calls in a row that failed.
    pub failures: i32,
    /// Steps that it has.
    pub running: i64,
    /// Of the last check that was answered.
    pub latency_ms: Option<i64>,
    /// Of the last 24 hours.
    pub success_rate: Option<f64>,
    /// When it was last checked.
    pub last_check_at: Option<Timestamp>,
    /// Why the last check that failed did.
    pub last_error: Option<String>,
    /// When it last came back.
    pub recovered_at: Option<Timestamp>,
}

/// How a provider does.
pub async fn standing(
    conn: &mut PgConnection,
    name: &str,
    now: Timestamp,
) -> sqlx::Result<Standing> {
    sqlx::query_as(
        "-- provider::standing
        select coalesce(p.state, 'up') as state, coalesce(p.open_until > $2, false) as is_open,
            coalesce(p.failures, 0) as failures, p.latency_ms, p.last_check_at, p.last_error, p.recovered_at,
            (select count(*) from media.jobs where provider = $1 and state in ('ready', 'leased')) as running,
            (select sum(succeeded)::float8 / nullif(sum(succeeded + failed), 0)::float8 from media.provider_hours
                where ref = $1 and hour > $2::timestamptz - interval '24 hours') as success_rate
        from (select $1 as ref) as asked left join media.providers p on p.ref = asked.ref",
    )
    .bind(name)
    .bind(now)
    .fetch_one(conn)
    .await
}

/// Deletes counts of calls that nobody asks for any more.
pub async fn purge(conn: &mut PgConnection, now: Timestamp) -> sqlx::Result<()> {
    let delete = sqlx::query(
        "delete from media.provider_hours where hour < $1::timestamptz - interval '30 days'",
    );
    delete.bind(now).execute(conn).await?;
    Ok(())
}

fn millis(took: Duration) -> i64 {
    i64::try_from(took.as_millis()).unwrap_or(i64::MAX)
}
