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
    .bind(i64::try_from(took.as_millis()).unwrap_or(i64::MAX))
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
