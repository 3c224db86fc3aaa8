//! What instances see, in Redis: a hash for each of them that lapses by itself, and a set of their names.

use std::time::Duration;

use contracts::UserId;
use fred::clients::Pool;
use fred::error::Error;
use fred::interfaces::{HashesInterface, KeysInterface, SetsInterface};
use futures::future::try_join_all;
use platform::Platform;

use super::{Presence, Seen, changes};

/// How many fields go in one command.
const CHUNK: usize = 500;
/// How long the names of instances are kept when nobody writes any more.
const NAMES_LAPSE_SECONDS: i64 = 3_600;

/// The board that all instances write on. Clones are the same.
#[derive(Clone, Debug)]
pub struct Board {
    platform: Platform,
}

/// What one instance keeps on the board.
#[derive(Debug)]
pub struct Entry {
    board: Board,
    name: String,
    lapse: Duration,
    /// `None` where it is not known what stands there.
    written: Option<Seen>,
}

impl Board {
    /// Needs Redis when it is used.
    pub fn new(platform: &Platform) -> Self {
        Self {
            platform: platform.clone(),
        }
    }

    /// What an instance will keep on it; it lapses when it is not written for so long.
    pub fn entry(&self, name: String, lapse: Duration) -> Entry {
        Entry {
            board: self.clone(),
            name,
            lapse,
            written: None,
        }
    }

    /// What each instance sees.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn all(&self) -> Result<Vec<Seen>, Error> {
        let names = self.names().await?;
        let reading = names.into_iter().map(|name| async move {
            let hash: std::collections::HashMap<String, i64> =
                self.redis().hgetall(self.hash(&name)).await?;
            if hash.is_empty() {
                // It died, or nobody is there: one that lives writes its name again.
                self.redis().srem::<(), _, _>(self.set(), name).await?;
            }
            let users = hash.into_iter();
            // What is no id was not written by us.
            let seen = users.filter_map(|(user, sockets)| Some((user.parse().ok()?, sockets)));
            Ok::<Seen, Error>(seen.collect())
        });
        try_join_all(reading).await
    }

    /// Whether a user is online.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn of(&self, user: UserId) -> Result<Presence, Error> {
        let names = self.names().await?;
        let reading = names.into_iter().map(|name| {
            let field = user.as_str();
            async move {
                let sockets: Option<i64> = self.redis().hget(self.hash(&name), field).await?;
                Ok::<_, Error>(sockets)
            }
        });
        let sockets = try_join_all(reading).await?;
        let mut presence = Presence::away(user);
        for sockets in sockets.into_iter().flatten() {
            presence.count(sockets);
        }
        Ok(presence)
    }

    async fn names(&self) -> Result<Vec<String>, Error> {
        self.redis().smembers(self.set()).await
    }

    fn redis(&self) -> &Pool {
        &self.platform.redis
    }

    fn set(&self) -> String {
        self.platform.keys.key("presence:instances")
    }

    fn hash(&self, name: &str) -> String {
        self.platform.keys.key(&format!("presence:instance:{name}"))
    }
}

impl Entry {
    /// Writes what the instance sees now: what has changed, or all of it where Redis has lost something.
    ///
    /// # Errors
    /// Where Redis does not answer; all of it is written the next time.
    pub async fn write(&mut self, now: Seen) -> Result<(), Error> {
        let before = self.written.take();
        let kept = match &before {
            Some(before) if before.is_empty() && now.is_empty() => true,
            Some(before) => {
                let (changed, gone) = changes(before, &now);
                self.put(&changed).await?;
                self.drop(&gone).await?;
                self.prolong().await? == now.len()
            }
            None => false,
        };
        if !kept {
            let redis = self.board.redis();
            redis.del::<(), _>(self.board.hash(&self.name)).await?;
            self.put(&now).await?;
            self.prolong().await?;
        }
        self.written = Some(now);
        Ok(())
    }

    async fn put(&self, seen: &Seen) -> Result<(), Error> {
        let users: Vec<(String, i64)> = seen
            .iter()
            .map(|(user, sockets)| (user.to_string(), *sockets))
            .collect();
        for chunk in users.chunks(CHUNK) {
            let key = self.board.hash(&self.name);
            let fields: std::collections::HashMap<_, _> = chunk.iter().cloned().collect();
            self.board.redis().hset::<(), _, _>(key, fields).await?;
        }
        Ok(())
    }

    async fn drop(&self, gone: &[UserId]) -> Result<(), Error> {
        for chunk in gone.chunks(CHUNK) {
            let fields: Vec<String> = chunk.iter().map(UserId::to_string).collect();
            let key = self.board.hash(&self.name);
            self.board.redis().hdel::<(), _, _>(key, fields).await?;
        }
        Ok(())
    }

    /// Keeps the entry for another while; how many users it has.
    async fn prolong(&self) -> Result<usize, Error> {
        let (redis, key) = (self.board.redis(), self.board.hash(&self.name));
        let lapse = i64::try_from(self.lapse.as_millis()).unwrap_or(i64::MAX);
        redis.pexpire::<(), _>(&key, lapse, None).await?;
        let count: usize = redis.hlen(&key).await?;
        if count > 0 {
            let set = self.board.set();
            redis.sadd::<(), _, _>(&set, self.name.as_str()).await?;
            redis
                .expire::<(), _>(&set, NAMES_LAPSE_SECONDS, None)
                .await?;
        }
        Ok(count)
    }
}
