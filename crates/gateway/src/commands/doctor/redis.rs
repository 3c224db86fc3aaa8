//! Redis: whether it is there, is a master, forgets nothing on purpose, and has the replicas that leases wait for.

use std::time::Instant;

use devices::node::check::{Check, Standing};
use fred::clients::Pool;
use fred::interfaces::ClientLike;
use fred::types::{CustomCommand, Value};
use platform::{Clock, Settings, redis};

use super::{clock, latency, silent};

/// The oldest version that is tested.
const OLDEST: (u32, u32) = (6, 2);

/// What is found of the one that `REDIS_URL` names, and of those for locks.
pub async fn examine(url: &str, settings: &Settings) -> Vec<Check> {
    let mut checks = of(url, settings.redis_wait_replicas).await;
    for (at, url) in settings.redlock_urls.iter().enumerate() {
        let mut found = of(url, 0).await;
        // One of them may be away; most may not.
        found.retain(|check| check.status != Standing::Ok);
        let worst = found.into_iter().max_by_key(|check| check.status);
        checks.push(match worst {
            None => Check::new(
                "lock server",
                Standing::Ok,
                format!("number {} is well", at + 1),
                "",
            ),
            Some(worst) => {
                let found = format!("number {}: {} {}", at + 1, worst.name, worst.found);
                Check::new(
                    "lock server",
                    worst.status,
                    found,
                    &worst.advice.unwrap_or_default(),
                )
            }
        });
    }
    checks
}

async fn of(url: &str, wanted_replicas: u32) -> Vec<Check> {
    let pool = match redis::connect(url).await {
        Ok(redis) => redis.pool,
        Err(error) => return vec![silent(format!("{error:#}"))],
    };
    let found = match info(&pool).await {
        Ok(info) => {
            let mut checks = judged(&info, wanted_replicas);
            match times(&pool).await {
                Ok(times) => checks.extend(times),
                Err(error) => checks.push(silent(error.to_string())),
            }
            checks
        }
        Err(error) => vec![silent(format!("INFO is refused: {error}"))],
    };
    let _ = pool.quit().await;
    found
}

async fn info(pool: &Pool) -> Result<String, fred::error::Error> {
    let command = CustomCommand::new_static("INFO", None, false);
    pool.custom(command, Vec::<Value>::new()).await
}

/// What `INFO` says.
fn judged(info: &str, wanted_replicas: u32) -> Vec<Check> {
    let field = |name: &str| {
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(key, _)| *key == name);
        found.map_or("", |(_, value)| value.trim())
    };
    let number = |name: &str| field(name).parse::<u64>().unwrap_or(0);
    let judge = |is_well: bool, otherwise| if is_well { Standing::Ok } else { otherwise };

    let version = field("redis_version");
    let mut parts = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let is_new = (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= OLDEST;
    let policy = field("maxmemory_policy");
    let (used, most) = (number("used_memory"), number("maxmemory"));
    let forgets = most > 0 && policy != "noeviction";
    let is_full = most > 0 && used.saturating_mul(10) > most.saturating_mul(9);
    let persists = number("aof_enabled") == 1
        || number("rdb_last_save_time") > 0 && number("rdb_changes_since_last_save") < 1_000_000;
    let replicas = number("connected_slaves");
    let memory = match most {
        0 => format!("{} MB, no bound", used / 1_000_000),
        most => format!("{} of {} MB", used / 1_000_000, most / 1_000_000),
    };
    vec![
        Check::new(
            "version",
            judge(is_new, Standing::Fail),
            version,
            "upgrade to Redis 6.2 or later",
        ),
        Check::new(
            "role",
            judge(field("role") == "master", Standing::Fail),
            field("role"),
            "let REDIS_URL name the master, or the sentinels, which know it",
        ),
        Check::new(
            "eviction",
            judge(!forgets, Standing::Fail),
            policy,
            "set maxmemory-policy to noeviction: leases and sessions that are evicted come back from PostgreSQL late",
        ),
        Check::new(
            "memory",
            judge(!is_full, Standing::Warn),
            memory,
            "raise maxmemory before writes are refused",
        ),
        Check::new(
            "persistence",
            judge(persists, Standing::Warn),
            match persists {
                true => "on",
                false => "neither append-only file nor a recent snapshot",
            },
            "set appendonly to yes: what a restart forgets is made good from PostgreSQL, but takes its time",
        ),
        Check::new(
            "replicas",
            judge(replicas >= u64::from(wanted_replicas), Standing::Fail),
            format!("{replicas} connected, {wanted_replicas} must confirm"),
            "no lease is given out: bring the replicas back, or lower REDIS_WAIT_REPLICAS",
        ),
    ]
}

async fn times(pool: &Pool) -> Result<[Check; 2], fred::error::Error> {
    let mut taken = Vec::new();
    let mut skew = 0.0;
    for _ in 0..5 {
        let began = Instant::now();
        let command = CustomCommand::new_static("TIME", None, false);
        let (seconds, micros): (i64, i64) = pool.custom(command, Vec::<Value>::new()).await?;
        let way = began.elapsed();
        let theirs = seconds as f64 + micros as f64 / 1e6;
        let ours = Clock::system().now().utc().timestamp_micros() as f64 / 1e6;
        skew = theirs - (ours - way.as_secs_f64() / 2.0);
        taken.push(way);
    }
    Ok([clock(skew), latency(taken)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: &str = "redis_version:7.2.4\r\nrole:master\r\nconnected_slaves:1\r\nused_memory:5000000\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n";

    fn worst(info: &str, replicas: u32) -> Vec<&'static str> {
        let checks = judged(info, replicas);
        let bad = checks.iter().filter(|check| check.status != Standing::Ok);
        bad.map(|check| check.name).collect()
    }

    #[test]
    fn what_endangers_leases_is_named() {
        assert_eq!(worst(WELL, 1), [""; 0]);
        assert_eq!(worst(WELL, 2), ["replicas"]);
        assert_eq!(worst(&WELL.replace("7.2.4", "6.0.1"), 0), ["version"]);
        assert_eq!(worst(&WELL.replace("master", "slave"), 0), ["role"]);
        let small = WELL.replace("maxmemory:0", "maxmemory:5100000");
        assert_eq!(worst(&small, 0), ["memory"]);
        assert_eq!(
            worst(&small.replace("noeviction", "allkeys-lru"), 0),
            ["eviction", "memory"]
        );
        assert_eq!(
            worst(&WELL.replace("aof_enabled:1", "aof_enabled:0"), 0),
            ["persistence"]
        );
        assert!(!worst("", 0).is_empty());
    }
}
