//! How much of one core this process and its Redis use.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::stores::Private;

/// Processor time in per cent of one core.
pub struct Load {
    /// Of this process.
    pub ours: f64,
    /// Of its Redis.
    pub redis: f64,
}

/// Measures for a while.
pub async fn load(private: &Private, span: Duration) -> anyhow::Result<Load> {
    let (started, ours, redis) = (Instant::now(), own_time()?, private.redis_time().await?);
    tokio::time::sleep(span).await;
    let wall = started.elapsed().as_secs_f64();
    let per_cent = |used: Duration| 100.0 * used.as_secs_f64() / wall;
    Ok(Load {
        ours: per_cent(own_time()?.saturating_sub(ours)),
        redis: per_cent(private.redis_time().await?.saturating_sub(redis)),
    })
}

fn own_time() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_secs(value.tv_sec().unsigned_abs())
            + Duration::from_micros(value.tv_usec().unsigned_abs())
    };
    Ok(time(usage.user_time()) + time(usage.system_time()))
}
