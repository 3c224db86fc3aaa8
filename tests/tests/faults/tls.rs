//! Redis by TLS, with an authority of one's own, user and password.

use testkit::{Proxy, TlsRedis};

use crate::audit::all_holds;
use crate::load::{Load, replicas};

#[tokio::test]
async fn a_redis_that_speaks_tls_and_asks_who_one_is() -> anyhow::Result<()> {
    let redis = TlsRedis::start().await?;
    let url = format!(
        "{}?sslrootcert={}",
        redis.url(),
        redis.authority().display()
    );
    // The locks are there, too.
    let mut cluster = replicas().redis(url).start().await?;
    let load = Load::start(&cluster).await?;

    redis.restart().await?;
    load.goes_on(10).await;

    // What a client must refuse, and what the server refuses.
    let (stranger, wire) = (TlsRedis::start().await?, Proxy::start(redis.address())?);
    let authority = redis.authority().display().to_string();
    let other_host = redis
        .url()
        .replace(&redis.address().to_string(), &wire.address().to_string());
    for (what, url, authority) in [
        (
            "an authority that did not sign it",
            redis.url(),
            stranger.authority().display().to_string(),
        ),
        (
            "a name that it does not have",
            other_host,
            authority.clone(),
        ),
        (
            "a password that is wrong",
            redis.url().replace("right-", "wrong-"),
            authority,
        ),
    ] {
        let url = format!("{url}?sslrootcert={authority}");
        let started = cluster
            .add_replica_with(&[], [("REDIS_URL", &*url)])
            .await
            .map(drop);
        let error = format!("{:?}", started.err());
        assert!(error.contains("Redis at"), "with {what}: {error}");
        assert!(!error.contains("-horse"), "with {what}: {error}");
    }

    all_holds(&cluster, load).await
}
