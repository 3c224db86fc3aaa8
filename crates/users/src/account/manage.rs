//! Accounts as admins make, change and delete them, and as users delete their own.

use axum::extract::State;
use axum::response::Response;
use contracts::{Event, EventBody, UserId};
use garde::Validate;
use http::StatusCode;
use platform::events::emit;
use platform::http::{Json, Path};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{Admin, CurrentUser, Problem};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::{info, warn};
use utoipa::ToSchema;

use super::api::{ChangePassword, Done, change_own_password, shown};
use super::create::{NewAccount, announce};
use super::db::{self, Change};
use super::view::{Shown, Status};
use super::{deletion, normal};
use crate::audit::{self, Entry};
use crate::error::{Error, Result, taken};
use crate::role::assign::{self, Manager, another_super_admin};
use crate::secret::SecretText;
use crate::session::{self, Which};
use crate::{Users, password};

/// The most accounts of one call.
const MOST_AT_ONCE: usize = 100;

/// An account that an admin makes.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateUser {
    /// As for a registration.
    #[garde(custom(super::username))]
    username: String,
    #[garde(custom(super::email))]
    email: String,
    /// 8 to 100 characters with a letter and a digit.
    #[garde(custom(password::new))]
    #[schema(value_type = String, format = Password)]
    password: SecretText,
    #[garde(inner(custom(super::full_name)))]
    full_name: Option<String>,
    #[garde(inner(custom(super::phone)))]
    phone: Option<String>,
    /// Default active; `deleted` is for deletions.
    #[garde(inner(custom(not_deleted)))]
    status: Option<Status>,
    /// At most 20; default the one that everybody has.
    #[garde(inner(length(min = 1, max = assign::MOST)))]
    role_ids: Option<Vec<String>>,
    #[garde(inner(length(chars, min = 1, max = 100), custom(super::storable)))]
    tenant_id: Option<String>,
}

/// A change of an account; what is absent stays.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateUser {
    #[garde(inner(custom(super::full_name)))]
    full_name: Option<String>,
    #[garde(inner(custom(super::email)))]
    email: Option<String>,
    #[garde(inner(custom(super::phone)))]
    phone: Option<String>,
    #[garde(inner(custom(super::avatar)))]
    avatar: Option<String>,
    /// By admins alone. All but active ends the sessions.
    #[garde(inner(custom(not_deleted)))]
    status: Option<Status>,
    /// By admins alone, in the place of those of before. Who loses one is signed out.
    #[garde(inner(length(min = 1, max = assign::MOST)))]
    role_ids: Option<Vec<String>>,
}

/// Another password; the old one is not needed where an admin sets that of somebody else.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SetPassword {
    #[garde(inner(custom(password::sent)))]
    #[schema(value_type = Option<String>, format = Password)]
    old_password: Option<SecretText>,
    /// 8 to 100 characters with a lower-case letter, an upper-case letter and a digit, and not the old one.
    #[garde(custom(password::changed))]
    #[schema(value_type = String, format = Password)]
    new_password: SecretText,
}

/// What a console looks like to its user; what is absent stays.
#[derive(Debug, Deserialize, Validate, ToSchema)]
pub struct Preferences {
    #[garde(skip)]
    language: Option<Language>,
    #[garde(skip)]
    theme: Option<Theme>,
}

/// The language of a console.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub enum Language {
    #[serde(rename = "zh-CN")]
    Chinese,
    #[serde(rename = "en-US")]
    English,
}

/// The colours of a console.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Theme {
    Auto,
    Light,
    Dark,
}

/// Which accounts are to be deleted.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeleteUsers {
    /// 1 to 100.
    #[garde(length(min = 1, max = MOST_AT_ONCE))]
    ids: Option<Vec<UserId>>,
    /// The same as `ids`.
    #[garde(length(min = 1, max = MOST_AT_ONCE))]
    user_ids: Option<Vec<UserId>>,
}

/// What became of each account.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedUsers {
    succeeded: Vec<UserId>,
    failed: Vec<NotDeleted>,
    message: String,
}

/// Why an account is not deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct NotDeleted {
    item: UserId,
    error: String,
}

