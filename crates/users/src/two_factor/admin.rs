//! A second factor that its user has lost, as an admin takes it away.

use axum::extract::State;
use contracts::UserId;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use platform::{Admin, Problem};
use tracing::info;

use super::db;
use crate::Users;
use crate::account::api::Done;
use crate::account::db as accounts;
use crate::account::manage::tell_ended;
use crate::audit::{self, Entry};
use crate::error::Result;
use crate::role::assign::Manager;
use crate::session::{self, Which};

/// Takes away the second factor of a user who has lost both phone and recovery codes. It ends all sessions of that user, for
/// the phone may be in other hands. That of an admin is taken by super admins alone; one's own is switched off by its code.
#[utoipa::path(delete, path = "/users/{id}/two-factor", tag = "users", params(("id" = UserId, Path)), responses(
    (status = 200, body = Done),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 409, body = ProblemBody, description = "The user has none"),
))]
pub async fn remove_two_factor(
    State(state): State<Users>,
    Admin(caller): Admin,
    Path(id): Path<UserId>,
) -> Result<Json<Done>> {
    if id == caller.id {
        let how = "one's own second factor is switched off by its code: POST /auth/2fa/disable";
        return Err(Problem::conflict("CONFLICT", how).into());
    }
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    accounts::lock(&mut tx, &id).await?;
    let manager = Manager::of(&mut tx, &caller).await?;
    manager.may_change(&mut tx, &id).await?;
    if db::find_enabled(&mut tx, &id).await?.is_none() {
        return Err(Problem::conflict("CONFLICT", "two factors are off for this user").into());
    }
    db::remove(&mut tx, &id).await?;
    let ended = session::end(&mut tx, &id, Which::All, now).await?;
    let entry = Entry::done(&caller.id, "two_factor.removed", ("user", id.as_str()));
    audit::write(&mut tx, entry.judged(audit::Status::Warning), now).await?;
    tx.commit().await?;
    info!(user.id = %id, "admin {} took away the second factor of user {id}", caller.id);
    tell_ended(&state, &id, &ended).await;
    Ok(Json(Done {
        message: "the second factor is gone; all sessions have ended",
    }))
}
