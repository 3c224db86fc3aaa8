//! A session that was ended is refused at every door within a second, without a question to Redis for each request.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cluster_tests::{GATEWAY, PATIENCE, all_instances, call, register};
use futures::future::join_all;
use reqwest::{Client, Method, StatusCode};
use testkit::{Cluster, RedisServers, eventually, fresh};

/// How long a session may be believed after its end was answered, however slow the machine is.
const A_SECOND: Duration = Duration::from_secs(1);
const WORD: &str = "x-cloudphone-identity";

async fn me(client: &Client, address: &str, token: &str) -> anyhow::Result<StatusCode> {
    let request = client.get(format!("http://{address}/api/auth/me"));
    Ok(request.bearer_auth(token).send().await?.status())
}

async fn log_out(address: &str, token: &str) -> anyhow::Result<StatusCode> {
    let request = fresh().post(format!("http://{address}/api/auth/logout"));
    Ok(request.bearer_auth(token).send().await?.status())
}

#[tokio::test]
async fn a_session_ended_through_one_door_is_refused_at_every_other_within_a_second()
-> anyhow::Result<()> {
    let cluster = Cluster::builder(3).env("SANDBOX", "false").start().await?;
    let doors = all_instances(&cluster, "gateway", 3).await;
    let tokens = {
        let mut tokens = Vec::new();
        for number in 0..3 {
            tokens.push(register(&cluster, &format!("leaving{number}")).await?);
        }
        tokens
    };
    let stays = register(&cluster, "staying").await?;

    for (number, token) in tokens.iter().enumerate() {
        let client = Client::new();
        let (ended, stop) = (std::sync::OnceLock::new(), AtomicBool::new(false));
        let (let_in, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let ask = async |door: &String| {
            while !stop.load(Ordering::SeqCst) {
                let asked = Instant::now();
                let status = me(&client, door, token).await.expect("the door answers");
                let since = ended.get().map(|at: &Instant| asked.duration_since(*at));
                match status {
                    StatusCode::OK => {
                        assert!(
                            since.is_none_or(|since| since < A_SECOND),
                            "{door} believes a session that ended {since:?} before it was asked"
                        );
                        let_in.fetch_add(1, Ordering::SeqCst);
                    }
                    StatusCode::UNAUTHORIZED => {
                        refused.fetch_add(1, Ordering::SeqCst);
                    }
                    other => panic!("{door} answered {other}"),
                }
            }
        };
        let asking = join_all((0..6).map(|n| ask(&doors[n % doors.len()])));
        let ending = async {
            eventually(PATIENCE * 2, "the doors let the session in", async || {
                anyhow::ensure!(let_in.load(Ordering::SeqCst) > 50);
                Ok(())
            })
            .await;
            let status = log_out(&doors[number % doors.len()], token).await.unwrap();
            assert_eq!(status, StatusCode::OK);
            ended.set(Instant::now()).unwrap();
            eventually(PATIENCE * 2, "the doors refuse hundreds", async || {
                let is_over = ended.get().is_some_and(|at| at.elapsed() > A_SECOND * 2);
                anyhow::ensure!(is_over && refused.load(Ordering::SeqCst) > 200);
                Ok(())
            })
            .await;
            stop.store(true, Ordering::SeqCst);
        };
        tokio::join!(asking, ending);
    }
    for door in &doors {
        assert_eq!(me(&fresh(), door, &stays).await?, StatusCode::OK);
    }
    Ok(())
}

#[tokio::test]
async fn a_word_that_no_gateway_gave_opens_nothing_anywhere() -> anyhow::Result<()> {
    let cluster = Cluster::builder(1).env("SANDBOX", "false").start().await?;
    let users = all_instances(&cluster, "users", 1).await.remove(0);
    let token = register(&cluster, "honest").await?;
    let forged = "1790000000.eyJzdWIiOiJhZG1pbiJ9.00000000000000000000000000000000";

    for url in [
        cluster.url(GATEWAY, "/api/auth/me"),
        format!("http://{users}/auth/me"),
    ] {
        let ask = || fresh().get(&url).header(WORD, forged);
        assert_eq!(ask().send().await?.status(), StatusCode::UNAUTHORIZED);
        let with_token = ask().bearer_auth(&token).send().await?;
        assert_eq!(with_token.status(), StatusCode::OK);
        assert!(with_token.text().await?.contains("honest"));
    }
    Ok(())
}

#[tokio::test]
async fn without_redis_known_and_unknown_callers_are_told_apart_as_ever() -> anyhow::Result<()> {
    let redis = RedisServers::start(1, &[]).await?;
    let cluster = Cluster::builder(2)
        .env("SANDBOX", "false")
        .env("RATE_LIMITS", "true")
        .redis(redis.server(0).url())
        .start()
        .await?;
    let doors = all_instances(&cluster, "gateway", 2).await;
    let [known, unknown, leaving] = [
        register(&cluster, "known").await?,
        register(&cluster, "unknown").await?,
        register(&cluster, "leaving").await?,
    ];
    for door in &doors {
        assert_eq!(me(&fresh(), door, &known).await?, StatusCode::OK);
    }
    assert_eq!(log_out(&doors[0], &leaving).await?, StatusCode::OK);

    redis.server(0).stop();

    for door in &doors {
        // More than the limit of a user: nobody can count.
        for _ in 0..150 {
            assert_eq!(me(&fresh(), door, &known).await?, StatusCode::OK);
        }
        assert_eq!(me(&fresh(), door, &unknown).await?, StatusCode::OK);
        assert_eq!(
            me(&fresh(), door, &leaving).await?,
            StatusCode::UNAUTHORIZED
        );
        let forged = format!("{known}x");
        assert_eq!(me(&fresh(), door, &forged).await?, StatusCode::UNAUTHORIZED);
    }
    // Nobody is told that a session has ended where not everybody can be told.
    let refused = log_out(&doors[0], &known).await?;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
    redis.server(0).cont();
    eventually(
        PATIENCE,
        "the session ends once Redis is back",
        async || {
            let status = log_out(&doors[1], &known).await?;
            anyhow::ensure!(status != StatusCode::SERVICE_UNAVAILABLE, "{status}");
            for door in &doors {
                let status = me(&fresh(), door, &known).await?;
                anyhow::ensure!(status == StatusCode::UNAUTHORIZED, "{status}");
            }
            Ok(())
        },
    )
    .await;
    let plans = call(Method::GET, cluster.url(GATEWAY, "/api/plans"), None).await?;
    plans.expect(200);
    Ok(())
}
