//! The one heartbeat of a process: renews all its memberships in one round trip.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use super::membership::Member;
use super::{HEARTBEAT, Inner};
use crate::{StoreError, metrics, script};

/// Beats at a third of the time to live until the registry is dropped.
pub async fn run(registry: Weak<Inner>, ttl: Duration) {
    let mut next = Instant::now() + ttl / 3;
    let mut trouble = false;
    let mut news = false;
    while let Some(inner) = registry.upgrade() {
        tokio::select! {
            () = sleep_until(next) => {}
            () = inner.beat_now.notified() => news = true,
        }
        next = Instant::now() + ttl / 3;
        match timeout(ttl, beat(&inner, news)).await {
            Ok(Ok(())) => (trouble, news) = (false, false),
            Ok(Err(error)) => {
                if !trouble {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "the registry does not hear us: {error}"
                    );
                }
                trouble = true;
                next = Instant::now() + ttl / 10;
            }
            Err(_) => trouble = true,
        }
    }
}

/// One heartbeat. `news`: whether it says something that the others should read at once.
async fn beat(inner: &Inner, news: bool) -> Result<(), StoreError> {
    let members: Vec<Arc<Member>> = inner
        .members()
        .iter()
        .map(|(_, member)| member.clone())
        .collect();
    if members.is_empty() {
        return Ok(());
    }
    let mut arguments = vec![
        inner.keys.slots(),
        script::milliseconds(inner.pace.ttl),
        Uuid::new_v4().to_string(),
        inner.keys.registry_news(),
        u8::from(news).to_string(),
    ];
    for member in &members {
        arguments.extend([member.field(), member.owner().to_owned(), member.stored()]);
    }
    let tried = "renew our places in the registry";
    let answers: Vec<i64> = script::run(
        &inner.redis,
        &HEARTBEAT,
        inner.script_keys(),
        arguments,
        tried,
    )
    .await?;
    for (member, answer) in members.iter().zip(answers) {
        let (service, slot) = (member.service(), member.slot());
        match answer {
            1 => {}
            2 => info!(
                service,
                slot, "{service} is back in its slot {slot}, which the registry had lost"
            ),
            _ => {
                let taken = inner.take_slot(member, None).await?;
                member.set_slot(taken);
                metrics::slot_moved(service);
                warn!(
                    service,
                    slot = taken,
                    "slot {slot} of {service} was taken while we were silent: now in slot {taken}"
                );
            }
        }
    }
    withdraw_the_departed(inner, &members).await
}

/// A member that left while the heartbeat was on its way may have been put back by it.
async fn withdraw_the_departed(inner: &Inner, members: &[Arc<Member>]) -> Result<(), StoreError> {
    let departed: Vec<Arc<Member>> = {
        let current = inner.members();
        let gone =
            |member: &&Arc<Member>| !current.iter().any(|(_, other)| Arc::ptr_eq(other, member));
        members.iter().filter(gone).cloned().collect()
    };
    inner.give_back(&departed).await
}
