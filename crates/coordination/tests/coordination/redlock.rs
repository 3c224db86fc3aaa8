//! Redlock: one holder, a minority of masters away borne, a majority named, a lock nobody received released.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coordination::redlock::{Answer, SHORTEST_TTL};
use coordination::{Held, LockError, Redlock};
use fred::interfaces::ClientLike;
use fred::types::CustomCommand;
use futures::future::join_all;
use sqlx::PgPool;

use crate::servers::{RedisServer, free_port};
use crate::stores::{redis_url, stores, until};

fn redlock() -> Redlock {
    Redlock::new(vec![redis_url()], SHORTEST_TTL).unwrap()
}

#[tokio::test]
async fn one_of_many_has_the_lock_until_it_is_released_or_dropped() {
    let key = stores().await.keys.key("lock");
    let contenders: Vec<Redlock> = (0..8).map(|_| redlock()).collect();

    let tries = join_all(contenders.iter().map(|contender| contender.lock(&key))).await;
    let mut won: Vec<_> = tries.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(won.len(), 1);
    won.remove(0).release().await;

    let second = contenders[0].lock(&key).await.unwrap();
    assert!(second.is_some());
    drop(second);
    until("the dropped lock is free", async || {
        contenders[1].lock(&key).await.unwrap().is_some()
    })
    .await;
}

#[tokio::test]
async fn a_lock_nobody_received_is_released() {
    let key = stores().await.keys.key("lock");
    let redlock = redlock();
    redlock.lock(&key).await.unwrap().unwrap().release().await;

    for microseconds in [1, 50, 200, 500, 1000] {
        let _ = tokio::time::timeout(Duration::from_micros(microseconds), redlock.lock(&key)).await;
    }

    until("nobody holds the lock", async || {
        redlock.lock(&key).await.unwrap().is_some()
    })
    .await;
}

#[tokio::test]
async fn the_holder_is_told_when_the_lock_is_gone() {
    let stores = stores().await;
    let key = stores.keys.key("lock");
    let held = redlock().lock(&key).await.unwrap().unwrap();

    stores.delete(&key).await;

    told(&held).await;
}

/// Waits until a holder is told that its lock is lost.
async fn told(held: &Held) {
    let lost = held.lost();
    until("the holder is told", async || lost.is_cancelled()).await;
}

/// Three masters of a test's own, and locks on them.
async fn three(settings: &[&str]) -> (Vec<RedisServer>, Redlock) {
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(RedisServer::start(settings).await);
    }
    let redlock = on(servers.iter().map(RedisServer::url));
    (servers, redlock)
}

fn on(urls: impl Iterator<Item = String>) -> Redlock {
    Redlock::new(urls.collect(), SHORTEST_TTL).unwrap()
}

#[tokio::test]
async fn a_holder_is_told_before_any_master_gives_its_lock_to_another() {
    let (servers, redlock) = three(&[]).await;
    let held = redlock.lock("job").await.unwrap().unwrap();
    let third = servers[2].pool().await;

    // One master lost its data, one is frozen: no quorum renews, and the third still has the lock.
    servers[0].run(&["FLUSHALL"]);
    servers[1].signal("STOP");

    until("the third gives it up", async || {
        let exists = CustomCommand::new_static("EXISTS", None::<u16>, false);
        let exists: i64 = third.custom(exists, vec!["job"]).await.unwrap();
        let told = held.remaining().is_zero();
        exists == 0 && {
            assert!(
                told,
                "the lock was free on a master while its holder believed in it"
            );
            true
        }
    })
    .await;
}

#[tokio::test]
async fn renewals_that_a_frozen_master_did_not_answer_are_repeated_once_it_goes_on() {
    let server = RedisServer::start(&[]).await;
    let redlock = on(std::iter::once(server.url()));
    let held = redlock.lock("job").await.unwrap().unwrap();

    server.signal("STOP");
    // The first renewal was due a while ago.
    let late = SHORTEST_TTL * 2 / 3 - Duration::from_millis(1200);
    until("renewals failed", async || held.remaining() < late).await;
    assert!(!held.lost().is_cancelled());
    server.signal("CONT");

    until("it was renewed", async || {
        held.remaining() > SHORTEST_TTL * 2 / 3
    })
    .await;
    assert!(!held.lost().is_cancelled());
}

fn answers(refused: LockError) -> Vec<Answer> {
    let LockError::QuorumLost { answers } = refused else {
        panic!("{refused}");
    };
    answers.into_iter().map(|said| said.answer).collect()
}