/// Makes an account that can sign in at once, with roles.
#[utoipa::path(post, path = "/users", tag = "users", request_body = CreateUser, params(("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = Shown),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 409, body = ProblemBody),
))]
pub async fn create_user(
    State(state): State<Users>,
    Admin(caller): Admin,
    Idempotent { body, key }: Idempotent<CreateUser>,
) -> Result<Response> {
    let about = [
        &*body.username,
        &body.email,
        body.full_name.as_deref().unwrap_or_default(),
    ];
    password::strength::check(&state, "password", &body.password, &about).await?;
    let new = NewAccount {
        username: normal(&body.username),
        email: normal(&body.email),
        full_name: body.full_name,
        phone: body.phone,
        hash: state.hasher.hash(body.password).await?,
    };
    let (id, now) = (UserId::new(), state.platform.clock.now());
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, caller.id.as_str()).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return Ok(reply),
    };
    let manager = Manager::of(&mut tx, &caller).await?;
    db::insert(&mut tx, &id, &new, now).await.map_err(taken)?;
    let roles = match body.role_ids {
        Some(roles) => roles,
        None => vec![assign::everybody(&mut tx).await?],
    };
    manager.set_roles(&mut tx, &id, &roles).await?;
    let (status, tenant) = (body.status.unwrap_or(Status::Active), body.tenant_id);
    db::place(&mut tx, &id, status, tenant.as_deref()).await?;
    announce(&mut tx, &id, &new, now).await?;
    let entry = Entry::done(&caller.id, "user.created", ("user", id.as_str()));
    let entry = entry.with(json!({ "roleIds": roles, "status": status }));
    audit::write(&mut tx, entry, now).await?;
    let user = shown(&mut tx, &id, true).await?;
    let reply = turn.reply(&mut tx, StatusCode::CREATED, &user).await?;
    tx.commit().await?;
    info!(user.id = %id, "admin {} made user {id}", caller.id);
    Ok(reply)
}

/// Changes an account: the caller's own, or anybody's by an admin, who alone sets status and roles.
#[utoipa::path(patch, path = "/users/{id}", tag = "users", params(("id" = UserId, Path)), request_body = UpdateUser, responses(
    (status = 200, body = Shown),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 409, body = ProblemBody),
))]
pub async fn update_user(
    State(state): State<Users>,
    caller: CurrentUser,
    Path(id): Path<UserId>,
    Json(body): Json<UpdateUser>,
) -> Result<Json<Shown>> {
    let id = caller.acting_for(Some(id))?;
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let before = db::lock(&mut tx, &id).await?;
    let manages = id != caller.id || body.status.is_some() || body.role_ids.is_some();
    let mut loses = false;
    if manages {
        let manager = Manager::of(&mut tx, &caller).await?;
        manager.may_change(&mut tx, &id).await?;
        if let Some(roles) = &body.role_ids {
            loses = manager.set_roles(&mut tx, &id, roles).await?;
        }
    }
    if let Some(status) = body.status.filter(|status| *status != before) {
        if status != Status::Active {
            another_super_admin(&mut tx, &id).await?;
            loses = true;
        }
        db::set_status(&mut tx, &id, status, now).await?;
    }
    let change = Change {
        full_name: body.full_name,
        email: body.email.as_deref().map(normal),
        phone: body.phone,
        avatar: body.avatar,
        preferences: None,
    };
    db::update(&mut tx, &id, &change, now)
        .await
        .map_err(taken)?;
    let mut changes = change.fields();
    if let Some(roles) = body.role_ids {
        changes["roleIds"] = json!(roles);
    }
    if let Some(status) = body.status {
        changes["status"] = json!({ "from": before, "to": status });
    }
    let entry = Entry::done(&caller.id, "user.updated", ("user", id.as_str()));
    audit::write(&mut tx, entry.changing(changes), now).await?;
    let ended = match loses {
        true => session::end(&mut tx, &id, Which::All, now).await?,
        false => Vec::new(),
    };
    let user = shown(&mut tx, &id, caller.is_admin).await?;
    tx.commit().await?;
    tell_ended(&state, &id, &ended).await;
    Ok(Json(user))
}

/// Changes a password: the caller's own, as `/auth/change-password` does, or that of another user by an admin, which ends all
/// sessions of that user.
#[utoipa::path(post, path = "/users/{id}/change-password", tag = "users", params(("id" = UserId, Path)), request_body = SetPassword, responses(
    (status = 200, body = Done),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 503, body = ProblemBody),
))]
pub async fn set_password(
    State(state): State<Users>,
    caller: CurrentUser,
    Path(id): Path<UserId>,
    Json(body): Json<SetPassword>,
) -> Result<Json<Done>> {
    let id = caller.acting_for(Some(id))?;
    if id == caller.id {
        let old = body.old_password;
        let old_password =
            old.ok_or_else(|| Problem::invalid_field("oldPassword", "is required"))?;
        let new_password = body.new_password;
        let body = ChangePassword {
            old_password,
            new_password,
        };
        return change_own_password(&state, &caller, body).await;
    }
    let account = {
        let mut conn = state.platform.db.acquire().await?;
        Manager::of(&mut conn, &caller).await?;
        db::find(&mut conn, &id).await?.ok_or(Error::NoUser)?
    };
    let about = [&*account.username, &account.email];
    password::strength::check(&state, "newPassword", &body.new_password, &about).await?;
    let new = state.hasher.hash(body.new_password).await?;
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    db::lock(&mut tx, &id).await?;
    let manager = Manager::of(&mut tx, &caller).await?;
    manager.may_change(&mut tx, &id).await?;
    db::set_hash(&mut tx, &id, &new, now).await?;
    let ended = session::end(&mut tx, &id, Which::All, now).await?;
    let event = Event::new(id.clone(), now, EventBody::PasswordChanged {});
    emit(&mut tx, &event).await?;
    let entry = Entry::done(&caller.id, "user.password_set", ("user", id.as_str()));
    audit::write(&mut tx, entry, now).await?;
    tx.commit().await?;
    info!(user.id = %id, "admin {} set the password of user {id}", caller.id);
    tell_ended(&state, &id, &ended).await;
    Ok(Json(Done {
        message: "the password is changed; all sessions have ended",
    }))
}

