//! What of a delivery its user still wants when it is carried: what was queued may have waited for hours, and been tried for days.

use contracts::{NotificationId, Timestamp};
use sqlx::PgConnection;

use super::db::{self, Claimed};
use crate::Notifications;
use crate::notification::{self, Stored};
use crate::preference;

const EXPIRED: &str = "it expired before it could be delivered";
const UNWANTED: &str = "its user does not want it this way any more";

/// What is to be done with a delivery.
#[derive(Debug)]
pub enum Wanted {
    /// Carry these, in order; nothing where all is gone.
    Now(Vec<Stored>),
    /// It waits for the end of quiet hours.
    Later,
}

/// Reads what a worker holds and what its user wants now: gives up what has expired or is not wanted by this way any more, and
/// puts back what may not come before a later moment.
pub async fn look(state: &Notifications, claimed: &Claimed) -> sqlx::Result<Wanted> {
    let mut conn = state.platform.db.acquire().await?;
    if claimed.bundle.is_some() {
        db::join(&mut conn, claimed).await?;
    }
    let now = state.platform.clock.shared(&mut conn).await?;
    let (mut kept, mut expired, mut unwanted) = (Vec::new(), Vec::new(), Vec::new());
    let (mut known, mut quiet_until) = (Vec::new(), None);
    for stored in db::carried(&mut conn, claimed).await? {
        if !known.iter().any(|(kind, _)| *kind == stored.kind) {
            let wishes = preference::db::wishes(&mut conn, &claimed.user_id, stored.kind).await?;
            known.push((stored.kind, wishes));
        }
        let wishes = known.iter().find(|(kind, _)| *kind == stored.kind);
        let wishes = wishes.map(|(_, wishes)| wishes);
        if stored.expires_at.is_some_and(|end| end <= now) {
            expired.push(stored.id);
        } else if wishes.is_some_and(|wishes| !wishes.still(stored.priority, claimed.channel)) {
            unwanted.push(stored.id);
        } else {
            quiet_until = wishes.and_then(|wishes| wishes.quiet_until(now));
            kept.push(stored);
        }
    }
    for (gone, why) in [(expired, EXPIRED), (unwanted, UNWANTED)] {
        if !gone.is_empty() {
            give_up(&mut conn, claimed, (&gone, why), now).await?;
        }
    }
    match quiet_until {
        Some(until) if !claimed.urgent => {
            db::hold(&mut conn, claimed, until).await?;
            Ok(Wanted::Later)
        }
        _ => Ok(Wanted::Now(kept)),
    }
}

async fn give_up(
    conn: &mut PgConnection,
    claimed: &Claimed,
    (gone, why): (&[NotificationId], &str),
    now: Timestamp,
) -> sqlx::Result<()> {
    let mut tx = sqlx::Connection::begin(conn).await?;
    notification::db::lock_inbox(&mut tx, &claimed.user_id).await?;
    db::give_up(&mut tx, claimed, gone, why, now).await?;
    tx.commit().await
}
