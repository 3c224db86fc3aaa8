//! Accounts and roles in the database.

use contracts::{Timestamp, UserId};
use platform::http::Slice;
use serde_json::Value;
use sqlx::PgConnection;

use super::MOST_STORED_PREFERENCES;
use super::admin::{Filter, Order};
use super::create::NewAccount;
use super::overview::{Named, UserStats};
use super::view::{Account, Role, Status};
use crate::error::Error;
use crate::password::PasswordHash;

/// What sign-in needs of an account.
#[derive(Debug, sqlx::FromRow)]
pub struct Credentials {
    pub id: UserId,
    pub password_hash: PasswordHash,
    pub status: Status,
}

/// A change of a profile; what is absent stays.
#[derive(Debug)]
pub struct Change {
    pub full_name: Option<String>,
    pub email: Option<String>,
    pub phone: Option<String>,
    pub avatar: Option<String>,
    pub preferences: Option<Value>,
}

impl Change {
    /// The names of the fields that change. What they hold is nobody else's.
    pub fn fields(&self) -> Value {
        let fields = [
            ("fullName", self.full_name.is_some()),
            ("email", self.email.is_some()),
            ("phone", self.phone.is_some()),
            ("avatar", self.avatar.is_some()),
            ("preferences", self.preferences.is_some()),
        ];
        let changed = fields.into_iter().filter(|(_, changes)| *changes);
        let names: Vec<&str> = changed.map(|(name, _)| name).collect();
        serde_json::json!({ "fields": names })
    }
}

/// Writes down a new account.
pub async fn insert(
    conn: &mut PgConnection,
    id: &UserId,
    new: &NewAccount,
    now: Timestamp,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into users.accounts
            (id, username, email, full_name, phone, password_hash, status, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, 'active', $7, $7)",
    );
    insert
        .bind(id)
        .bind(&new.username)
        .bind(&new.email)
        .bind(&new.full_name)
        .bind(&new.phone)
        .bind(&new.hash)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Gives an account a role by its name.
pub async fn give_role(conn: &mut PgConnection, id: &UserId, role: &str) -> sqlx::Result<()> {
    sqlx::query("insert into users.user_roles (user_id, role_id) select $1, id from users.roles where name = $2")
        .bind(id)
        .bind(role)
        .execute(conn)
        .await?;
    Ok(())
}

/// Accounts by the name `u`, after a comment and before conditions.
macro_rules! accounts {
    ($comment:literal, $rest:literal) => {
        concat!(
            $comment,
            "
        select u.*, exists (
            select from users.two_factors t where t.user_id = u.id and t.enabled_at is not null) as two_factor_enabled
        from users.profiles u ",
            $rest
        )
    };
}

