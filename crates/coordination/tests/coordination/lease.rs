//! Leases: one holder, who is told of the loss; tokens that only grow; many for the price of one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use coordination::{Fence, Lease, Leases, Store};
use fred::clients::Pool;
use fred::interfaces::ClientLike;
use fred::types::CustomCommand;
use fred::types::scripts::Script;
use futures::future::join_all;
use sqlx::PgPool;

use crate::proxy::Proxy;
use crate::servers::{RedisServer, bare, pool};
use crate::stores::{Stores, stores, until};

const TTL: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_secs(1);

fn leases(stores: &Stores, db: &PgPool) -> Leases {
    Leases::new(stores.redis.clone(), db.clone(), stores.keys.clone())
}

#[sqlx::test(migrations = "../../migrations")]
async fn of_many_one_gets_the_lease_and_the_next_a_higher_token(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);

    let tries = join_all((0..20).map(|_| leases.acquire("a", TTL))).await;
    let mut won: Vec<_> = tries.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(won.len(), 1);
    let first = won.remove(0);
    let token = first.token();
    assert!(first.release().await.unwrap());

    let second = leases.acquire("a", TTL).await.unwrap().unwrap();
    assert!(second.token() > token);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_lease_outlives_its_time_to_live_and_ends_when_dropped(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let lease = leases.acquire("a", SHORT).await.unwrap().unwrap();

    let longer = tokio::time::timeout(SHORT * 4, lease.lost().cancelled_owned()).await;
    assert!(longer.is_err(), "renewed, it is not lost");
    assert!(leases.acquire("a", SHORT).await.unwrap().is_none());

    drop(lease);
    until("the dropped lease is free", async || {
        leases.acquire("a", SHORT).await.unwrap().is_some()
    })
    .await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_holder_whose_lease_is_gone_is_told_and_releases_nothing_of_its_successor(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let first = leases.acquire("a", SHORT).await.unwrap().unwrap();

    stores.lose_everything().await;
    let second = leases.acquire("a", TTL).await.unwrap().unwrap();
    told(&first).await;

    assert!(second.token() > first.token());
    assert!(!first.release().await.unwrap());
    assert!(leases.acquire("a", TTL).await.unwrap().is_none());
}

#[sqlx::test(migrations = "../../migrations")]
async fn tokens_grow_over_a_redis_that_lost_its_data_or_went_back_in_time(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let mut last = Fence(0);
    for round in 0..6 {
        let lease = leases.acquire("a", TTL).await.unwrap().unwrap();
        assert!(lease.token() > last, "round {round}");
        last = lease.token();
        lease.release().await.unwrap();
        if round % 2 == 0 {
            stores.lose_everything().await;
        } else {
            // A token the database knows and Redis has forgotten.
            last = Fence(last.0 + 10);
            let update = sqlx::query("update coordination.fences set token = $1 where key = 'a'");
            update.bind(last.0).execute(&db).await.unwrap();
        }
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn many_leases_are_taken_renewed_and_given_back_together(db: PgPool) {
    let server = RedisServer::start(&[]).await;
    let redis = server.pool().await;
    let leases = Leases::new(redis.clone(), db.clone(), bare());
    let names: Vec<String> = (0..600).map(|n| format!("device-{n}")).collect();
    let single = leases.acquire(&names[7], TTL).await.unwrap().unwrap();

    let ttl = Duration::from_secs(3);
    let held = leases.acquire_many(&names, ttl).await.unwrap();
    let mine: Vec<&Lease> = held.iter().flatten().collect();
    assert_eq!(mine.len(), 599);
    assert!(held[7].is_none() && held[8].as_ref().unwrap().name() == names[8]);

    // Renewed beyond the time to live, with other holders coming and going beside them.
    let before = renewals(&redis).await;
    tokio::time::timeout(ttl * 2, async {
        let mut round = 0;
        loop {
            round += 1;
            let name = format!("passing-{round}");
            let passing = leases.acquire(&name, TTL).await.unwrap().unwrap();
            passing.release().await.unwrap();
        }
    })
    .await
    .unwrap_err();
    assert!(mine.iter().all(|lease| !lease.lost().is_cancelled()));
    assert!(mine.iter().all(|lease| lease.remaining() > Duration::ZERO));
    let others = leases.acquire_many(&names, TTL).await.unwrap();
    assert!(others.iter().all(Option::is_none));
    let each = (renewals(&redis).await - before) / 599;
    assert!((4..=12).contains(&each), "{each} renewals each");

    drop(held);
    assert!(single.release().await.unwrap());
    until("all are free", async || {
        let again = leases.acquire_many(&names, TTL).await.unwrap();
        again.iter().all(Option::is_some)
    })
    .await;
}

/// How often Redis has set a new time to live: what renewals do.
async fn renewals(redis: &Pool) -> u64 {
    let info = CustomCommand::new_static("INFO", None::<u16>, false);
    let words = vec!["commandstats".to_owned()];
    let text: String = redis.custom(info, words).await.unwrap();
    let calls = text
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_pexpire:calls="));
    calls
        .and_then(|rest| rest.split(',').next()?.parse().ok())
        .unwrap_or_default()
}

#[sqlx::test(migrations = "../../migrations")]
async fn of_many_leases_only_the_one_that_is_gone_is_lost(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let held = leases.acquire_many(&["a", "b", "c"], SHORT).await.unwrap();
    let held: Vec<Lease> = held.into_iter().flatten().collect();

    stores.delete(&stores.keys.lease("b")).await;
    told(&held[1]).await;

    assert_eq!(held[1].remaining(), Duration::ZERO);
    let longer = tokio::time::timeout(SHORT * 3, held[0].lost().cancelled_owned()).await;
    assert!(longer.is_err() && !held[2].lost().is_cancelled());
}

#[sqlx::test(migrations = "../../migrations")]
async fn leases_come_back_with_higher_tokens_after_redis_lost_thousands(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);
    let names: Vec<String> = (0..2000).map(|n| format!("device-{n}")).collect();
    let first = leases.acquire_many(&names, TTL).await.unwrap();

    stores.lose_everything().await;
    let second = leases.acquire_many(&names, TTL).await.unwrap();

    assert!(first.iter().zip(&second).all(|(first, second)| {
        second.as_ref().unwrap().token() > first.as_ref().unwrap().token()
    }));
}

#[sqlx::test(migrations = "../../migrations")]
async fn releasing_a_lease_that_ran_out_returns_at_once(db: PgPool) {
    let (cut, stores) = (stores().await, stores().await);
    let cut_off = Leases::new(cut.redis.clone(), db.clone(), stores.keys.clone());
    let lease = cut_off.acquire("a", SHORT).await.unwrap().unwrap();
    cut.redis.quit().await.unwrap();
    told(&lease).await;

    let started = std::time::Instant::now();
    assert!(!lease.release().await.unwrap());

    // A command to the client that was closed would have waited for its deadline of 5 s.
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_holder_that_cannot_reach_redis_is_told_and_the_next_one_waits_for_the_end_of_the_lease(
    db: PgPool,
) {
    let (cut, stores) = (stores().await, stores().await);
    let cut_off = Leases::new(cut.redis.clone(), db.clone(), stores.keys.clone());
    let lease = cut_off.acquire("a", SHORT * 4).await.unwrap().unwrap();
    cut.redis.quit().await.unwrap();

    let leases = leases(&stores, &db);
    assert!(leases.acquire("a", TTL).await.unwrap().is_none());
    until("the lease has run out", async || {
        let free = !stores.exists(&stores.keys.lease("a")).await;
        assert!(
            !free || lease.remaining().is_zero(),
            "free, and still believed in"
        );
        free
    })
    .await;

    told(&lease).await;
    assert!(leases.acquire("a", TTL).await.unwrap().is_some());
}

/// Waits until a holder is told that its lease is lost.
async fn told(lease: &Lease) {
    let lost = lease.lost();
    until("the holder is told", async || lost.is_cancelled()).await;
}

/// The digest by which Redis knows a script.
fn digest(script: &str) -> String {
    Script::from_lua(script).sha1().to_string()
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_request_that_arrives_after_its_caller_gave_up_takes_nothing(db: PgPool) {
    let server = RedisServer::start(&[]).await;
    let acquire = digest(include_str!("../../src/lease/acquire.lua"));
    let direct = Leases::new(server.pool().await, db.clone(), bare());
    direct.acquire("warm", TTL).await.unwrap().unwrap();
    let proxy = Proxy::start(server.port, &acquire).await;
    let redis = pool(&format!("redis://127.0.0.1:{}", proxy.port), 2).await;
    let leases = Leases::new(redis, db.clone(), bare());

    // Longer than the test: what it takes too late would not be free again in time.
    tokio::select! {
        lease = leases.acquire("a", TTL * 6) => panic!("{lease:?}"),
        () = until("its request is held up", async || proxy.holds.load(Ordering::SeqCst)) => {}
    }
    let looking = server.pool().await;
    until("it was taken back", async || {
        let keys = CustomCommand::new_static("KEYS", None::<u16>, false);
        let known: Vec<String> = looking
            .custom(keys, vec!["lease:{a}:gone:*"])
            .await
            .unwrap();
        known.len() == 1
    })
    .await;
    proxy.let_go();
    until("the request has arrived", async || {
        proxy.answered.load(Ordering::SeqCst)
    })
    .await;

    assert!(direct.acquire("a", TTL).await.unwrap().is_some());
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_renewal_that_is_not_answered_is_sent_again_over_another_connection(db: PgPool) {
    let server = RedisServer::start(&[]).await;
    let renew = digest(include_str!("../../src/lease/renew.lua"));
    let proxy = Proxy::start(server.port, &renew).await;
    let redis = pool(&format!("redis://127.0.0.1:{}", proxy.port), 2).await;
    let leases = Leases::new(redis.clone(), db.clone(), bare());
    let ttl = Duration::from_secs(3);
    let lease = leases.acquire("a", ttl).await.unwrap().unwrap();

    until("a renewal is held up", async || {
        proxy.holds.load(Ordering::SeqCst)
    })
    .await;
    // What others send meanwhile must not bring it back to the same connection.
    redis.next();
    until("it was renewed all the same", async || {
        lease.remaining() > ttl * 2 / 3
    })
    .await;

    assert!(!lease.lost().is_cancelled());
}

#[sqlx::test(migrations = "../../migrations")]
async fn an_acquisition_that_nobody_waits_for_leaves_nothing_behind(db: PgPool) {
    let stores = stores().await;
    let leases = leases(&stores, &db);

    for microseconds in [1, 100, 300, 600, 1000, 2000] {
        let _ = tokio::time::timeout(
            Duration::from_micros(microseconds),
            leases.acquire("a", TTL),
        )
        .await;
    }

    until("the lease is free", async || {
        leases.acquire("a", TTL).await.unwrap().is_some()
    })
    .await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn without_the_database_there_is_no_lease_and_the_error_says_so(db: PgPool) {
    let stores = stores().await;
    let healthy = leases(&stores, &db);
    let closed = sqlx::PgPool::connect_lazy_with((*db.connect_options()).clone());
    closed.close().await;

    let error = leases(&stores, &closed)
        .acquire("a", TTL)
        .await
        .unwrap_err();

    assert!(
        error.is_unreachable() && error.store() == Store::PostgreSql,
        "{error}"
    );
    until("the lease is free", async || {
        healthy.acquire("a", TTL).await.unwrap().is_some()
    })
    .await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_runtime_that_ends_while_leases_are_held_ends_and_the_leases_expire(db: PgPool) {
    let stores = stores().await;
    let options = (*db.connect_options()).clone();
    let keys = stores.keys.clone();
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (lost, mut holder) = runtime.block_on(async {
            let redis = crate::stores::stores().await.redis;
            let db = PgPool::connect_with(options).await.unwrap();
            let leases = Leases::new(redis, db, keys);
            let lease = leases.acquire("a", TTL / 5).await.unwrap().unwrap();
            let lost = lease.lost();
            let mut holder = tokio::task::JoinSet::new();
            holder.spawn(async move {
                let _held = lease;
                std::future::pending::<()>().await;
            });
            (lost, holder)
        });
        // The lease is dropped by the runtime that would give it back.
        holder.detach_all();
        drop(runtime);
        let _ = done.send(lost.is_cancelled());
    });

    let told = tokio::time::timeout(TTL, ended).await;
    assert!(told.expect("the runtime ends").unwrap(), "nobody renews it");
    let leases = leases(&stores, &db);
    until("the lease has expired", async || {
        leases.acquire("a", TTL).await.unwrap().is_some()
    })
    .await;
}
