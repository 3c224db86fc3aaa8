//! Roles in the database.

use contracts::{Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use crate::account::view::Role;

/// A role, and whether it came with the system.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Stored {
    #[sqlx(flatten)]
    pub role: Role,
    pub built_in: bool,
}

/// A change of a role; what is absent stays.
#[derive(Debug, Default)]
pub struct Change {
    pub name: Option<String>,
    pub description: Option<String>,
    pub permissions: Option<Vec<String>>,
}

/// How many roles there are.
pub async fn count(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from users.roles")
        .fetch_one(conn)
        .await
}

/// Roles in the order in which they were made.
pub async fn list(conn: &mut PgConnection, slice: Slice) -> sqlx::Result<Vec<Role>> {
    sqlx::query_as(
        "-- role::list
        select id, name, description, permissions, created_at, updated_at from users.roles
        order by seq limit $1 offset $2",
    )
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// A role.
pub async fn find(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Role>> {
    sqlx::query_as(
        "select id, name, description, permissions, created_at, updated_at from users.roles where id = $1",
    )
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// A role, locked until the transaction ends.
pub async fn lock(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Stored>> {
    sqlx::query_as(
        "-- role::lock
        select id, name, description, permissions, created_at, updated_at, built_in from users.roles
        where id = $1 for update",
    )
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// Writes down a new role.
pub async fn insert(conn: &mut PgConnection, role: &Role) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into users.roles (id, name, description, permissions, created_at, updated_at) values ($1, $2, $3, $4, $5, $5)",
    );
    insert
        .bind(&role.id)
        .bind(&role.name)
        .bind(&role.description)
        .bind(&role.permissions)
        .bind(role.created_at)
        .execute(conn)
        .await?;
    Ok(())
}

/// Changes a role.
pub async fn update(
    conn: &mut PgConnection,
    id: &str,
    change: &Change,
    now: Timestamp,
) -> sqlx::Result<Role> {
    sqlx::query_as(
        "-- role::update
        update users.roles set name = coalesce($2, name), description = coalesce($3, description),
            permissions = coalesce($4, permissions), updated_at = $5
        where id = $1 returning id, name, description, permissions, created_at, updated_at",
    )
    .bind(id)
    .bind(&change.name)
    .bind(&change.description)
    .bind(&change.permissions)
    .bind(now)
    .fetch_one(conn)
    .await
}

/// Whether somebody has a role.
pub async fn is_held(conn: &mut PgConnection, id: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("select exists (select from users.user_roles where role_id = $1)")
        .bind(id)
        .fetch_one(conn)
        .await
}

/// Deletes a role that nobody has.
pub async fn delete(conn: &mut PgConnection, id: &str) -> sqlx::Result<()> {
    sqlx::query("delete from users.roles where id = $1")
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// The permissions of all roles of a user, in order.
pub async fn permissions_of(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "-- role::permissions_of
        select distinct permission from users.user_roles ur join users.roles r on r.id = ur.role_id
            cross join unnest(r.permissions) permission
        where ur.user_id = $1 order by permission",
    )
    .bind(user)
    .fetch_all(conn)
    .await
}
