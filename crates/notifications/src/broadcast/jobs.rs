//! Telling broadcasts, batch by batch: any replica takes the next one.

use std::time::Duration;

use contracts::UserId;
use platform::lifecycle::Tick;
use tracing::warn;

use super::{Broadcast, db};
use crate::accounts::Away;
use crate::notification::store::store;
use crate::{Notifications, metrics};

/// How many users are told in one transaction.
const BATCH: i64 = 100;
/// For how long a replica holds a batch before another one takes it.
const LEASE: Duration = Duration::from_secs(15);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(2);

/// Tells the next batch of a broadcast.
///
/// # Errors
/// Where the database does not answer: another replica takes the batch when its lease is over.
pub async fn tell_next(state: &Notifications) -> anyhow::Result<Tick> {
    let claimed = db::claim(&mut *state.platform.db.acquire().await?, LEASE).await?;
    let Some(broadcast) = claimed else {
        return Ok(Tick::Idle);
    };
    let (users, cursor) = match batch(state, &broadcast).await {
        Ok(batch) => batch,
        Err(away) => {
            warn!(broadcast.id = %broadcast.id, "the users of a broadcast are not known yet: {away}");
            let mut conn = state.platform.db.acquire().await?;
            db::give_back(&mut conn, &broadcast, PAUSE_AFTER_FAILURE).await?;
            return Ok(Tick::Idle);
        }
    };
    let mut tx = state.platform.db.begin().await?;
    if !db::hold(&mut tx, &broadcast).await? {
        return Ok(Tick::More);
    }
    let now = state.platform.clock.now();
    let taken = db::take(&mut tx, &broadcast.id, &users).await?;
    let count = taken.len();
    let mut told = Vec::with_capacity(count);
    for user in taken {
        if let Some(stored) = store(&mut tx, broadcast.draft(user), now).await? {
            told.push(stored.user_id);
        }
    }
    let unwanted = count - told.len();
    let counts = (told.len() as i64, unwanted as i64);
    db::advance(&mut tx, &broadcast, cursor, counts, now).await?;
    tx.commit().await?;
    for user in &told {
        metrics::notification_sent();
        state.hub.announce(user);
    }
    state.deliveries_due.send_replace(());
    Ok(Tick::More)
}

/// The users of the next batch, and how far the broadcast has come with them.
async fn batch(state: &Notifications, broadcast: &Broadcast) -> Result<(Vec<UserId>, i64), Away> {
    if let Some(users) = &broadcast.user_ids {
        let (from, most) = (broadcast.cursor as usize, BATCH as usize);
        let users = users.0.iter().skip(from).take(most).cloned().collect();
        return Ok((users, (broadcast.cursor + BATCH).min(broadcast.upto)));
    }
    let range = (broadcast.cursor, broadcast.upto);
    let page = state
        .accounts
        .page(broadcast.role.as_deref(), range, BATCH)
        .await?;
    let cursor = match page.last() {
        Some(last) if page.len() as i64 == BATCH => last.seq,
        // There are no more.
        _ => broadcast.upto,
    };
    Ok((page.into_iter().map(|account| account.id).collect(), cursor))
}
