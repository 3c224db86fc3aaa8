//! The library alone: a thread a core compares passwords, at the cost that ours has by default.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use argon2::password_hash::phc;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::task::spawn_blocking;

/// How many comparisons in a second.
pub async fn run(turn: Duration) -> anyhow::Result<f64> {
    let params = Params::new(19 * 1024, 2, 1, None).map_err(|error| anyhow!(error))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash: phc::PasswordHash = argon2.hash_password(PASSWORD)?;
    let started = Instant::now();
    let threads = (0..std::thread::available_parallelism()?.get()).map(|_| {
        let (argon2, hash) = (argon2.clone(), hash.clone());
        spawn_blocking(move || {
            let mut done = 0_u32;
            while started.elapsed() < turn {
                argon2.verify_password(PASSWORD, &hash)?;
                done += 1;
            }
            anyhow::Ok(done)
        })
    });
    let done = futures::future::join_all(threads).await;
    let mut sum = 0;
    for done in done {
        sum += done.context("a thread that compares passwords")??;
    }
    ensure!(sum > 0, "no password was compared within {turn:?}");
    Ok(f64::from(sum) / started.elapsed().as_secs_f64())
}

const PASSWORD: &[u8] = b"correct horse 4 batteries";