/// An account by its id.
pub async fn find(conn: &mut PgConnection, id: &UserId) -> sqlx::Result<Option<Account>> {
    sqlx::query_as(accounts!("-- account::find", "where u.id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// What sign-in needs, by name or mail address in normal form.
pub async fn find_credentials(
    conn: &mut PgConnection,
    name: &str,
) -> sqlx::Result<Option<Credentials>> {
    // A name has no `@`, so the two cannot be taken for one another.
    sqlx::query_as(
        "select id, password_hash, status from users.accounts where username = $1 or email = $1",
    )
    .bind(name)
    .fetch_optional(conn)
    .await
}

/// Locks an account and gives its status. Whoever changes roles, status or sessions of a user comes here first.
///
/// # Errors
/// [`Error::NoUser`].
pub async fn lock(conn: &mut PgConnection, id: &UserId) -> Result<Status, Error> {
    let select = "select status from users.accounts where id = $1 for update";
    let select = sqlx::query_scalar(select).bind(id);
    select.fetch_optional(conn).await?.ok_or(Error::NoUser)
}

/// Switches an account on or off.
pub async fn set_status(
    conn: &mut PgConnection,
    id: &UserId,
    status: Status,
    now: Timestamp,
) -> sqlx::Result<()> {
    let update =
        "update users.accounts set status = $2, updated_at = $3, deleted_at = null where id = $1";
    let update = sqlx::query(update).bind(id).bind(status).bind(now);
    update.execute(conn).await?;
    Ok(())
}

/// Says of a new account whether it may be used, and of which tenant it is.
pub async fn place(
    conn: &mut PgConnection,
    id: &UserId,
    status: Status,
    tenant: Option<&str>,
) -> sqlx::Result<()> {
    let update = "update users.accounts set status = $2, tenant_id = $3 where id = $1";
    let update = sqlx::query(update).bind(id).bind(status).bind(tenant);
    update.execute(conn).await?;
    Ok(())
}

/// Sets a password without the old one, and forgets the wrong ones.
pub async fn set_hash(
    conn: &mut PgConnection,
    id: &UserId,
    hash: &PasswordHash,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- account::set_hash
        update users.accounts set password_hash = $2, updated_at = $3, failed_logins = 0, locked_until = null where id = $1",
    )
    .bind(id)
    .bind(hash)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Counts accounts by their status.
pub async fn stats(conn: &mut PgConnection) -> sqlx::Result<UserStats> {
    sqlx::query_as(
        "-- account::stats
        select count(*) as total, count(*) filter (where status = 'active') as active,
            count(*) filter (where status = 'inactive') as inactive, count(*) filter (where status = 'suspended') as banned
        from users.accounts where status <> 'deleted'",
    )
    .fetch_one(conn)
    .await
}

/// Counts accounts, of those with a status where one is named, and made since a moment.
pub async fn count_since(
    conn: &mut PgConnection,
    status: Option<Status>,
    since: Option<Timestamp>,
) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "-- account::count_since
        select count(*) from users.accounts
        where ($1::text is null and status <> 'deleted' or status = $1) and ($2::timestamptz is null or created_at >= $2)",
    )
    .bind(status)
    .bind(since)
    .fetch_one(conn)
    .await
}

/// Who some users are.
pub async fn named(conn: &mut PgConnection, ids: &[UserId]) -> sqlx::Result<Vec<Named>> {
    sqlx::query_as("select id, username, email from users.accounts where id = any($1)")
        .bind(ids)
        .fetch_all(conn)
        .await
}

/// The password of an account.
pub async fn find_hash(conn: &mut PgConnection, id: &UserId) -> sqlx::Result<Option<PasswordHash>> {
    sqlx::query_scalar("select password_hash from users.accounts where id = $1")
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// Changes a profile; `false` where there is no such account, or its preferences would grow too large. Preferences are
/// merged, and what is null is taken out.
pub async fn update(
    conn: &mut PgConnection,
    id: &UserId,
    change: &Change,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- account::update
        update users.accounts set
            full_name = coalesce($2, full_name),
            email = coalesce($3, email),
            phone = coalesce($4, phone),
            avatar = coalesce($5, avatar),
            preferences = case when $6::jsonb is null then preferences
                else jsonb_strip_nulls(coalesce(preferences, '{}') || $6) end,
            updated_at = $7
        where id = $1 and ($6::jsonb is null
            or octet_length(jsonb_strip_nulls(coalesce(preferences, '{}') || $6)::text) <= $8)",
    );
    let done = update
        .bind(id)
        .bind(&change.full_name)
        .bind(&change.email)
        .bind(&change.phone)
        .bind(&change.avatar)
        .bind(&change.preferences)
        .bind(now)
        .bind(MOST_STORED_PREFERENCES)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// The roles of some accounts, each with the account that has it.
pub async fn roles_of(
    conn: &mut PgConnection,
    ids: &[UserId],
) -> sqlx::Result<Vec<(UserId, Role)>> {
    #[derive(sqlx::FromRow)]
    struct Row {
        user_id: UserId,
        #[sqlx(flatten)]
        role: Role,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "-- account::roles_of
        select ur.user_id, r.id, r.name, r.description, r.permissions, r.created_at, r.updated_at
        from users.user_roles ur join users.roles r on r.id = ur.role_id
        where ur.user_id = any($1) order by r.name",
    )
    .bind(ids)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.user_id, row.role))
        .collect())
}

