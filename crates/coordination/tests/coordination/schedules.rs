//! Leases under random schedules: several owners take, write, give back, drop and vanish while Redis freezes, forgets and
//! goes back in time. `SCHEDULE_SEED` repeats a run; the seed of each stands in its output.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coordination::{Fence, Guard, Lease, Leases};
use fred::interfaces::ClientLike;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::servers::{RedisServer, bare};
use crate::stores::until;

const OWNERS: u64 = 5;
const STEPS: usize = 60;
const NAMES: [&str; 2] = ["row:1", "row:2"];
/// Long enough for the commits within an acquisition on a slow machine.
const TTL: Duration = Duration::from_secs(2);

/// What all owners see together.
struct World {
    server: RedisServer,
    db: PgPool,
    /// Whether Redis keeps its promises, so that there is never a second holder.
    is_faithful: bool,
    held: Mutex<HashMap<&'static str, Vec<Arc<Lease>>>>,
    highest: Mutex<HashMap<&'static str, Fence>>,
    /// Guards of all who ever held a lease: they may write at any time, and must not succeed late.
    guards: Mutex<Vec<Guard>>,
}

fn seed() -> u64 {
    let given = std::env::var("SCHEDULE_SEED").ok();
    let seed = given.map_or_else(rand::random, |seed| seed.parse().expect("a number"));
    eprintln!("SCHEDULE_SEED={seed}");
    seed
}

async fn world(db: PgPool, is_faithful: bool) -> Arc<World> {
    let statements = [
        "create table written (id bigserial primary key, key text not null, token bigint not null)",
        "select coordination.fence_table('written', '', 'key')",
    ];
    for statement in statements {
        sqlx::query(statement).execute(&db).await.unwrap();
    }
    Arc::new(World {
        server: RedisServer::start(&[]).await,
        db,
        is_faithful,
        held: Mutex::default(),
        highest: Mutex::default(),
        guards: Mutex::default(),
    })
}

impl World {
    async fn leases(&self) -> (fred::clients::Pool, Leases) {
        let redis = self.server.pool().await;
        let leases = Leases::new(redis.clone(), self.db.clone(), bare());
        (redis, leases)
    }

    /// Takes a lease, and checks that nobody else has it and that its token is higher than every earlier one.
    async fn acquire(&self, leases: &Leases, name: &'static str) -> Option<Arc<Lease>> {
        let before = self.highest.lock().unwrap().get(name).copied();
        // A Redis that is frozen gives none; that is no fault.
        let lease = Arc::new(leases.acquire(name, TTL).await.ok().flatten()?);
        assert!(
            before.is_none_or(|before| lease.token() > before),
            "a token of {name} went back"
        );
        let mut highest = self.highest.lock().unwrap();
        let highest = highest.entry(name).or_insert(lease.token());
        *highest = (*highest).max(lease.token());
        self.guards.lock().unwrap().push(lease.guard());

        let mut held = self.held.lock().unwrap();
        let held = held.entry(name).or_default();
        held.retain(|other| !other.remaining().is_zero());
        if self.is_faithful && !lease.remaining().is_zero() {
            assert!(
                held.is_empty(),
                "{name} has two holders: {held:?} and {lease:?}"
            );
        }
        held.push(lease.clone());
        Some(lease)
    }

    /// Takes a lease out of everybody's sight, before it is given up.
    fn give_up(&self, lease: &Arc<Lease>) {
        let mut held = self.held.lock().unwrap();
        for held in held.values_mut() {
            held.retain(|other| !Arc::ptr_eq(other, lease));
        }
    }

    /// Writes as a holder; late or not, the table must not see an old token after a newer one.
    async fn write(&self, guard: &Guard) {
        let Ok(mut tx) = guard.begin(&self.db).await else {
            return;
        };
        let insert = sqlx::query("insert into written (key, token) values ($1, $2)");
        let insert = insert.bind(&guard.name).bind(guard.fence.0);
        insert.execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    }
}

