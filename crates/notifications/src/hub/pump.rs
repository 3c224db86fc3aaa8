//! The pump: one task of an instance that reads what sockets miss and hands it over in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use contracts::UserId;
use platform::Clock;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Cursor, Frame, Goodbye, Hub, Live, NotSent, PAGE, Sockets};
use crate::metrics;
use crate::notification::db::{self, Head, Want};
use crate::notification::{Notification, Stored};

/// Users that are served by one query.
const BATCH: usize = 100;
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(300);
/// How far back a sweep for watchers looks: further than clocks differ and stores are away.
const LOOK_BACK: TimeDelta = TimeDelta::minutes(5);

/// Where a user's sockets stood when the pump looked.
struct Stand {
    head: Head,
    /// The least number that one of them has.
    after: i64,
    sockets: Vec<Arc<Live>>,
}

impl Hub {
    /// Feeds the sockets until the stop.
    pub async fn pump(&self, sweep_every: Duration, clock: &Clock, stop: CancellationToken) {
        let mut sweep = tokio::time::interval(sweep_every);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let sweeping = tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => self.sweep_due.swap(false, Ordering::SeqCst),
                _ = sweep.tick() => true,
            };
            let outcome = if sweeping {
                self.sweep(clock).await
            } else {
                self.feed_stirred().await
            };
            if let Err(error) = outcome {
                warn!("sockets wait for the database: {error}");
                tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(PAUSE_AFTER_FAILURE) => {} }
                self.wake.notify_one();
            }
        }
    }

    /// Feeds the sockets of users that there are news of.
    async fn feed_stirred(&self) -> sqlx::Result<()> {
        loop {
            let users: Vec<UserId> = {
                let mut sockets = self.sockets();
                let some: Vec<_> = sockets.stirred.iter().take(BATCH).cloned().collect();
                some.into_iter()
                    .filter(|user| sockets.stirred.remove(user))
                    .collect()
            };
            if users.is_empty() {
                return Ok(());
            }
            let fed = match db::heads(&self.db, &users).await {
                Ok(heads) => self.feed(heads).await,
                Err(error) => Err(error),
            };
            if let Err(error) = fed {
                self.sockets().stirred.extend(users);
                return Err(error);
            }
        }
    }

    /// Compares every live socket with the store.
    async fn sweep(&self, clock: &Clock) -> sqlx::Result<()> {
        let (users, watched) = {
            let sockets = self.sockets();
            (
                sockets.followers.keys().cloned().collect::<Vec<_>>(),
                !sockets.watchers.is_empty(),
            )
        };
        if !users.is_empty() {
            let heads = db::heads(&self.db, &users).await?;
            self.feed_swept(heads).await?;
        }
        if watched {
            let heads = db::heads_since(&self.db, clock.now() - LOOK_BACK).await?;
            self.feed_swept(heads).await?;
        }
        // What was put back after a failure.
        self.feed_stirred().await
    }

    async fn feed_swept(&self, mut heads: Vec<Head>) -> sqlx::Result<()> {
        while !heads.is_empty() {
            let batch = heads.split_off(heads.len().saturating_sub(BATCH));
            metrics::swept(self.feed(batch).await?);
        }
        Ok(())
    }

    /// Hands over what lies between the sockets' numbers and the heads; how many notifications that were.
    async fn feed(&self, heads: Vec<Head>) -> sqlx::Result<usize> {
        let stands: Vec<Stand> = {
            let sockets = self.sockets();
            heads
                .into_iter()
                .filter_map(|head| stand(&sockets, head))
                .collect()
        };
        let behind = stands
            .iter()
            .filter(|stand| stand.after < stand.head.last_seq);
        let wants: Vec<Want> = behind
            .map(|stand| Want {
                user_id: stand.head.user_id.clone(),
                after: stand.after,
                upto: stand.head.last_seq,
            })
            .collect();
        let rows = if wants.is_empty() {
            Vec::new()
        } else {
            db::pages(&self.db, &wants, PAGE).await?
        };
        let handed = rows.len();
        let mut pages: HashMap<UserId, Vec<Stored>> = HashMap::new();
        for row in rows {
            pages.entry(row.user_id.clone()).or_default().push(row);
        }
        for stand in stands {
            let page = pages.remove(&stand.head.user_id).unwrap_or_default();
            self.hand_over(&stand, page);
        }
        Ok(handed)
    }

    fn hand_over(&self, stand: &Stand, page: Vec<Stored>) {
        let user = &stand.head.user_id;
        let is_full = page.len() as i64 >= PAGE;
        // Numbers that a short page leaves out were deleted.
        let reached = page
            .last()
            .filter(|_| is_full)
            .map_or(stand.head.last_seq, |last| last.seq);
        let frames: Vec<(i64, Vec<Arc<Frame>>)> = page.into_iter().map(frames).collect();
        let unread =
            (!is_full).then(|| Frame::new("unread-count", json!({ "count": stand.head.unread })));
        for live in &stand.sockets {
            if let Err(NotSent::Full) = advance(live, stand, &frames, reached, unread.as_ref()) {
                self.cut(live, Goodbye::Slow);
            }
        }
        if is_full {
            self.sockets().stirred.insert(user.clone());
            self.wake.notify_one();
        }
    }
}

