//! Sessions: sign-ins as their users see them, and what renews their tokens.
//!
//! The end of a session is decided in one transaction with its event, and told to every instance right after. Where a
//! crash comes between, a job tells them.

mod agent;
pub mod api;
mod db;
pub mod history;
mod jobs;
pub mod own;
mod sign_in;

use contracts::{Event, EventBody, SessionId, Timestamp, UserId};
use platform::events::emit;
use sqlx::PgConnection;

use crate::Users;
use crate::error::{Error, Result};

pub use jobs::{run_jobs, spawn_jobs};

/// Which of a user's sessions.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// This one.
    One(&'a SessionId),
    /// All others.
    AllBut(&'a SessionId),
    /// All.
    All,
}

/// Decides that sessions end, in the caller's transaction; commit, then [`enforce`].
pub async fn end(
    conn: &mut PgConnection,
    user: &UserId,
    which: Which<'_>,
    now: Timestamp,
) -> sqlx::Result<Vec<SessionId>> {
    let ended = db::end(conn, user, which, now).await?;
    for session_id in &ended {
        let body = EventBody::SessionEnded {
            session_id: session_id.clone(),
        };
        emit(conn, &Event::new(user.clone(), now, body)).await?;
    }
    Ok(ended)
}

/// Tells every instance that sessions have ended.
///
/// # Errors
/// [`Error::EndSession`]; the job tries again.
pub async fn enforce(state: &Users, ids: &[SessionId]) -> Result<()> {
    for id in ids {
        // Each at its own time: who follows the ends looks for them where they were just written.
        let now = state.platform.clock.now();
        let ended = state.platform.auth.sessions().end(id, now).await;
        ended.map_err(|error| Error::EndSession(error.into()))?;
    }
    if !ids.is_empty() {
        let mut conn = state.platform.db.acquire().await?;
        db::mark_enforced(&mut conn, ids, state.platform.clock.now()).await?;
    }
    Ok(())
}
