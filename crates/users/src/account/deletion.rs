//! What becomes of an account that is deleted: nobody gets in from that moment on, the other services hear of it, and after a
//! while nothing in it says who it was.

use std::time::Duration;

use chrono::TimeDelta;
use contracts::{Event, EventBody, SessionId, Timestamp, UserId};
use platform::events::emit;
use platform::lifecycle::{Tasks, Tick};
use sqlx::PgConnection;

use crate::Users;
use crate::session::{self, Which};

/// How long name and address stay taken, so that nobody takes the place of who left.
const KEPT: TimeDelta = TimeDelta::days(30);
const BATCH: i64 = 100;

/// Starts the periodic step.
pub fn spawn_jobs(state: &Users, tasks: &Tasks) {
    let state = state.clone();
    tasks.every("users.anonymise", Duration::from_secs(600), move || {
        let state = state.clone();
        async move { anonymise(&state).await }
    });
}

/// Repeats the step until it finds nothing more.
///
/// # Errors
/// Where it fails.
pub async fn run_jobs(state: &Users) -> anyhow::Result<()> {
    while anonymise(state).await? == Tick::More {}
    Ok(())
}

/// Deletes an account whose row is locked; names the sessions that have ended by that.
pub async fn delete(
    tx: &mut PgConnection,
    id: &UserId,
    now: Timestamp,
) -> sqlx::Result<Vec<SessionId>> {
    sqlx::query(
        "-- account::delete
        update users.accounts set status = 'deleted', deleted_at = $2, updated_at = $2 where id = $1",
    )
    .bind(id)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let ended = session::end(tx, id, Which::All, now).await?;
    emit(tx, &Event::new(id.clone(), now, EventBody::UserDeleted {})).await?;
    Ok(ended)
}

/// Takes all that says who it was out of accounts that were deleted a while ago, and sets their names and addresses free. Safe on
/// any number of replicas.
async fn anonymise(state: &Users) -> anyhow::Result<Tick> {
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let update = sqlx::query_scalar(
        "-- account::anonymise
        with gone as (
        update users.accounts a set username = 'deleted-' || a.id, email = a.id || '@deleted.invalid', password_hash = '',
            full_name = null, phone = null, avatar = null, preferences = null, anonymised_at = $1
        from (
            select id from users.accounts where deleted_at < $2 and anonymised_at is null
            order by deleted_at limit $3 for update skip locked) old
        where a.id = old.id returning a.id),
        factors as (delete from users.two_factors t using gone where t.user_id = gone.id)
        select count(*) from gone",
    );
    let update = update.bind(now).bind(now - KEPT).bind(BATCH);
    let done: i64 = update.fetch_one(&mut *conn).await?;
    Ok(Tick::after_batch(done.try_into()?, BATCH))
}