/// Where a user's sockets stand, if one of them has something to be told.
fn stand(sockets: &Sockets, head: Head) -> Option<Stand> {
    let following = sockets.following(&head.user_id);
    let seen: Vec<Cursor> = following
        .iter()
        .filter_map(|live| cursor(live, &head.user_id))
        .collect();
    let after = seen.iter().filter_map(|cursor| cursor.seq).min()?;
    let is_behind =
        after < head.last_seq || seen.iter().any(|cursor| cursor.unread != Some(head.unread));
    is_behind.then_some(Stand {
        head,
        after,
        sockets: following,
    })
}

/// What a socket was last told; one that watches all has been told nothing of a user that is new.
fn cursor(live: &Live, user: &UserId) -> Option<Cursor> {
    let known = live.cursors().get(user).copied();
    known.or(live.watches_all.then_some(Cursor {
        seq: Some(0),
        unread: None,
    }))
}

/// The notification and what follows it.
fn frames(stored: Stored) -> (i64, Vec<Arc<Frame>>) {
    let (seq, pushes) = (stored.seq, stored.pushes.0.clone());
    let first = Frame::notification(seq, &Notification::from(stored));
    let rest = pushes
        .into_iter()
        .map(|push| Frame::new(push.event, push.data));
    (seq, std::iter::once(first).chain(rest).collect())
}

/// Hands one socket what it misses.
fn advance(
    live: &Live,
    stand: &Stand,
    frames: &[(i64, Vec<Arc<Frame>>)],
    reached: i64,
    unread: Option<&Arc<Frame>>,
) -> Result<(), NotSent> {
    let user = &stand.head.user_id;
    let Some(Cursor {
        seq: Some(seq),
        unread: told,
    }) = cursor(live, user)
    else {
        return Ok(());
    };
    // It left and came back with a lower number than was read for: the next round is for it.
    if seq < stand.after {
        return Ok(());
    }
    for (_, frames) in frames.iter().filter(|(number, _)| *number > seq) {
        for frame in frames {
            live.send(frame)?;
        }
    }
    let mut next = Cursor {
        seq: Some(seq.max(reached)),
        unread: told,
    };
    if let Some(frame) = unread
        && told != Some(stand.head.unread)
    {
        live.send(frame)?;
        next.unread = Some(stand.head.unread);
    }
    let mut cursors = live.cursors();
    if live.watches_all || cursors.contains_key(user) {
        cursors.insert(user.clone(), next);
    }
    Ok(())
}
