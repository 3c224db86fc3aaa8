//! Events come at least once and have their effect once, whatever Redis does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::bail;
use chrono::TimeDelta;
use contracts::{AppId, Event, EventBody, EventId, OrderId, UserId};
use fred::interfaces::KeysInterface;
use platform::Platform;
use platform::events::{Consumer, dead_letter, emit, spawn_consumer, spawn_relay};
use platform::lifecycle::Tasks;
use platform::testing;
use sqlx::{PgConnection, PgPool};

use crate::redis::PrivateRedis;
use crate::support::until;

/// What its handling does with the next events, by how many are left.
#[derive(Clone, Default)]
pub struct Faults {
    pub errors: Arc<AtomicUsize>,
    pub panics: Arc<AtomicUsize>,
    pub committed: Arc<AtomicUsize>,
}

fn one_less(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
        left.checked_sub(1)
    })
    .is_ok()
}

async fn write(
    tx: &mut PgConnection,
    consumer: &str,
    event: &Event,
    faults: &Faults,
) -> anyhow::Result<()> {
    sqlx::query("insert into public.effects values ($1, $2)")
        .bind(consumer)
        .bind(&event.id)
        .execute(tx)
        .await?;
    if one_less(&faults.errors) {
        bail!("not now");
    }
    assert!(!one_less(&faults.panics), "boom");
    Ok(())
}

/// Handles apps.
struct Shelf(Faults);

impl Consumer for Shelf {
    const NAME: &'static str = "tests.shelf";
    const KINDS: &'static [&'static str] = &["app.uploaded"];

    async fn apply(&self, tx: &mut PgConnection, event: &Event) -> anyhow::Result<()> {
        write(tx, Self::NAME, event, &self.0).await
    }

    async fn committed(&self, _: &Event) {
        self.0.committed.fetch_add(1, Ordering::SeqCst);
    }
}

/// Handles apps and orders.
struct Letters(Faults);

impl Consumer for Letters {
    const NAME: &'static str = "tests.letters";
    const KINDS: &'static [&'static str] = &["app.uploaded", "order.created"];

    async fn apply(&self, tx: &mut PgConnection, event: &Event) -> anyhow::Result<()> {
        write(tx, Self::NAME, event, &self.0).await
    }
}

/// Several replicas around one database and one Redis prefix.
struct Replicas {
    all: Vec<Platform>,
    tasks: Tasks,
    faults: Faults,
}

impl Replicas {
    async fn start(db: &PgPool, count: usize) -> Self {
        Self::beside(db, &std::env::var("REDIS_URL").unwrap(), count).await
    }

    async fn beside(db: &PgPool, redis_url: &str, count: usize) -> Self {
        sqlx::query("create table if not exists public.effects (consumer text, event_id text)")
            .execute(db)
            .await
            .unwrap();
        let prefix = format!("test-{}", EventId::new());
        let (mut all, tasks, faults) = (Vec::new(), Tasks::new(), Faults::default());
        for _ in 0..count {
            let platform = testing::beside(db.clone(), redis_url, |settings| {
                settings.key_prefix.clone_from(&prefix)
            })
            .await;
            spawn_consumer(&platform, &tasks, Shelf(faults.clone()))
                .await
                .unwrap();
            spawn_consumer(&platform, &tasks, Letters(Faults::default()))
                .await
                .unwrap();
            spawn_relay(&platform, &tasks);
            all.push(platform);
        }
        Self { all, tasks, faults }
    }

    fn first(&self) -> &Platform {
        &self.all[0]
    }

    /// Lets the time pass after which everything unsettled is due again.
    fn later(&self) {
        for platform in &self.all {
            platform.clock.advance(TimeDelta::seconds(61));
        }
    }

    async fn emit(&self, body: EventBody) -> EventId {
        let event = Event::new(UserId::new(), self.first().clock.now(), body);
        let mut tx = self.first().db.begin().await.unwrap();
        emit(&mut tx, &event).await.unwrap();
        tx.commit().await.unwrap();
        event.id
    }

