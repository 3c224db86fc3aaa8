//! Many leases of one process in one round trip: no watchdog and no token each, the caller renews them all.

use std::time::Duration;

use fred::interfaces::ClientLike;
use fred::types::scripts::Script;
use fred::types::{ClusterHash, CustomCommand};

use super::{CLAIM, Leases, RELEASE, RENEW};
use crate::{StoreError, script};

impl Leases {
    /// Takes the lease of every name that is free or already this owner's, and says which are now its own.
    pub async fn acquire_many(
        &self,
        names: &[String],
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<bool>, StoreError> {
        let ttl = script::milliseconds(ttl);
        let calls = names
            .iter()
            .map(|name| (name.as_str(), vec![owner.to_owned(), ttl.clone()]));
        self.each(&CLAIM, calls.collect(), "acquire leases").await
    }

    /// Renews pairs of name and owner, and says which are still held.
    pub async fn renew_many(
        &self,
        held: &[(String, String)],
        ttl: Duration,
    ) -> Result<Vec<bool>, StoreError> {
        let ttl = script::milliseconds(ttl);
        let calls = held
            .iter()
            .map(|(name, owner)| (name.as_str(), vec![owner.clone(), ttl.clone()]));
        self.each(&RENEW, calls.collect(), "renew leases").await
    }

    /// Gives pairs of name and owner back, and says which were still held.
    pub async fn release_many(&self, held: &[(String, String)]) -> Result<Vec<bool>, StoreError> {
        let calls = held
            .iter()
            .map(|(name, owner)| (name.as_str(), vec![owner.clone()]));
        self.each(&RELEASE, calls.collect(), "release leases").await
    }

    /// Runs one script for each name in one pipeline: on a Redis Cluster the names live on different nodes.
    async fn each(
        &self,
        script: &Script,
        calls: Vec<(&str, Vec<String>)>,
        tried: &'static str,
    ) -> Result<Vec<bool>, StoreError> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let client = self.redis.next();
        for attempt in 0.. {
            let pipeline = client.pipeline();
            for (name, arguments) in &calls {
                let evalsha = CustomCommand::new_static("EVALSHA", ClusterHash::Offset(2), false);
                let mut words = vec![
                    script.sha1().to_string(),
                    "1".to_owned(),
                    self.keys.lease(name),
                ];
                words.extend(arguments.iter().cloned());
                let queued: Result<(), _> = pipeline.custom(evalsha, words).await;
                queued.map_err(StoreError::redis(tried))?;
            }
            let answers = pipeline.try_all::<i64>().await;
            let forgotten = |error: &fred::error::Error| error.details().starts_with("NOSCRIPT");
            if attempt == 0
                && answers
                    .iter()
                    .any(|answer| answer.as_ref().is_err_and(forgotten))
            {
                script
                    .load(client)
                    .await
                    .map_err(StoreError::redis(tried))?;
                continue;
            }
            let held = answers
                .into_iter()
                .map(|answer| answer.map(|held| held == 1));
            return held
                .collect::<Result<_, _>>()
                .map_err(StoreError::redis(tried));
        }
        unreachable!("the second attempt returns")
    }
}
