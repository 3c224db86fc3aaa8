//! Statements about reviews.

use contracts::{AppId, ReviewId, Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::{Action, Review};

/// Writes what was done to an app, in the transaction that does it.
pub async fn record(
    tx: &mut PgConnection,
    app: &AppId,
    action: Action,
    (reviewer, comment): (&UserId, Option<&str>),
    now: Timestamp,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "-- review::record
        insert into apps.reviews (id, application_id, action, reviewer_id, comment, created_at)
        values ($1, $2, $3, $4, $5, $6)",
    );
    insert
        .bind(ReviewId::new())
        .bind(app)
        .bind(action)
        .bind(reviewer)
        .bind(comment)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(())
}

/// Takes the step, where the app stands so that it can be taken; otherwise nothing is changed.
pub async fn step(
    tx: &mut PgConnection,
    app: &AppId,
    action: Action,
    owner: Option<&UserId>,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- review::step
        update apps.apps set status = $3, updated_at = $4
        where id = $1 and status = any($2) and ($5::text is null or uploader_id = $5)",
    );
    let from: Vec<&str> = action.from().iter().map(|status| status.as_str()).collect();
    let done = update
        .bind(app)
        .bind(from)
        .bind(action.to())
        .bind(now)
        .bind(owner)
        .execute(tx)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// What was decided, the latest first, about one app or all, and how much there is.
pub async fn list(
    conn: &mut PgConnection,
    app: Option<&AppId>,
    slice: Slice,
) -> sqlx::Result<(Vec<Review>, i64)> {
    let reviews = sqlx::query_as(
        "-- review::list
        select id, application_id, action, reviewer_id, comment, created_at from apps.reviews
        where $1::text is null or application_id = $1 order by seq desc limit $2 offset $3",
    );
    let reviews = reviews
        .bind(app)
        .bind(slice.limit)
        .bind(slice.offset)
        .persistent(false)
        .fetch_all(&mut *conn)
        .await?;
    let count = sqlx::query_scalar(
        "-- review::count
        select count(*) from apps.reviews where $1::text is null or application_id = $1",
    );
    let total = count.bind(app).persistent(false).fetch_one(conn).await?;
    Ok((reviews, total))
}
