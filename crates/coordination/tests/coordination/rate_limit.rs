//! Rate limits: exact however many ask at once.

use std::time::{Duration, Instant};

use coordination::{Decision, Limit, RateLimiter};
use fred::interfaces::ClientLike as _;
use fred::types::InfoKind;
use futures::future::join_all;

use crate::servers::{RedisServer, bare};
use crate::stores::{connect, stores, until};

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

#[tokio::test(flavor = "multi_thread")]
async fn one_who_waits_as_long_as_told_passes_however_many_asked_before() {
    let stores = stores().await;
    let mut replicas = Vec::new();
    for _ in 0..2 {
        replicas.push(RateLimiter::new(connect().await, stores.keys.clone()));
    }
    let limit = Limit::per_second(5).burst(3);

    for _ in 0..5 {
        let asked = join_all((0..30).map(|n| replicas[n % 2].check("a", limit))).await;
        let refused = asked.into_iter().map(Result::unwrap);
        let refused: Vec<_> = refused.filter(|decision| !decision.allowed).collect();
        assert!(refused.len() >= 25, "{} of 30", refused.len());
        let latest = refused.iter().map(|decision| decision.retry_after).max();
        assert!(latest.unwrap() <= Duration::from_millis(200));
        tokio::time::sleep(latest.unwrap()).await;
        let again = replicas[0].check("a", limit).await.unwrap();
        assert!(again.allowed, "{again:?} after {latest:?}");
    }
}

#[tokio::test]
async fn each_tier_counts_for_itself() {
    let stores = stores().await;
    let limiter = RateLimiter::new(stores.redis.clone(), stores.keys.clone());
    let (free, paid) = (
        Limit::per_minute(1).tier("free"),
        Limit::per_minute(3).tier("paid"),
    );

    assert!(limiter.check("alice", free).await.unwrap().allowed);
    assert!(!limiter.check("alice", free).await.unwrap().allowed);
    let decision = limiter.check("alice", paid).await.unwrap();

    assert!(decision.allowed);
    assert_eq!((decision.tier, decision.remaining), ("paid", 2));
    assert_eq!(decision.window, Duration::from_secs(60));
}

#[tokio::test]
async fn a_clock_that_went_back_denies_nobody_for_longer_than_a_full_burst() {
    let stores = stores().await;
    let limiter = RateLimiter::new(stores.redis.clone(), stores.keys.clone());
    let limit = Limit::per_minute(5).tier("login");
    // An arrival time in the year 2100, in microseconds.
    let key = stores.keys.rate("login:a");
    stores.write(&key, "4102444800000000").await;

    let refused = limiter.check("a", limit).await.unwrap();

    assert!(!refused.allowed);
    assert!(refused.retry_after <= Duration::from_secs(12));
    assert_eq!(refused.remaining, 0);
    assert!(refused.reset <= Duration::from_secs(60));
}

#[tokio::test]
async fn limits_that_are_asked_together_count_each_for_itself() {
    let stores = stores().await;
    let limiter = RateLimiter::new(stores.redis.clone(), stores.keys.clone());
    let wide = Limit::per_minute(5).tier("address");
    let narrow = Limit::per_minute(2).tier("write");

    let mut told = Vec::new();
    for _ in 0..3 {
        let asks = [("203.0.113.7", wide), ("alice", narrow)];
        for decision in limiter.check_each(&asks).await {
            let decision = decision.unwrap();
            told.push((decision.tier, decision.allowed, decision.remaining));
        }
    }

    assert_eq!(
        told,
        [
            ("address", true, 4),
            ("write", true, 1),
            ("address", true, 3),
            ("write", true, 0),
            ("address", true, 2),
            ("write", false, 0),
        ]
    );
}

#[tokio::test]
async fn a_frozen_redis_makes_few_wait_and_is_found_again() {
    let server = RedisServer::start(&[]).await;
    let limiter = RateLimiter::new(server.pool().await, bare());
    let limit = Limit::per_second(1_000_000);
    let patience = Duration::from_millis(100);
    let asked = limiter.check_within(patience, &[("a", limit)]).await;
    assert_eq!(asked.len(), 1);

    server.signal("STOP");
    let (began, mut count) = (Instant::now(), 0);
    while count < 2_000 {
        assert!(
            limiter
                .check_within(patience, &[("a", limit)])
                .await
                .is_empty()
        );
        count += 1;
    }
    assert!(
        began.elapsed() < patience * count / 10,
        "{count} requests took {:?}",
        began.elapsed()
    );

    server.signal("CONT");
    until("the limit is kept again", async || {
        !limiter
            .check_within(patience, &[("a", limit)])
            .await
            .is_empty()
    })
    .await;
}

#[tokio::test]
async fn requests_that_come_together_share_a_message_and_each_has_an_answer_of_its_own() {
    let server = RedisServer::start(&[]).await;
    let pool = server.pool().await;
    let limiter = RateLimiter::new(pool.clone(), bare());
    let limit = Limit::per(300, Duration::from_secs(3600)).tier("read");
    let other = Limit::per(10, Duration::from_secs(3600)).tier("write");
    limiter.check("warm", limit).await.unwrap();
    let runs = async || -> u64 {
        let told: String = pool
            .next()
            .info(Some(InfoKind::CommandStats))
            .await
            .unwrap();
        let line = told
            .lines()
            .find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.and_then(|line| line.split(',').next()?.parse().ok())
            .unwrap()
    };
    let before = runs().await;

    let one = |number: usize| {
        let limiter = &limiter;
        async move {
            let asks = [("alice", limit), ("bob", other)];
            limiter
                .check_each(&asks[..1 + usize::from(number.is_multiple_of(10))])
                .await
        }
    };
    let answers: Vec<_> = join_all((0..400).map(one)).await;

    let of = |tier: &'static str| {
        let all = answers
            .iter()
            .flatten()
            .map(|answer| answer.as_ref().unwrap());
        all.copied()
            .filter(move |decision| decision.tier == tier)
            .collect::<Vec<_>>()
    };
    for (tier, burst) in [("read", 300), ("write", 10)] {
        let (passed, refused): (Vec<Decision>, Vec<Decision>) =
            of(tier).into_iter().partition(|one| one.allowed);
        let mut left: Vec<u32> = passed.iter().map(|one| one.remaining).collect();
        left.sort_unstable();
        assert_eq!(left, (0..burst).collect::<Vec<_>>(), "{tier}");
        assert!(
            refused
                .iter()
                .all(|one| one.remaining == 0 && one.retry_after > Duration::ZERO)
        );
    }
    let runs = runs().await - before;
    assert!(runs <= 20, "{runs} runs of the script for 400 requests");
}

#[tokio::test]
async fn one_who_leaves_takes_no_answer_from_those_who_asked_with_him() {
    let stores = stores().await;
    let limiter = RateLimiter::new(stores.redis.clone(), stores.keys.clone());
    let limit = Limit::per(100, Duration::from_secs(3600));

    for _ in 0..20 {
        // Who begins the message leaves before it is sent.
        let mut first = Box::pin(limiter.check("a", limit));
        assert!(futures::poll!(&mut first).is_pending());
        let others = join_all((0..3).map(|_| limiter.check("b", limit.burst(1000))));
        let mut others = Box::pin(others);
        assert!(futures::poll!(&mut others).is_pending());
        drop(first);

        for decision in others.await {
            assert!(decision.unwrap().allowed);
        }
    }
    assert_eq!(limiter.check("a", limit).await.unwrap().remaining, 99);
}