    /// How often each event had its effect, by consumer.
    async fn effects(&self) -> BTreeMap<(String, String), i64> {
        let rows: Vec<(String, String, i64)> =
            sqlx::query_as("select consumer, event_id, count(*) from public.effects group by 1, 2")
                .fetch_all(&self.first().db)
                .await
                .unwrap();
        rows.into_iter()
            .map(|(consumer, event, count)| ((consumer, event), count))
            .collect()
    }

    async fn count(&self, statement: &'static str) -> i64 {
        sqlx::query_scalar(statement)
            .fetch_one(&self.first().db)
            .await
            .unwrap()
    }

    async fn unsettled(&self) -> i64 {
        self.count("select count(*) from platform.outbox where settled_at is null")
            .await
    }

    /// Waits until every event has settled, letting time pass.
    async fn settle(&self) {
        until("every event is handled and settled", async || {
            self.later();
            self.unsettled().await == 0
        })
        .await;
    }

    /// Expects one effect of each event at each of its consumers.
    async fn expect_once(&self, apps: &[EventId], orders: &[EventId]) {
        let mut wanted = BTreeMap::new();
        for event in apps {
            wanted.insert(("tests.shelf".to_owned(), event.to_string()), 1);
            wanted.insert(("tests.letters".to_owned(), event.to_string()), 1);
        }
        for event in orders {
            wanted.insert(("tests.letters".to_owned(), event.to_string()), 1);
        }
        assert_eq!(self.effects().await, wanted);
    }

    async fn wipe(&self) {
        let stream = self.first().keys.key("events");
        let _: () = self.first().redis.del(stream).await.unwrap();
    }

    async fn stop(self) {
        let left = self.tasks.stop(Duration::from_secs(20)).await;
        assert!(left.is_empty(), "{left:?}");
    }
}

fn app() -> EventBody {
    EventBody::AppUploaded {
        app_id: AppId::new(),
        package_name: "com.example".to_owned(),
        version_code: 1,
    }
}

