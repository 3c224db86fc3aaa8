//! Redis by TLS, with an authority of one's own, user and password.

use testkit::{RedisServers, TlsRedis};

use crate::audit::all_holds;
use crate::load::{Load, replicas};

#[tokio::test]
async fn a_redis_that_speaks_tls_and_asks_who_one_is() -> anyhow::Result<()> {
    let (redis, locks) = tokio::try_join!(TlsRedis::start(), RedisServers::start(1, &[]))?;
    let url = format!(
        "{}?sslrootcert={}",
        redis.url(),
        redis.authority().display()
    );
    let cluster = replicas()
        .redis(url)
        .env("REDLOCK_URLS", locks.urls())
        .start()
        .await?;
    let load = Load::start(&cluster).await?;

    redis.restart().await?;

    all_holds(&cluster, load).await
}
