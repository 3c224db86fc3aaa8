//! Groups in PostgreSQL.

use contracts::{Timestamp, UserId};
use sqlx::PgConnection;

use super::Group;
use super::api::{CreateGroup, PatchGroup};

/// The most groups that a user has.
pub const MOST: i64 = 500;

/// The groups of a user, by name: one statement, with their devices counted.
pub async fn list(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<Vec<Group>> {
    sqlx::query_as(
        "-- group::list
        select g.id, g.name, g.description, coalesce(d.count, 0) as device_count, g.tags, g.created_at
        from devices.groups g left join (
            select group_name, count(*) as count from devices.devices
            where user_id = $1 and deleted_at is null and group_name is not null group by group_name) d on d.group_name = g.name
        where g.user_id = $1 order by g.name limit $2",
    )
    .bind(user)
    .bind(MOST)
    .fetch_all(conn)
    .await
}

/// A group of a user.
pub async fn find(conn: &mut PgConnection, user: &UserId, id: &str) -> sqlx::Result<Option<Group>> {
    sqlx::query_as(
        "select g.id, g.name, g.description, (select count(*) from devices.devices d
                where d.user_id = $1 and d.deleted_at is null and d.group_name = g.name) as device_count, g.tags, g.created_at
        from devices.groups g where g.user_id = $1 and g.id = $2",
    )
    .bind(user)
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// How many groups a user has. Whoever asks for the same user at the same time waits until this transaction ends.
pub async fn count_locked(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<i64> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('devices.groups:' || $1, 0))")
        .bind(user)
        .execute(&mut *conn)
        .await?;
    sqlx::query_scalar("select count(*) from devices.groups where user_id = $1")
        .bind(user)
        .fetch_one(conn)
        .await
}

/// Writes a new group. The unique constraint refuses a name that the user has given before.
pub async fn insert(
    conn: &mut PgConnection,
    (id, user): (&str, &UserId),
    body: &CreateGroup,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "insert into devices.groups (id, user_id, name, description, tags, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $6)",
    )
    .bind(id)
    .bind(user)
    .bind(&body.name)
    .bind(&body.description)
    .bind(body.tags.as_deref().unwrap_or_default())
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Changes a group, and its name in its devices; `false` where the user has none of this id.
pub async fn patch(
    conn: &mut PgConnection,
    (id, user): (&str, &UserId),
    body: &PatchGroup,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let before: Option<String> = sqlx::query_scalar(
        "select name from devices.groups where id = $1 and user_id = $2 for update",
    )
    .bind(id)
    .bind(user)
    .fetch_optional(&mut *conn)
    .await?;
    let Some(before) = before else {
        return Ok(false);
    };
    let update = sqlx::query(
        "update devices.groups set name = coalesce($3, name), description = coalesce($4, description), tags = coalesce($5, tags),
            updated_at = $6
        where id = $1 and user_id = $2",
    );
    update
        .bind(id)
        .bind(user)
        .bind(&body.name)
        .bind(&body.description)
        .bind(&body.tags)
        .bind(now)
        .execute(&mut *conn)
        .await?;
    if let Some(name) = &body.name
        && *name != before
    {
        rename(conn, (user, &before), Some(name), now).await?;
    }
    Ok(true)
}

/// Removes a group; its devices are in none then. `false` where the user has none of this id.
pub async fn delete(
    conn: &mut PgConnection,
    (id, user): (&str, &UserId),
    now: Timestamp,
) -> sqlx::Result<bool> {
    let name: Option<String> = sqlx::query_scalar(
        "delete from devices.groups where id = $1 and user_id = $2 returning name",
    )
    .bind(id)
    .bind(user)
    .fetch_optional(&mut *conn)
    .await?;
    let Some(name) = name else { return Ok(false) };
    rename(conn, (user, &name), None, now).await?;
    Ok(true)
}

async fn rename(
    conn: &mut PgConnection,
    (user, from): (&UserId, &str),
    to: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- group::rename
        with theirs as (
            select id from devices.devices where user_id = $1 and group_name = $2 and deleted_at is null order by id for update)
        update devices.devices set group_name = $3, updated_at = $4 where id in (select id from theirs)",
    )
    .bind(user)
    .bind(from)
    .bind(to)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}