fn order() -> EventBody {
    EventBody::OrderCreated {
        order_id: OrderId::new(),
        order_no: "1".to_owned(),
        plan_id: "basic".parse().unwrap(),
        amount: contracts::Money::yuan(9),
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn each_event_has_its_effect_once_at_each_consumer_though_it_is_published_again_and_again(
    db: PgPool,
) {
    let replicas = Replicas::start(&db, 3).await;
    let (mut apps, mut orders) = (Vec::new(), Vec::new());

    for _ in 0..40 {
        apps.push(replicas.emit(app()).await);
        orders.push(replicas.emit(order()).await);
        // All that is not settled is due again, while consumers are at it.
        replicas.later();
    }
    replicas.settle().await;

    replicas.expect_once(&apps, &orders).await;
    until("what follows the commit was done", async || {
        replicas.faults.committed.load(Ordering::SeqCst) == 40
    })
    .await;
    replicas.stop().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_error_or_a_panic_brings_the_event_again_and_concerns_nobody_else(db: PgPool) {
    let replicas = Replicas::start(&db, 2).await;
    replicas.faults.errors.store(3, Ordering::SeqCst);
    replicas.faults.panics.store(3, Ordering::SeqCst);

    let (failing, other) = (replicas.emit(app()).await, replicas.emit(order()).await);

    until("the other consumer has both", async || {
        let effects = replicas.effects().await;
        [&failing, &other]
            .iter()
            .all(|event| effects.contains_key(&("tests.letters".to_owned(), event.to_string())))
    })
    .await;
    replicas.settle().await;
    replicas.expect_once(&[failing], &[other]).await;
    assert_eq!(replicas.faults.panics.load(Ordering::SeqCst), 0);
    replicas.stop().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_redis_that_lost_everything_loses_no_event(db: PgPool) {
    let replicas = Replicas::start(&db, 2).await;
    let mut apps = Vec::new();

    for _ in 0..10 {
        apps.push(replicas.emit(app()).await);
        replicas.wipe().await;
    }
    replicas.settle().await;

    replicas.expect_once(&apps, &[]).await;
    replicas.stop().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn connections_that_are_killed_come_back(db: PgPool) {
    let redis = PrivateRedis::start().await;
    let replicas = Replicas::beside(&db, &redis.url(), 2).await;
    let mut apps = vec![replicas.emit(app()).await];
    replicas.settle().await;

    for _ in 0..3 {
        let _ = redis.cli(&["client", "kill", "type", "normal"]).await;
        apps.push(replicas.emit(app()).await);
        replicas.settle().await;
    }

    replicas.expect_once(&apps, &[]).await;
    replicas.stop().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_frozen_redis_delays_and_one_that_restarts_empty_too_but_nothing_is_lost(db: PgPool) {
    let mut redis = PrivateRedis::start().await;
    let replicas = Replicas::beside(&db, &redis.url(), 2).await;
    let mut apps = vec![replicas.emit(app()).await];
    replicas.settle().await;

    redis.freeze();
    apps.push(replicas.emit(app()).await);
    until("publishing was tried and given up", async || {
        replicas
            .count("select count(*) from platform.outbox where settled_at is null and attempts > 0")
            .await
            == 1
    })
    .await;
    redis.thaw();
    replicas.settle().await;

    redis.restart().await;
    apps.push(replicas.emit(app()).await);
    replicas.settle().await;

    replicas.expect_once(&apps, &[]).await;
    // Each replica holds its pool and one connection a consumer; what was replaced is closed.
    until("connections that were replaced are closed", async || {
        let clients = redis.cli(&["client", "list"]).await;
        clients
            .lines()
            .filter(|line| line.starts_with("id="))
            .count()
            <= 2 * (4 + 2) + 1
    })
    .await;
    replicas.stop().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_server_that_was_replaced_behind_a_frozen_one_is_found(db: PgPool) {
    let mut redis = PrivateRedis::start().await;
    let replicas = Replicas::beside(&db, &redis.url(), 1).await;
    let mut apps = vec![replicas.emit(app()).await];
    replicas.settle().await;

    // The old connections stay open and silent for good.
    redis.replace_frozen().await;
    apps.push(replicas.emit(app()).await);
    replicas.settle().await;

    replicas.expect_once(&apps, &[]).await;
    replicas.stop().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_event_that_nobody_subscribed_to_settles_and_is_purged_in_time(db: PgPool) {
    let replicas = Replicas::start(&db, 1).await;
    let platform = replicas.first();

    let app = replicas.emit(app()).await;
    replicas.emit(EventBody::PasswordChanged {}).await;
    replicas.settle().await;

    replicas.expect_once(&[app], &[]).await;
    // The consumers' records go with the events.
    platform.clock.advance(TimeDelta::days(8));
    let purging = Tasks::new();
    spawn_relay(platform, &purging);
    until("settled events are purged", async || {
        replicas.count("select (select count(*) from platform.outbox) + (select count(*) from platform.consumed_events)").await == 0
    })
    .await;
    purging.stop(Duration::from_secs(10)).await;
    replicas.stop().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn who_subscribes_later_is_not_told_of_what_is_settled(db: PgPool) {
    let replicas = Replicas::start(&db, 1).await;
    replicas.emit(order()).await;
    replicas.settle().await;

    struct Late(Faults);
    impl Consumer for Late {
        const NAME: &'static str = "tests.late";
        const KINDS: &'static [&'static str] = &["order.created"];

        async fn apply(&self, tx: &mut PgConnection, event: &Event) -> anyhow::Result<()> {
            write(tx, Self::NAME, event, &self.0).await
        }
    }
    spawn_consumer(replicas.first(), &replicas.tasks, Late(Faults::default()))
        .await
        .unwrap();
    let new = replicas.emit(order()).await;
    replicas.settle().await;

    let late: Vec<String> =
        sqlx::query_scalar("select event_id from public.effects where consumer = 'tests.late'")
            .fetch_all(&db)
            .await
            .unwrap();
    assert_eq!(late, [new.to_string()]);
    replicas.stop().await;
}

impl Replicas {
    /// What was given up: whose, and how often it had failed.
    async fn dead(&self) -> Vec<(String, EventId, i32)> {
        let mut conn = self.first().db.acquire().await.unwrap();
        let slice = platform::http::PageQuery::default().slice();
        let letters = dead_letter::list(&mut conn, None, slice).await.unwrap();
        let letters = letters.into_iter();
        letters
            .map(|letter| (letter.consumer, letter.event_id, letter.failures))
            .collect()
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_event_that_fails_again_and_again_is_set_aside_and_handled_once_when_it_is_replayed(
    db: PgPool,
) {
    let replicas = Replicas::start(&db, 2).await;
    replicas.faults.errors.store(usize::MAX, Ordering::SeqCst);
    let poison = replicas.emit(app()).await;

    // It settles though one of its consumers has not handled it, and others come meanwhile.
    replicas.settle().await;
    let order = replicas.emit(order()).await;
    replicas.settle().await;

    let dead = replicas.dead().await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!((dead[0].0.as_str(), &dead[0].1), ("tests.shelf", &poison));
    assert!(dead[0].2 >= 12, "{dead:?}");
    let letters = |event: &EventId| ("tests.letters".to_owned(), event.to_string());
    let effects = BTreeMap::from([(letters(&poison), 1), (letters(&order), 1)]);
    assert_eq!(replicas.effects().await, effects);
    // It is kept for longer than others, though nobody waits for it.
    for platform in &replicas.all {
        platform.clock.advance(TimeDelta::days(8));
    }
    let purging = Tasks::new();
    spawn_relay(replicas.first(), &purging);
    until("the other one is purged", async || {
        replicas.count("select count(*) from platform.outbox").await == 1
    })
    .await;

    replicas.faults.errors.store(0, Ordering::SeqCst);
    let now = replicas.first().clock.now();
    let mut tx = db.begin().await.unwrap();
    assert!(
        dead_letter::replay(&mut tx, "tests.shelf", &poison, now)
            .await
            .unwrap()
    );
    tx.commit().await.unwrap();
    replicas.settle().await;
    replicas
        .expect_once(std::slice::from_ref(&poison), &[order])
        .await;
    assert!(replicas.dead().await.is_empty());
    let mut tx = db.begin().await.unwrap();
    assert!(
        !dead_letter::replay(&mut tx, "tests.shelf", &poison, now)
            .await
            .unwrap()
    );
    drop(tx);
    purging.stop(Duration::from_secs(10)).await;
    replicas.stop().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_dead_letter_that_is_replayed_is_no_news_for_who_subscribed_later(db: PgPool) {
    let replicas = Replicas::start(&db, 1).await;
    replicas.faults.errors.store(usize::MAX, Ordering::SeqCst);
    let poison = replicas.emit(app()).await;
    replicas.settle().await;
    sqlx::query("insert into platform.subscriptions values ('tests.latecomer', 'app.uploaded')")
        .execute(&db)
        .await
        .unwrap();

    replicas.faults.errors.store(0, Ordering::SeqCst);
    let mut tx = db.begin().await.unwrap();
    let now = replicas.first().clock.now();
    dead_letter::replay(&mut tx, "tests.shelf", &poison, now)
        .await
        .unwrap();
    tx.commit().await.unwrap();

    // Nobody handles for the latecomer, and nobody waits for it.
    replicas.settle().await;
    replicas.expect_once(&[poison], &[]).await;
    replicas.stop().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_discarded_is_never_handled_and_a_store_that_is_away_buries_nothing(db: PgPool) {
    let replicas = Replicas::start(&db, 1).await;
    replicas.faults.errors.store(usize::MAX, Ordering::SeqCst);
    let poison = replicas.emit(app()).await;
    replicas.settle().await;
    let mut tx = db.begin().await.unwrap();
    let now = replicas.first().clock.now();
    assert!(
        dead_letter::discard(&mut tx, "tests.shelf", &poison, now)
            .await
            .unwrap()
    );
    tx.commit().await.unwrap();
    assert!(replicas.dead().await.is_empty());

    for (error, passes) in [
        (sqlx::Error::PoolTimedOut, true),
        (sqlx::Error::RowNotFound, false),
    ] {
        let wrapped = anyhow::Error::new(error).context("handling it");
        assert_eq!(dead_letter::passes(&wrapped), passes);
    }
    replicas.stop().await;
}
