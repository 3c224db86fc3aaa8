//! Registration, and what users see and change of their accounts.

use axum::extract::State;
use axum::response::Response;
use contracts::{Event, EventBody, UserId};
use fred::interfaces::ClientLike;
use garde::Validate;
use http::StatusCode;
use platform::events::emit;
use platform::http::{ClientAddress, Json, Path};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::PgConnection;
use tracing::{info, warn};
use utoipa::ToSchema;

use super::create::{NewAccount, create};
use super::db::{self, Change};
use super::view::{Me, Shown, User};
use super::{admin, normal};
use crate::audit::{self, Entry};
use crate::error::{Error, Result, taken};
use crate::secret::SecretText;
use crate::session::{self, Which};
use crate::{Users, attempt, limits, password};

/// A new account.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Register {
    /// 3 to 50 of letters, digits, `_`, `.` and `-`; stored in lower case.
    #[garde(custom(super::username))]
    username: String,
    /// Stored in lower case.
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
}

/// The new account.
#[derive(Debug, Serialize, ToSchema)]
pub struct Registered {
    user: Me,
    message: &'static str,
}

/// A change of the caller's account; what is absent stays.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateProfile {
    #[garde(inner(custom(super::full_name)))]
    full_name: Option<String>,
    #[garde(inner(custom(super::email)))]
    email: Option<String>,
    /// 5 to 32 of digits, space and `+ - ( )`.
    #[garde(inner(custom(super::phone)))]
    phone: Option<String>,
    /// An http(s) URL.
    #[garde(inner(custom(super::avatar)))]
    avatar: Option<String>,
    /// Merged with those that stand; null takes one out.
    #[garde(inner(custom(super::preferences)))]
    #[schema(value_type = Option<Object>)]
    preferences: Option<Map<String, Value>>,
}

/// A change of the caller's password.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangePassword {
    /// The one that stands.
    #[garde(custom(password::sent))]
    #[schema(value_type = String, format = Password)]
    pub old_password: SecretText,
    /// 8 to 100 characters with a lower-case letter, an upper-case letter and a digit, and not the old one.
    #[garde(custom(password::changed))]
    #[schema(value_type = String, format = Password)]
    pub new_password: SecretText,
}

/// What was done.
#[derive(Debug, Serialize, ToSchema)]
pub struct Done {
    pub message: &'static str,
}

/// Makes an account that can sign in at once.
#[utoipa::path(post, path = "/auth/register", tag = "auth", security(()), request_body = Register, params(("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = Registered),
    (status = 400, body = ProblemBody),
    (status = 409, body = ProblemBody),
    (status = 429, body = ProblemBody),
))]
pub async fn register(
    State(state): State<Users>,
    ClientAddress(address): ClientAddress,
    Idempotent { body, key }: Idempotent<Register>,
) -> Result<Response> {
    limits::registration(&state, address).await?;
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
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, "anonymous").await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return Ok(reply),
    };
    let id = create(&mut tx, &new, "user", state.platform.clock.now()).await?;
    let account = db::find(&mut tx, &id).await?.ok_or(Error::NoUser)?;
    let entry = Entry::done(&id, "user.registered", ("user", id.as_str()));
    audit::write(&mut tx, entry, state.platform.clock.now()).await?;
    let reply = Registered {
        user: account.into(),
        message: "registered; you can sign in",
    };
    let reply = turn.reply(&mut tx, StatusCode::CREATED, &reply).await?;
    tx.commit().await?;
    info!(user.id = %id, "registered user {id}");
    Ok(reply)
}

/// The caller's account.
#[utoipa::path(get, path = "/auth/me", tag = "auth", responses(
    (status = 200, body = Me), (status = 401, body = ProblemBody)))]
pub async fn find_me(State(state): State<Users>, user: CurrentUser) -> Result<Json<Me>> {
    me(&state, &user.id).await
}

/// The caller's account, by another name.
#[utoipa::path(get, path = "/users/me", tag = "users", responses(
    (status = 200, body = Me), (status = 401, body = ProblemBody)))]
pub async fn find_own_user(State(state): State<Users>, user: CurrentUser) -> Result<Json<Me>> {
    me(&state, &user.id).await
}

/// The caller's account, by a third name.
#[utoipa::path(get, path = "/users/profile", tag = "users", responses(
    (status = 200, body = Me), (status = 401, body = ProblemBody)))]
pub async fn find_profile(State(state): State<Users>, user: CurrentUser) -> Result<Json<Me>> {
    me(&state, &user.id).await
}

