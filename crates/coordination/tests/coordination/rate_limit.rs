//! Rate limits: exact however many ask at once.

use std::time::Duration;

use coordination::{Limit, RateLimiter};
use futures::future::join_all;

use crate::stores::{stores, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_passes_exactly_its_size() {
    let stores = stores().await;
    let replicas: Vec<RateLimiter> = (0..3)
        .map(|_| RateLimiter::new(stores.redis.clone(), stores.keys.clone()))
        .collect();
    let limit = Limit::per(20, Duration::from_secs(3600));

    let asked = join_all((0..90).map(|n| replicas[n % 3].check("login:a", limit))).await;
    let asked: Vec<_> = asked.into_iter().map(Result::unwrap).collect();

    assert_eq!(asked.iter().filter(|decision| decision.allowed).count(), 20);
    let refused = asked.iter().find(|decision| !decision.allowed).unwrap();
    assert!(
        refused.retry_after > Duration::from_secs(100)
            && refused.retry_after <= Duration::from_secs(180)
    );
    assert_eq!((refused.remaining, refused.limit), (0, 20));
    assert!(replicas[0].check("login:b", limit).await.unwrap().allowed);
}

#[tokio::test]
async fn tokens_come_back_at_the_rate() {
    let stores = stores().await;
    let limiter = RateLimiter::new(stores.redis.clone(), stores.keys.clone());
    let limit = Limit::per_second(10).burst(1);
    assert_eq!(limiter.check("a", limit).await.unwrap().remaining, 0);

    until("the next token is there", async || {
        limiter.check("a", limit).await.unwrap().allowed
    })
    .await;
}