/// Changes how a console looks to its user.
#[utoipa::path(patch, path = "/users/{id}/preferences", tag = "users", params(("id" = UserId, Path)), request_body = Preferences, responses(
    (status = 200, body = Shown),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody),
))]
pub async fn update_preferences(
    State(state): State<Users>,
    caller: CurrentUser,
    Path(id): Path<UserId>,
    Json(body): Json<Preferences>,
) -> Result<Json<Shown>> {
    let id = caller.acting_for(Some(id))?;
    let mut preferences = json!({});
    if let Some(language) = body.language {
        preferences["language"] = json!(language);
    }
    if let Some(theme) = body.theme {
        preferences["theme"] = json!(theme);
    }
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    db::lock(&mut tx, &id).await?;
    if id != caller.id {
        let manager = Manager::of(&mut tx, &caller).await?;
        manager.may_change(&mut tx, &id).await?;
    }
    let change = Change {
        full_name: None,
        email: None,
        phone: None,
        avatar: None,
        preferences: Some(preferences),
    };
    if !db::update(&mut tx, &id, &change, now).await? {
        return Err(Error::PreferencesTooLarge);
    }
    let entry = Entry::done(&caller.id, "user.updated", ("user", id.as_str()));
    audit::write(&mut tx, entry.changing(change.fields()), now).await?;
    let user = shown(&mut tx, &id, caller.is_admin).await?;
    tx.commit().await?;
    Ok(Json(user))
}

/// Deletes an account: the caller's own, or anybody's by an admin. Its sessions end, its devices are deleted; name and address
/// stay taken for 30 days, after which nothing in the account says who it was. Orders and payments stay.
#[utoipa::path(delete, path = "/users/{id}", tag = "users", params(("id" = UserId, Path)), responses(
    (status = 200, body = Done),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 409, body = ProblemBody, description = "It is the last super admin"),
))]
pub async fn delete_user(
    State(state): State<Users>,
    caller: CurrentUser,
    Path(id): Path<UserId>,
) -> Result<Json<Done>> {
    let id = caller.acting_for(Some(id))?;
    delete(&state, &caller, &id).await?;
    Ok(Json(Done {
        message: "the account is deleted",
    }))
}

/// Deletes accounts, each by itself.
#[utoipa::path(post, path = "/users/batch-delete", tag = "users", request_body = DeleteUsers, responses(
    (status = 200, body = DeletedUsers),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
))]
pub async fn delete_users(
    State(state): State<Users>,
    Admin(caller): Admin,
    Json(body): Json<DeleteUsers>,
) -> Result<Json<DeletedUsers>> {
    let ids = body.ids.or(body.user_ids);
    let ids = ids.ok_or_else(|| Problem::invalid_field("ids", "is required"))?;
    let (mut succeeded, mut failed) = (Vec::new(), Vec::new());
    for id in ids {
        match delete(&state, &caller, &id).await {
            Ok(()) => succeeded.push(id),
            Err(error) => failed.push(NotDeleted {
                item: id,
                error: error.to_string(),
            }),
        }
    }
    let message = format!("{} deleted, {} not", succeeded.len(), failed.len());
    Ok(Json(DeletedUsers {
        succeeded,
        failed,
        message,
    }))
}

async fn delete(state: &Users, caller: &CurrentUser, id: &UserId) -> Result<()> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let before = db::lock(&mut tx, id).await?;
    if before == Status::Deleted {
        return Err(Error::NoUser);
    }
    if *id != caller.id {
        let manager = Manager::of(&mut tx, caller).await?;
        manager.may_change(&mut tx, id).await?;
    }
    another_super_admin(&mut tx, id).await?;
    let ended = deletion::delete(&mut tx, id, now).await?;
    let entry = Entry::done(&caller.id, "user.deleted", ("user", id.as_str()));
    audit::write(&mut tx, entry, now).await?;
    tx.commit().await?;
    info!(user.id = %id, "user {} deleted account {id}", caller.id);
    tell_ended(state, id, &ended).await;
    Ok(())
}

/// What was decided holds whatever happens now; a job goes on where this fails.
pub async fn tell_ended(state: &Users, id: &UserId, ended: &[contracts::SessionId]) {
    if let Err(error) = session::enforce(state, ended).await {
        warn!(user.id = %id, "sessions of {id} end a little later: {error}");
    }
}

fn not_deleted(status: &Status, _: &()) -> garde::Result {
    match status {
        Status::Deleted => Err(garde::Error::new("must be active, inactive or suspended")),
        Status::Active | Status::Inactive | Status::Suspended => Ok(()),
    }
}