#[tokio::test]
async fn with_one_of_three_masters_down_it_works_and_with_two_down_it_names_each() {
    let (mut servers, redlock) = three(&[]).await;
    let other = on(servers.iter().map(RedisServer::url));

    servers[0].kill();
    let held = redlock.lock("job").await.unwrap().unwrap();
    assert!(other.lock("job").await.unwrap().is_none());
    assert!(held.remaining() > SHORTEST_TTL / 2);

    servers[1].kill();
    let refused = other.lock("job").await.unwrap_err();
    let [a, b, c] = [0, 1, 2].map(|index| servers[index].port);
    assert_eq!(
        refused.to_string(),
        format!(
            "no quorum of the lock masters: 127.0.0.1:{a} refused, 127.0.0.1:{b} refused, 127.0.0.1:{c} held by another"
        )
    );
    told(&held).await;
    assert_eq!(held.remaining(), Duration::ZERO);
}

#[tokio::test]
async fn a_frozen_minority_is_borne_and_a_frozen_majority_is_told() {
    let (servers, redlock) = three(&[]).await;
    redlock.lock("job").await.unwrap().unwrap().release().await;

    servers[0].signal("STOP");
    let held = redlock.lock("job").await.unwrap().unwrap();
    assert!(!held.remaining().is_zero());
    held.release().await;

    servers[1].signal("STOP");
    let fresh = on(servers.iter().map(RedisServer::url));
    let refused = answers(fresh.lock("job").await.unwrap_err());
    assert_eq!(refused, [Answer::TimedOut, Answer::TimedOut, Answer::Free]);

    for server in &servers[..2] {
        server.signal("CONT");
    }
    until("all serve again", async || {
        fresh.lock("job").await.is_ok_and(|lock| lock.is_some())
    })
    .await;
}

