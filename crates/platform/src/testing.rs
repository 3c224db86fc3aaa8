//! A platform for store-backed tests: a database of the test's own, a Redis prefix of its own, a clock that stands
//! still.

use std::net::SocketAddr;
use std::sync::Arc;

use contracts::{ApiKeyId, Service, SessionId, UserId};
use coordination::{Announcement, Keys, Membership, Registry};
use sqlx::PgPool;
use uuid::Uuid;

use crate::auth::{Auth, Identity, Sessions};
use crate::lifecycle::{Phase, Readiness};
use crate::{Clock, Env, Platform, Settings, redis};

/// Puts a platform around a test's database; Redis is the one of `REDIS_URL`, under a prefix that no other test has.
///
/// # Panics
/// Where `REDIS_URL` is missing or does not answer.
pub async fn platform(db: PgPool) -> Platform {
    with(db, |_| {}).await
}

/// The same with other settings than a development machine's.
///
/// # Panics
/// Where `REDIS_URL` is missing or does not answer.
pub async fn with(db: PgPool, change: impl FnOnce(&mut Settings)) -> Platform {
    let redis_url = std::env::var("REDIS_URL")
        .expect("REDIS_URL names the Redis of the tests; tests/run sets it");
    beside(db, &redis_url, change).await
}

/// The same beside another Redis, one that a test may freeze or kill.
///
/// # Panics
/// Where Redis does not answer.
pub async fn beside(db: PgPool, redis_url: &str, change: impl FnOnce(&mut Settings)) -> Platform {
    let mut settings = Settings::from_env(&mut Env::of([]));
    settings.key_prefix = format!("test-{}", Uuid::new_v4());
    change(&mut settings);
    let keys = Keys::new(&settings.key_prefix);
    let redis = redis::connect(redis_url)
        .await
        .expect("the Redis of the tests answers");
    let clock = Clock::held_at(Clock::system().now());
    let seed = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".into();
    let secret = "a service secret of thirty-two bytes".into();
    let auth = Auth::new(
        &seed,
        &secret,
        settings.sandbox,
        (db.clone(), redis.pool.clone(), keys.clone()),
        clock.clone(),
    )
    .expect("the key of the tests is one");
    let readiness = Readiness::default();
    readiness.advance(Phase::Ready);
    let platform = Platform::new(Arc::new(settings), db, redis, keys, clock, auth, readiness);
    for service in Service::ALL {
        platform.name_instance(service, || "instance-0".to_owned());
    }
    platform
}

/// Lets a server of the test be found as an instance of a service, for as long as the value is kept.
///
/// # Panics
/// Where Redis does not answer.
pub async fn announce(platform: &Platform, service: &str, address: SocketAddr) -> Membership {
    let announcement = Announcement {
        service: service.to_owned(),
        address: address.to_string(),
        host: "host".to_owned(),
        zone: None,
        pid: 1,
        version: "0.1.0".to_owned(),
        started_at: platform.clock.now().utc(),
        replica: "r0".to_owned(),
    };
    let registry = Registry::new(platform.redis.clone(), platform.keys.clone());
    let joined = registry.join(announcement).await;
    joined.expect("the Redis of the tests takes an instance")
}

/// Signs a user in and gives the token.
///
/// # Panics
/// Where the database does not answer.
pub async fn sign_in(platform: &Platform, user: &UserId, roles: &[&str]) -> String {
    let identity = Identity {
        user_id: user.clone(),
        username: user.to_string(),
        email: format!("{user}@example.com"),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        tenant_id: None,
        is_super_admin: false,
        session_id: SessionId::new(),
    };
    let (now, day) = (platform.clock.now(), chrono::TimeDelta::days(1));
    let mut conn = platform
        .db
        .acquire()
        .await
        .expect("the database of the test answers");
    Sessions::begin(&mut conn, &identity.session_id, user, now, now + day)
        .await
        .expect("a session is written");
    platform
        .auth
        .tokens()
        .issue(identity, now, day)
        .expect("the key signs")
}

/// Makes an account with some of the built-in roles, as the user service would.
///
/// # Panics
/// Where the database does not answer.
pub async fn account(platform: &Platform, roles: &[&str]) -> UserId {
    let user = UserId::new();
    let mut conn = platform
        .db
        .acquire()
        .await
        .expect("the database of the test answers");
    let account = sqlx::query(
        "insert into users.accounts (id, username, email, password_hash, status, created_at, updated_at)
        values ($1, $1, $1, '', 'active', now(), now())",
    );
    let account = account.bind(&user).execute(&mut *conn).await;
    account.expect("an account is written");
    let given = sqlx::query(
        "insert into users.user_roles select $1, id from users.roles where name = any($2)",
    );
    let given = given.bind(&user).bind(roles).execute(&mut *conn).await;
    given.expect("roles are written");
    user
}

/// Makes an API key of an account, as the user service would, and gives its id and its secret.
///
/// # Panics
/// Where the database does not answer, or there is no such account.
pub async fn api_key(platform: &Platform, user: &UserId, scopes: &[&str]) -> (ApiKeyId, String) {
    let id = ApiKeyId::new();
    let secret = platform.auth.api_key_secret(&rand::random());
    let insert = sqlx::query(
        "insert into users.api_keys
            (id, user_id, name, prefix, key_hash, scopes, status, created_at, updated_at)
        values ($1, $2, 'key', $3, $4, $5, 'active', now(), now())",
    );
    insert
        .bind(&id)
        .bind(user)
        .bind(secret.prefix())
        .bind(secret.hash().as_slice())
        .bind(scopes)
        .execute(&platform.db)
        .await
        .expect("a key is written");
    (id, secret.expose().to_owned())
}
