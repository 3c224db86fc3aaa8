//! Storing a notification as its user wants it.

use contracts::Timestamp;
use sqlx::PgConnection;

use super::{Draft, Stored, db};
use crate::delivery;
use crate::preference;
use crate::template;

/// Stores a notification under the user's next number, in the words and for the ways that the user wants, with
/// what has to leave the platform for it. `None` where the user wants none of its type.
///
/// # Errors
/// Where the database does not answer: roll back.
pub async fn store(
    conn: &mut PgConnection,
    mut draft: Draft,
    now: Timestamp,
) -> sqlx::Result<Option<Stored>> {
    let wishes = preference::db::wishes(conn, &draft.user_id, draft.kind).await?;
    if !wishes.take(draft.priority) {
        return Ok(None);
    }
    template::dress(conn, &mut draft, wishes.language()).await?;
    draft.channels = wishes.ways(&draft);
    let mut out = draft.channels.clone();
    out.retain(|channel| channel.leads_out());
    let leave = wishes.leave(draft.priority, now);
    let stored = db::insert(conn, draft, now).await?;
    delivery::db::insert(conn, (&stored.user_id, &stored.id), &out, &leave, now).await?;
    Ok(Some(stored))
}
