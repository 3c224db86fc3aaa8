//! The workers of a replica, one for each way: each claims deliveries and has them carried. Each attempt is shorter than the
//! lease, so that nobody else carries what is still carried here.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use platform::lifecycle::Tasks;
use platform::problem::causes;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::db::{self, Claimed};
use super::wanted::{self, Wanted};
use super::{allowance, pause};
use crate::channel::{Carrier, Carriers, Failure, Parcel};
use crate::notification::{self, Channel, Notification};
use crate::{Notifications, metrics};

/// How often the queue is looked at when nobody says that there is something.
const POLL: Duration = Duration::from_millis(500);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(2);
/// How many deliveries one replica carries at a time by each way: slow receivers of one leave the places of others free.
const PLACES: [(Channel, &str, usize); 3] = [
    (Channel::Webhook, "notifications.webhooks", 8),
    (Channel::Email, "notifications.mail", 4),
    (Channel::Sms, "notifications.text_messages", 4),
];
/// How long a replica that leaves waits for what it carries.
const LEAVE: Duration = Duration::from_secs(3);

/// Starts working on the queue.
pub fn spawn(state: Notifications, carriers: Carriers, tasks: &Tasks) {
    let carriers = Arc::new(carriers);
    for (channel, name, places) in PLACES {
        let (state, carriers) = (state.clone(), carriers.clone());
        let stopping = tasks.stopping();
        tasks.spawn(name, async move {
            serve(&state, &carriers, (channel, places), stopping).await;
            Ok(())
        });
    }
}

async fn serve(
    state: &Notifications,
    carriers: &Carriers,
    (channel, places): (Channel, usize),
    stopping: CancellationToken,
) {
    let mut due = state.deliveries_due.subscribe();
    let mut at_work = FuturesUnordered::new();
    let mut wait = Duration::ZERO;
    while !stopping.is_cancelled() {
        tokio::select! {
            () = stopping.cancelled() => break,
            Some(()) = at_work.next(), if !at_work.is_empty() => {}
            Ok(()) = due.changed() => {}
            () = sleep(wait) => {}
        }
        let claiming = claim(state, channel, places.saturating_sub(at_work.len()));
        tokio::pin!(claiming);
        wait = POLL;
        // What is under way goes on meanwhile: the connection that the claim waits for may be in its hands.
        let claimed = loop {
            tokio::select! {
                claimed = &mut claiming => break claimed,
                // Its place is free, and the next one of its user may be due.
                Some(()) = at_work.next(), if !at_work.is_empty() => wait = Duration::ZERO,
            }
        };
        match claimed {
            Ok(claimed) => {
                at_work.extend(
                    claimed
                        .into_iter()
                        .map(|claimed| work(state, carriers, claimed)),
                );
            }
            Err(error) => {
                warn!(
                    "the queue of deliveries could not be read: {}",
                    causes(&error)
                );
                wait = PAUSE_AFTER_FAILURE;
            }
        }
    }
    // What does not end in time is carried again by another replica, once its lease is over.
    let _ = timeout(LEAVE, async { while at_work.next().await.is_some() {} }).await;
}

async fn claim(state: &Notifications, channel: Channel, room: usize) -> sqlx::Result<Vec<Claimed>> {
    if room == 0 {
        return Ok(Vec::new());
    }
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let room = i64::try_from(room).unwrap_or(i64::MAX);
    db::claim(&mut conn, state.config.delivery_lease, now, (channel, room)).await
}

async fn work(state: &Notifications, carriers: &Carriers, claimed: Claimed) {
    let within = state.config.delivery_lease / 3;
    let carried = timeout(within, carry(state, carriers, &claimed)).await;
    let carried = carried.unwrap_or_else(|_| Err(Failure::Passing("it took too long".to_owned())));
    if let Err(error) = end(state, &claimed, carried).await {
        // Its lease ends, and another worker goes on.
        warn!(delivery.id = %claimed.id, "a delivery was left: {}", causes(&error));
    }
}

async fn carry(
    state: &Notifications,
    carriers: &Carriers,
    claimed: &Claimed,
) -> Result<(), Failure> {
    let held = match wanted::look(state, claimed).await.map_err(unread)? {
        Wanted::Now(held) => held,
        Wanted::Later => return Ok(()),
    };
    let parcel = Parcel {
        id: claimed.id.clone(),
        user_id: claimed.user_id.clone(),
        notifications: held.into_iter().map(Notification::from).collect(),
    };
    if parcel.notifications.is_empty() {
        // Its user deleted it meanwhile, or wants it no more.
        return Ok(());
    }
    if !allowed(state, claimed).await? {
        return Err(Failure::Final("too many messages in a day".to_owned()));
    }
    match claimed.channel {
        Channel::Email => carriers.email.carry(&parcel).await,
        Channel::Sms => carriers.sms.carry(&parcel).await,
        Channel::Webhook => carriers.webhook.carry(&parcel).await,
        // The table knows none of these.
        Channel::Websocket => Ok(()),
    }
}

/// Whether the user's day has room for the message.
async fn allowed(state: &Notifications, claimed: &Claimed) -> Result<bool, Failure> {
    let taken = async {
        let mut tx = state.platform.db.begin().await?;
        let now = state.platform.clock.shared(&mut tx).await?;
        let taken = allowance::take(&mut tx, claimed, now).await?;
        if taken {
            tx.commit().await?;
        }
        Ok(taken)
    };
    taken.await.map_err(unread)
}

fn unread(error: sqlx::Error) -> Failure {
    warn!("a delivery could not be read: {}", causes(&error));
    Failure::Passing("the database did not answer".to_owned())
}

/// Writes what became of a delivery.
async fn end(
    state: &Notifications,
    claimed: &Claimed,
    carried: Result<(), Failure>,
) -> sqlx::Result<()> {
    let told = match carried {
        Ok(()) => None,
        Err(Failure::Final(why)) => Some(why),
        Err(Failure::Passing(why)) => {
            let next = pause(state.config.retry_pause, claimed.attempts, rand::random());
            if claimed.age + next.as_secs_f64() <= state.config.delivery_patience.as_secs_f64() {
                debug!(delivery.id = %claimed.id, "a delivery failed, next try in {next:.1?}: {why}");
                metrics::delivery(claimed.channel, "retried");
                let mut conn = state.platform.db.acquire().await?;
                return db::requeue(&mut conn, claimed, next, &why).await;
            }
            Some(why)
        }
    };
    let mut tx = state.platform.db.begin().await?;
    notification::db::lock_inbox(&mut tx, &claimed.user_id).await?;
    let now = state.platform.clock.now();
    if db::finish(&mut tx, claimed, told.as_deref(), now).await? {
        tx.commit().await?;
        metrics::delivery(
            claimed.channel,
            if told.is_none() { "sent" } else { "failed" },
        );
        if let Some(why) = told {
            warn!(delivery.id = %claimed.id, "a delivery failed for good: {why}");
        }
    }
    Ok(())
}
