//! How an account is shown: to its user, and to admins.

use contracts::{Timestamp, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// Whether an account may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Status {
    /// It may.
    Active,
    /// It was switched off.
    Inactive,
    /// It was switched off for a while.
    Suspended,
    /// Its user left.
    Deleted,
}

/// An account as stored, with the names of its roles and without its password.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Account {
    pub id: UserId,
    pub username: String,
    pub email: String,
    pub full_name: Option<String>,
    pub phone: Option<String>,
    pub avatar: Option<String>,
    pub preferences: Option<Value>,
    pub status: Status,
    pub tenant_id: Option<String>,
    pub roles: Vec<String>,
    pub two_factor_enabled: bool,
    pub failed_logins: i32,
    pub locked_until: Option<Timestamp>,
    pub last_login_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What both views show.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Profile<R> {
    pub id: UserId,
    pub username: String,
    pub email: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar: Option<String>,
    pub status: Status,
    /// The names of the roles, or the roles themselves for admins.
    #[schema(inline)]
    pub roles: Vec<R>,
    pub is_super_admin: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    pub two_factor_enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub preferences: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_login_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// An account as its user sees it.
pub type Me = Profile<String>;

/// A role as admins see it.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Role {
    /// Names it in requests.
    pub id: String,
    /// Names it in tokens.
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub permissions: Vec<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// An account as admins see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct User {
    #[serde(flatten)]
    pub profile: Profile<Role>,
    /// Yuan; 0 where it is not known.
    pub balance: contracts::Money,
    /// Wrong passwords in a row.
    pub login_attempts: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_until: Option<Timestamp>,
}

/// What `GET /users/{id}` shows: more to admins.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Shown {
    /// To an admin.
    User(Box<User>),
    /// To the user.
    Me(Box<Me>),
}

impl Account {
    /// Whether every check is passed.
    pub fn is_super_admin(&self) -> bool {
        self.roles.iter().any(|role| role == "super_admin")
    }

    /// The account as admins see it.
    pub fn shown_to_admins(self, roles: Vec<Role>) -> User {
        User {
            balance: contracts::Money::ZERO,
            login_attempts: self.failed_logins,
            locked_until: self.locked_until,
            profile: self.with_roles(roles),
        }
    }

    fn with_roles<R>(self, roles: Vec<R>) -> Profile<R> {
        Profile {
            is_super_admin: self.is_super_admin(),
            id: self.id,
            username: self.username,
            email: self.email,
            full_name: self.full_name,
            phone: self.phone,
            avatar: self.avatar,
            status: self.status,
            roles,
            tenant_id: self.tenant_id,
            two_factor_enabled: self.two_factor_enabled,
            preferences: self.preferences,
            last_login_at: self.last_login_at,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

impl From<Account> for Me {
    fn from(account: Account) -> Self {
        let roles = account.roles.clone();
        account.with_roles(roles)
    }
}