/// Changes the caller's account.
#[utoipa::path(patch, path = "/users/profile", tag = "users", request_body = UpdateProfile, responses(
    (status = 200, body = Me),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 409, body = ProblemBody),
))]
pub async fn update_profile(
    State(state): State<Users>,
    user: CurrentUser,
    Json(body): Json<UpdateProfile>,
) -> Result<Json<Me>> {
    let change = Change {
        full_name: body.full_name,
        email: body.email.as_deref().map(normal),
        phone: body.phone,
        avatar: body.avatar,
        preferences: body.preferences.map(Value::Object),
    };
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.now();
    if !db::update(&mut tx, &user.id, &change, now)
        .await
        .map_err(taken)?
    {
        db::find(&mut tx, &user.id).await?.ok_or(Error::NoUser)?;
        return Err(Error::PreferencesTooLarge);
    }
    let entry = Entry::done(&user.id, "user.updated", ("user", user.id.as_str()));
    audit::write(&mut tx, entry.changing(change.fields()), now).await?;
    tx.commit().await?;
    me(&state, &user.id).await
}

/// A user: the caller's own account, or anybody's for admins, who see more.
#[utoipa::path(get, path = "/users/{id}", tag = "users", params(("id" = UserId, Path)), responses(
    (status = 200, body = Shown),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody),
))]
pub async fn find_user(
    State(state): State<Users>,
    caller: CurrentUser,
    Path(id): Path<UserId>,
) -> Result<Json<Shown>> {
    let id = caller.acting_for(Some(id))?;
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(shown(&mut conn, &id, caller.is_admin).await?))
}

/// An account, as an admin sees it or its user.
pub async fn shown(conn: &mut PgConnection, id: &UserId, to_admin: bool) -> Result<Shown> {
    let account = db::find(conn, id).await?.ok_or(Error::NoUser)?;
    if !to_admin {
        return Ok(Shown::Me(Box::new(account.into())));
    }
    let roles = db::roles_of(conn, std::slice::from_ref(id)).await?;
    let user: Option<User> = admin::with_roles(vec![account], roles).pop();
    Ok(Shown::User(Box::new(user.ok_or(Error::NoUser)?)))
}

/// Changes the caller's password and ends the other sessions.
#[utoipa::path(post, path = "/auth/change-password", tag = "auth", request_body = ChangePassword, responses(
    (status = 200, body = Done),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 503, body = ProblemBody),
))]
pub async fn change_password(
    State(state): State<Users>,
    user: CurrentUser,
    Json(body): Json<ChangePassword>,
) -> Result<Json<Done>> {
    change_own_password(&state, &user, body).await
}

/// The same, by whichever route it is asked for.
pub async fn change_own_password(
    state: &Users,
    user: &CurrentUser,
    body: ChangePassword,
) -> Result<Json<Done>> {
    let current = user.session()?;
    if body.new_password.expose() == body.old_password.expose() {
        return Err(Problem::invalid_field("newPassword", "must not be the old one").into());
    }
    let about = [&*user.username];
    password::strength::check(state, "newPassword", &body.new_password, &about).await?;
    // Without Redis the end of the other sessions would not reach every instance in time: better nothing changes.
    let reachable = state.platform.redis.ping::<()>(None).await;
    reachable.map_err(|error| Error::EndSession(error.into()))?;
    let stands = {
        let mut conn = state.platform.db.acquire().await?;
        db::find_hash(&mut conn, &user.id)
            .await?
            .ok_or(Error::NoUser)?
    };
    let compared = attempt::compare(state, &user.id, stands, body.old_password).await;
    let right = compared
        .map_err(Error::about_old_password)?
        .ok_or(Error::WrongOldPassword)?;
    let new = match state.hasher.hash(body.new_password).await {
        Ok(new) => new,
        Err(error) => {
            right
                .release(&mut *state.platform.db.acquire().await?)
                .await?;
            return Err(error.into());
        }
    };

    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    if !right.replaced(&mut tx, &new, now).await? {
        right.release(&mut tx).await?;
        tx.commit().await?;
        return Err(Error::WrongOldPassword);
    }
    let ended = session::end(&mut tx, &user.id, Which::AllBut(current), now).await?;
    let event = Event::new(user.id.clone(), now, EventBody::PasswordChanged {});
    emit(&mut tx, &event).await?;
    let entry = Entry::done(
        &user.id,
        "user.password_changed",
        ("user", user.id.as_str()),
    );
    audit::write(&mut tx, entry, now).await?;
    tx.commit().await?;

    // The password is changed whatever happens now; a job goes on where this fails.
    if let Err(error) = session::enforce(state, &ended).await {
        warn!(user.id = %user.id, "sessions of {} end a little later: {error}", user.id);
    }
    Ok(Json(Done {
        message: "the password is changed; other sessions have ended",
    }))
}

async fn me(state: &Users, id: &UserId) -> Result<Json<Me>> {
    let mut conn = state.platform.db.acquire().await?;
    let account = db::find(&mut conn, id).await?.ok_or(Error::NoUser)?;
    Ok(Json(account.into()))
}
