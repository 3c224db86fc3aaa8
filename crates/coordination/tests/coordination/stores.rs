//! What every test starts from: a Redis pool, a key prefix of its own, and patience.

use std::future::Future;
use std::time::Duration;

use coordination::Keys;
use fred::clients::Pool;
use fred::prelude::ClientLike;
use fred::types::CustomCommand;

use crate::servers::pool;

/// A Redis with keys that no other test sees.
pub struct Stores {
    pub redis: Pool,
    pub keys: Keys,
    pub prefix: String,
}

pub async fn stores() -> Stores {
    stores_under(&format!("test-{}", uuid::Uuid::new_v4())).await
}

/// The stores of another process of the same test.
pub async fn stores_under(prefix: &str) -> Stores {
    stores_as(&redis_url(), prefix).await
}

/// Stores that are reached by another URL.
pub async fn stores_as(url: &str, prefix: &str) -> Stores {
    let redis = pool(url, 2).await;
    Stores {
        redis,
        keys: Keys::new(prefix),
        prefix: prefix.to_owned(),
    }
}

/// Connections of their own, as another process has them.
pub async fn connect() -> Pool {
    stores().await.redis
}

pub fn redis_url() -> String {
    std::env::var("REDIS_URL").expect("REDIS_URL names the Redis of the tests")
}

impl Stores {
    /// Loses all data of this test, as a Redis that restarts empty would.
    pub async fn lose_everything(&self) {
        let script = "local n = 0 for _, key in ipairs(redis.call('KEYS', ARGV[1])) do n = n + redis.call('DEL', key) end return n";
        let eval = CustomCommand::new_static("EVAL", None::<u16>, false);
        let words = vec![
            script.to_owned(),
            "0".to_owned(),
            format!("{}*", self.prefix),
        ];
        let _: i64 = self.redis.custom(eval, words).await.unwrap();
    }

    /// Whether there is such a key.
    pub async fn exists(&self, key: &str) -> bool {
        let exists = CustomCommand::new_static("EXISTS", None::<u16>, false);
        let count: i64 = self
            .redis
            .custom(exists, vec![key.to_owned()])
            .await
            .unwrap();
        count == 1
    }

    /// How many members a sorted set has.
    pub async fn count(&self, key: &str) -> usize {
        let count = CustomCommand::new_static("ZCARD", None::<u16>, false);
        let key = vec![key.to_owned()];
        self.redis.custom(count, key).await.unwrap()
    }

    /// Takes a member out of a sorted set.
    pub async fn remove(&self, key: &str, member: &str) {
        let remove = CustomCommand::new_static("ZREM", None::<u16>, false);
        let words = vec![key.to_owned(), member.to_owned()];
        let removed: i64 = self.redis.custom(remove, words).await.unwrap();
        assert_eq!(removed, 1, "{member} was not in {key}");
    }

    /// Writes one key.
    pub async fn write(&self, key: &str, value: &str) {
        let set = CustomCommand::new_static("SET", None::<u16>, false);
        let words = vec![key.to_owned(), value.to_owned()];
        let _: String = self.redis.custom(set, words).await.unwrap();
    }

    /// Deletes one key.
    pub async fn delete(&self, key: &str) {
        let delete = CustomCommand::new_static("DEL", None::<u16>, false);
        let _: i64 = self
            .redis
            .custom(delete, vec![key.to_owned()])
            .await
            .unwrap();
    }
}

/// Waits until a condition holds, and fails after half a minute.
pub async fn until<F, R>(what: &str, mut condition: F)
where
    F: FnMut() -> R,
    R: Future<Output = bool>,
{
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