async fn owner(world: Arc<World>, mut random: StdRng) {
    let (mut redis, mut leases) = world.leases().await;
    let mut mine: Vec<Arc<Lease>> = Vec::new();
    for _ in 0..STEPS {
        mine.retain(|lease| !lease.lost().is_cancelled());
        match random.random_range(0..100) {
            0..45 => {
                let name = NAMES[random.random_range(0..NAMES.len())];
                mine.extend(world.acquire(&leases, name).await);
            }
            45..65 => {
                let guards = world.guards.lock().unwrap().clone();
                if !guards.is_empty() {
                    // Mostly the latest, now and then one that is long past.
                    let back = random.random_range(0..guards.len().min(6));
                    world.write(&guards[guards.len() - 1 - back]).await;
                }
            }
            65..80 => {
                if let Some(lease) = mine.pop() {
                    world.give_up(&lease);
                    if let Some(lease) = Arc::into_inner(lease) {
                        let _ = lease.release().await;
                    }
                }
            }
            80..90 => {
                if let Some(lease) = mine.pop() {
                    world.give_up(&lease);
                }
            }
            90..93 => {
                // It vanishes: what it holds is renewed no more, and nobody is told.
                redis.quit().await.unwrap();
                (redis, leases) = world.leases().await;
            }
            _ => tokio::time::sleep(TTL.mul_f64(random.random())).await,
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..30))).await;
    }
}

/// Does to Redis what it must bear, or also what it need not.
async fn trouble(world: Arc<World>, mut random: StdRng, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let pause = Duration::from_millis(random.random_range(50..400));
        let _ = tokio::time::timeout(pause, stop.cancelled()).await;
        let name = NAMES[random.random_range(0..NAMES.len())];
        match random.random_range(0..4) {
            _ if world.is_faithful => {
                world.server.signal("STOP");
                // Mostly short, now and then so long that leases run out.
                let frozen = match random.random_range(0..4) {
                    0 => random.random_range(0.5..1.3),
                    _ => random.random_range(0.0..0.2),
                };
                tokio::time::sleep(TTL.mul_f64(frozen)).await;
                world.server.signal("CONT");
            }
            0 => world.server.run(&["FLUSHALL"]),
            1 => world.server.run(&["SCRIPT", "FLUSH"]),
            2 => world.server.run(&["DEL", &bare().lease(name)]),
            _ => {
                let counter = random.random_range(0..3).to_string();
                world
                    .server
                    .run(&["SET", &bare().lease_token(name), &counter]);
                world.server.run(&["DEL", &bare().lease(name)]);
            }
        }
    }
}

async fn play(world: Arc<World>) {
    let seed = seed();
    let stop = CancellationToken::new();
    let mut owners = JoinSet::new();
    for number in 1..=OWNERS {
        let random = StdRng::seed_from_u64(seed.wrapping_add(number));
        owners.spawn(owner(world.clone(), random));
    }
    let random = StdRng::seed_from_u64(seed);
    let troubled = trouble(world.clone(), random, stop.clone());
    let played = async {
        owners.join_all().await;
        stop.cancel();
    };
    tokio::join!(troubled, played);

    let guards = world.guards.lock().unwrap().clone();
    let mut tokens: Vec<_> = guards
        .iter()
        .map(|guard| (&guard.name, guard.fence))
        .collect();
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), guards.len(), "two holders had one token");
    let late = sqlx::query_scalar::<_, i64>(
        "select count(*) from written old join written new on new.key = old.key and new.id < old.id and new.token > old.token",
    );
    assert_eq!(
        late.fetch_one(&world.db).await.unwrap(),
        0,
        "an old holder wrote late"
    );
    let written = sqlx::query_scalar::<_, i64>("select count(*) from written");
    assert!(written.fetch_one(&world.db).await.unwrap() > 0);

    world.held.lock().unwrap().clear();
    let (_redis, leases) = world.leases().await;
    for name in NAMES {
        until("the lease can be had again", async || {
            let lease = leases.acquire(name, TTL).await;
            lease.is_ok_and(|lease| lease.is_some())
        })
        .await;
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn while_redis_keeps_its_data_no_schedule_gives_a_lease_two_holders(db: PgPool) {
    play(world(db, true).await).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn whatever_redis_forgets_no_schedule_repeats_a_token_or_writes_late(db: PgPool) {
    play(world(db, false).await).await;
}
