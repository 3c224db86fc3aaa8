//! Hearing that the registry has changed, and having it read.

use std::ops::ControlFlow;
use std::sync::Weak;
use std::sync::atomic::Ordering;

use super::Inner;
use crate::news::{News, listen};

/// Hears news until the registry is left or dropped.
pub async fn run(registry: Weak<Inner>) {
    let Some((redis, channel, left)) = registry.upgrade().map(|inner| {
        let channel = inner.keys.registry_news();
        (inner.redis.clone(), channel, inner.left.clone())
    }) else {
        return;
    };
    let hear = |news| {
        let Some(inner) = registry.upgrade() else {
            return ControlFlow::Break(());
        };
        match news {
            News::Listening => {
                inner.pushed.store(true, Ordering::Relaxed);
                inner.read_now.notify_one();
            }
            // One that was missed is news as well.
            News::Told(_) | News::Missed => inner.read_now.notify_one(),
            News::Deaf => inner.pushed.store(false, Ordering::Relaxed),
            News::Quiet => {}
        }
        ControlFlow::Continue(())
    };
    listen(&redis, &channel, &left, hear).await;
}
