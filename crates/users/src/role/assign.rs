//! Who has which role, and who may say so: admins manage users, and only who passes every check manages admins. One of those is
//! always left.

use std::collections::BTreeSet;

use contracts::UserId;
use platform::{CurrentUser, Problem};
use sqlx::PgConnection;

use crate::error::{Error, Result};

/// The most roles of a user.
pub const MOST: usize = 20;
const SUPER_ADMIN: &str = "super_admin";
const ADMINS: [&str; 2] = ["admin", SUPER_ADMIN];
const EVERYBODY: &str = "user";

/// An admin, as the database knows the caller now: what a token says may be a day old.
#[derive(Clone, Debug)]
pub struct Manager {
    pub id: UserId,
    manages_admins: bool,
}

impl Manager {
    /// The caller as one who manages others.
    ///
    /// # Errors
    /// 403 for who is no admin.
    pub async fn of(conn: &mut PgConnection, caller: &CurrentUser) -> Result<Self> {
        let roles = role_names(conn, &caller.id).await?;
        let has = |name: &str| roles.iter().any(|role| role == name);
        if !ADMINS.into_iter().any(has) {
            return Err(Problem::forbidden("the role admin is required").into());
        }
        Ok(Self {
            id: caller.id.clone(),
            manages_admins: has(SUPER_ADMIN),
        })
    }

    /// Lets pass who may change a user. The account is locked.
    ///
    /// # Errors
    /// 403 where it is an admin, and the caller does not pass every check.
    pub async fn may_change(&self, conn: &mut PgConnection, user: &UserId) -> Result<()> {
        if self.manages_admins || *user == self.id {
            return Ok(());
        }
        let roles = role_names(conn, user).await?;
        match roles.iter().any(|role| ADMINS.contains(&&**role)) {
            true => Err(Problem::forbidden("only a super admin changes admins").into()),
            false => Ok(()),
        }
    }

    /// Gives a user these roles in the place of those of before; whether some were taken. The account is locked.
    ///
    /// # Errors
    /// 400 for a role that is not there, 403 for one of an admin unless the caller passes every check,
    /// [`Error::LastSuperAdmin`].
    pub async fn set_roles(
        &self,
        conn: &mut PgConnection,
        user: &UserId,
        wanted: &[String],
    ) -> Result<bool> {
        let found: Vec<(String, String)> = sqlx::query_as(
            "-- role::found
            select id, name from users.roles where id = any($1) order by id for key share",
        )
        .bind(wanted)
        .fetch_all(&mut *conn)
        .await?;
        let (ids, names): (BTreeSet<String>, BTreeSet<String>) = found.into_iter().unzip();
        if let Some(unknown) = wanted.iter().find(|id| !ids.contains(*id)) {
            let fault = format!("there is no role {unknown}");
            return Err(Problem::invalid_field("roleIds", fault).into());
        }
        let before: BTreeSet<String> = role_names(conn, user).await?.into_iter().collect();
        let changes = before.symmetric_difference(&names);
        let mut of_admins = changes.filter(|name| ADMINS.contains(&&***name));
        if of_admins.next().is_some() && !self.manages_admins {
            let why = "only a super admin gives and takes the roles of admins";
            return Err(Problem::forbidden(why).into());
        }
        if before.contains(SUPER_ADMIN) && !names.contains(SUPER_ADMIN) {
            another_super_admin(conn, user).await?;
        }
        let ids: Vec<&String> = ids.iter().collect();
        sqlx::query("delete from users.user_roles where user_id = $1 and role_id <> all($2)")
            .bind(user)
            .bind(&ids)
            .execute(&mut *conn)
            .await?;
        sqlx::query(
            "-- role::give
            insert into users.user_roles (user_id, role_id) select $1, unnest($2) on conflict do nothing",
        )
        .bind(user)
        .bind(&ids)
        .execute(&mut *conn)
        .await?;
        Ok(before.difference(&names).next().is_some())
    }
}

/// Makes sure that somebody who passes every check is left without this user. Whoever takes another one waits until the
/// transaction ends.
///
/// # Errors
/// [`Error::LastSuperAdmin`].
pub async fn another_super_admin(conn: &mut PgConnection, user: &UserId) -> Result<()> {
    sqlx::query("select from users.roles where name = $1 for no key update")
        .bind(SUPER_ADMIN)
        .execute(&mut *conn)
        .await?;
    let is_last: bool = sqlx::query_scalar(
        "-- role::is_last_super_admin
        select bool_or(a.id = $1) and not bool_or(a.id <> $1)
        from users.user_roles ur join users.roles r on r.id = ur.role_id join users.accounts a on a.id = ur.user_id
        where r.name = $2 and a.status = 'active'",
    )
    .bind(user)
    .bind(SUPER_ADMIN)
    .fetch_one(&mut *conn)
    .await
    .map(Option::unwrap_or_default)?;
    match is_last {
        true => Err(Error::LastSuperAdmin),
        false => Ok(()),
    }
}

/// The id of the role that everybody has.
pub async fn everybody(conn: &mut PgConnection) -> sqlx::Result<String> {
    sqlx::query_scalar("select id from users.roles where name = $1")
        .bind(EVERYBODY)
        .fetch_one(conn)
        .await
}

async fn role_names(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "-- role::names
        select r.name from users.user_roles ur join users.roles r on r.id = ur.role_id where ur.user_id = $1 order by r.name",
    )
    .bind(user)
    .fetch_all(conn)
    .await
}