#[tokio::test]
async fn a_master_that_answers_but_does_not_serve_says_why_and_no_password_is_told() {
    let (servers, _) = three(&[
        "--requirepass",
        "secret",
        "--user",
        "reader",
        "on",
        ">hidden",
        "+@read",
        "+@connection",
        "~*",
    ])
    .await;
    let master = RedisServer::start(&[]).await;
    let port = master.port.to_string();
    let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &port]).await;
    let with =
        |index: usize, login: &str| format!("redis://{login}127.0.0.1:{}", servers[index].port);

    let right = on((0..3).map(|index| with(index, ":secret@")));
    right.lock("job").await.unwrap().unwrap().release().await;

    let none = on([
        with(0, ""),
        with(1, ":wrong@"),
        with(2, "reader:hidden@"),
        replica.url(),
    ]
    .into_iter());
    let refused = none.lock("job").await.unwrap_err();
    let told = refused.to_string();
    assert!(
        !told.contains("wrong") && !told.contains("hidden"),
        "{told}"
    );
    let rejected = |code: &str| Answer::Rejected(code.to_owned());
    assert_eq!(
        answers(refused),
        ["NOAUTH", "WRONGPASS", "NOPERM", "READONLY"].map(rejected)
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn each_holder_has_a_higher_token_and_the_late_one_writes_nothing(db: PgPool) {
    let (servers, redlock) = three(&[]).await;
    let (first, late) = redlock.lock_fenced("job", &db).await.unwrap().unwrap();
    late.begin(&db).await.unwrap().commit().await.unwrap();

    // All masters lose the lock while the first holder still believes in it.
    for server in &servers {
        server.run(&["FLUSHALL"]);
    }
    let other = on(servers.iter().map(RedisServer::url));
    let (_second, guard) = other.lock_fenced("job", &db).await.unwrap().unwrap();

    assert!(guard.fence > late.fence);
    assert!(late.begin(&db).await.unwrap_err().is_fenced());
    assert!(guard.begin(&db).await.is_ok());
    told(&first).await;
}

/// Waits until so many wait for the row of a token.
async fn waiting(db: &PgPool, count: i64) {
    let query = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'
        and datname = current_database() and query like '%lease::step_fence%'";
    until("the token is waited for", async || {
        let waiting: i64 = sqlx::query_scalar(query).fetch_one(db).await.unwrap();
        waiting == count
    })
    .await;
}

async fn highest(db: &PgPool) -> i64 {
    let query = "select token from coordination.fences where key = 'redlock:job'";
    sqlx::query_scalar(query).fetch_one(db).await.unwrap()
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_holder_that_comes_for_its_token_after_its_successor_gets_none(db: PgPool) {
    let (servers, redlock) = three(&[]).await;
    let (first, _) = redlock.lock_fenced("job", &db).await.unwrap().unwrap();
    first.release().await;

    // Between the lock and the token: the row is in other hands.
    let mut successor = db.begin().await.unwrap();
    let step = "update coordination.fences set token = token + 1 where key = 'redlock:job'";
    sqlx::query(step).execute(&mut *successor).await.unwrap();
    let late = redlock.lock_fenced("job", &db);
    let meanwhile = async {
        waiting(&db, 1).await;
        for server in &servers {
            server.run(&["FLUSHALL"]);
        }
        let other = on(servers.iter().map(RedisServer::url));
        let held = other.lock("job").await.unwrap().unwrap();
        successor.commit().await.unwrap();
        held
    };
    let (late, held) = tokio::join!(late, meanwhile);

    assert!(late.unwrap().is_none());
    assert_eq!(
        highest(&db).await,
        2,
        "the successor's token is the highest"
    );
    assert!(!held.remaining().is_zero());
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_holder_whose_predecessor_takes_a_token_late_takes_a_higher_one(db: PgPool) {
    let (servers, redlock) = three(&[]).await;
    let (first, _) = redlock.lock_fenced("job", &db).await.unwrap().unwrap();
    first.release().await;

    let mut row = db.begin().await.unwrap();
    let query = "select from coordination.fences where key = 'redlock:job' for update";
    sqlx::query(query).execute(&mut *row).await.unwrap();
    let late = redlock.lock_fenced("job", &db);
    let other = on(servers.iter().map(RedisServer::url));
    let successor = async {
        waiting(&db, 1).await;
        for server in &servers {
            server.run(&["FLUSHALL"]);
        }
        other.lock_fenced("job", &db).await
    };
    let release = async {
        waiting(&db, 2).await;
        row.rollback().await.unwrap();
    };
    let (late, successor, ()) = tokio::join!(late, successor, release);

    let (_, guard) = successor.unwrap().unwrap();
    assert_eq!(guard.fence.0, highest(&db).await);
    if let Ok(Some((_, late))) = late {
        assert!(late.fence < guard.fence);
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn without_a_token_there_is_no_lock(db: PgPool) {
    let key = stores().await.keys.key("lock");
    let redlock = redlock();
    let closed = PgPool::connect_lazy_with((*db.connect_options()).clone());
    closed.close().await;

    let refused = redlock.lock_fenced(&key, &closed).await.unwrap_err();

    assert!(matches!(refused, LockError::Fence(_)), "{refused}");
    until("the lock was given back", async || {
        redlock.lock(&key).await.unwrap().is_some()
    })
    .await;
}

/// A certificate for 127.0.0.1 that signs itself, and its key.
fn certificate(folder: &Path) -> (String, String) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (path("certificate.pem"), path("key.pem"));
    let made = Command::new("openssl")
        .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(' '))
        .args("-subj /CN=master -addext subjectAltName=IP:127.0.0.1".split(' '))
        .args("-addext basicConstraints=critical,CA:FALSE".split(' '))
        .args(["-keyout", &key, "-out", &certificate])
        .output();
    assert!(made.unwrap().status.success());
    (certificate, key)
}

#[tokio::test]
async fn a_master_behind_tls_is_used_where_its_certificate_is_trusted_and_only_there() {
    let folder = std::env::temp_dir().join(format!("tls-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&folder).unwrap();
    let (certificate, key) = certificate(&folder);
    let port = free_port();
    let settings = [
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &certificate,
        "--tls-auth-clients",
        "no",
    ];
    let _server = RedisServer::start(&settings).await;
    let url = format!("rediss://127.0.0.1:{port}");

    let stranger = on(std::iter::once(url.clone()));
    let refused = stranger.lock("job").await.unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");

    let named = format!("{url}?sslrootcert={certificate}");
    let trusting = on(std::iter::once(named));
    trusting.lock("job").await.unwrap().unwrap().release().await;

    // The environment names trusted certificates for a whole process.
    let locked = Command::new(std::env::current_exe().unwrap())
        .args([
            "redlock::a_lock_is_taken_behind_tls",
            "--exact",
            "--ignored",
        ])
        .env("SSL_CERT_FILE", &certificate)
        .env("TLS_MASTER", &url)
        .output()
        .unwrap();
    assert!(
        locked.status.success(),
        "{}",
        String::from_utf8_lossy(&locked.stdout)
    );
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
#[ignore = "the other half of the test before it"]
async fn a_lock_is_taken_behind_tls() {
    let redlock = on(std::iter::once(std::env::var("TLS_MASTER").unwrap()));

    let held = redlock.lock("job").await.unwrap().unwrap();

    held.release().await;
    assert!(redlock.lock("job").await.unwrap().is_some());
}