/// How many accounts pass a filter.
pub async fn count(conn: &mut PgConnection, filter: &Filter) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "-- account::count
        select count(*) from users.profiles u
        where ($1::text is null or strpos(u.username, $1) > 0 or strpos(u.email, $1) > 0
               or strpos(lower(u.full_name), $1) > 0)
          and ($2::text is null or u.status = $2)
          and ($3::text is null or u.tenant_id = $3)
          and ($4::text is null or exists (
                select 1 from users.user_roles ur where ur.user_id = u.id and ur.role_id = $4))",
    )
    .bind(&filter.search)
    .bind(filter.status)
    .bind(&filter.tenant_id)
    .bind(&filter.role_id)
    .fetch_one(conn)
    .await
}

/// The accounts that pass a filter, in an order; ties by the order of their making.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    order: Order,
    slice: Slice,
) -> sqlx::Result<Vec<Account>> {
    sqlx::query_as(accounts!(
            "-- account::list",
            "where ($1::text is null or strpos(u.username, $1) > 0 or strpos(u.email, $1) > 0
               or strpos(lower(u.full_name), $1) > 0)
          and ($2::text is null or u.status = $2)
          and ($3::text is null or u.tenant_id = $3)
          and ($4::text is null or exists (
                select 1 from users.user_roles ur where ur.user_id = u.id and ur.role_id = $4))
        order by
            case when not $6 then case $5 when 'username' then u.username when 'email' then u.email end end,
            case when $6 then case $5 when 'username' then u.username when 'email' then u.email end end desc,
            case when not $6 then case $5 when 'createdAt' then u.created_at when 'updatedAt' then u.updated_at
                when 'lastLoginAt' then u.last_login_at end end,
            case when $6 then case $5 when 'createdAt' then u.created_at when 'updatedAt' then u.updated_at
                when 'lastLoginAt' then u.last_login_at end end desc nulls last,
            case when not $6 then u.seq end, u.seq desc
        limit $7 offset $8"
        ),
    )
    .bind(&filter.search)
    .bind(filter.status)
    .bind(&filter.tenant_id)
    .bind(&filter.role_id)
    .bind(order.by.name())
    .bind(order.descending)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many active accounts there are, and the number of the newest.
#[derive(Debug, serde::Serialize, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct Census {
    pub count: i64,
    pub last_seq: i64,
}

/// An account and its number.
#[derive(Debug, serde::Serialize, sqlx::FromRow)]
pub struct Numbered {
    pub id: UserId,
    pub seq: i64,
}

/// Counts active accounts, of those with a role where one is named.
pub async fn census(conn: &mut PgConnection, role: Option<&str>) -> sqlx::Result<Census> {
    sqlx::query_as(
        "-- account::census
        select count(*) as count, coalesce(max(seq), 0) as last_seq from users.profiles
        where status = 'active' and ($1::text is null or $1 = any(roles))",
    )
    .bind(role)
    .fetch_one(conn)
    .await
}

/// Active accounts in the order of their numbers.
pub async fn numbered(
    conn: &mut PgConnection,
    role: Option<&str>,
    (after, upto): (i64, i64),
    limit: i64,
) -> sqlx::Result<Vec<Numbered>> {
    sqlx::query_as(
        "-- account::numbered
        select id, seq from users.profiles
        where seq > $2 and seq <= $3 and status = 'active' and ($1::text is null or $1 = any(roles))
        order by seq limit $4",
    )
    .bind(role)
    .bind(after)
    .bind(upto)
    .bind(limit)
    .fetch_all(conn)
    .await
}
