//! A bounded map that forgets what was not asked for lately.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many requests look something up at the same time without waiting for each other.
const SHARDS: usize = 16;

/// Remembers up to a number of values, in two generations: what is asked for stays in the young one, and when that is
/// full, what has stayed in the old one goes at once. No order is kept, and nothing is ever searched.
#[derive(Debug)]
pub struct Recent<K, V> {
    shards: [Mutex<Shard<K, V>>; SHARDS],
    hasher: RandomState,
    /// Of one generation of one shard.
    most: usize,
}

#[derive(Debug)]
struct Shard<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Hash + Eq, V: Clone> Recent<K, V> {
    /// Remembers `most` values at most, and half of them surely.
    pub fn new(most: usize) -> Self {
        let shard = || {
            Mutex::new(Shard {
                young: HashMap::new(),
                old: HashMap::new(),
            })
        };
        Self {
            shards: std::array::from_fn(|_| shard()),
            hasher: RandomState::new(),
            most: (most / SHARDS / 2).max(1),
        }
    }

    /// A value that is remembered.
    pub fn get(&self, key: &K) -> Option<V> {
        let mut shard = self.shard(key);
        if let Some(value) = shard.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = shard.old.remove_entry(key)?;
        shard.remember(key, value.clone(), self.most);
        Some(value)
    }

    /// Remembers a value.
    pub fn insert(&self, key: K, value: V) {
        self.shard(&key).remember(key, value, self.most);
    }

    /// Forgets a value.
    pub fn remove(&self, key: &K) {
        let mut shard = self.shard(key);
        shard.young.remove(key);
        shard.old.remove(key);
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        let number = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[number]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq, V> Shard<K, V> {
    fn remember(&mut self, key: K, value: V, most: usize) {
        if self.young.len() >= most {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_makes_room() {
        let recent = Recent::new(SHARDS * 20);
        recent.insert(0, "asked for");
        recent.insert(1, "never asked for");

        for other in 2..10_000 {
            recent.insert(other, "another");
            assert_eq!(recent.get(&0), Some("asked for"));
        }

        assert_eq!(recent.get(&1), None);
        let remembered = (0..10_000).filter(|key| recent.get(key).is_some()).count();
        assert!(remembered <= SHARDS * 20, "{remembered}");
        recent.remove(&0);
        assert_eq!(recent.get(&0), None);
    }
}
