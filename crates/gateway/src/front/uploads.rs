//! Uploads under way. Each lasts as long as its client likes, so that there are only so many; and no address keeps all others
//! out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use platform::network::network;

/// The uploads that are under way.
pub struct Uploads {
    most: usize,
    under_way: Mutex<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    all: usize,
    by_address: HashMap<Option<IpAddr>, usize>,
}

impl Uploads {
    /// At most `most` at once; and once half of them are, an eighth of one address (of IPv6, of a /64).
    pub fn new(most: usize) -> Self {
        Self {
            most,
            under_way: Mutex::default(),
        }
    }

    /// A place for an upload from an address, until it is dropped; `None` where there is none.
    pub fn enter(&self, address: Option<IpAddr>) -> Option<Place<'_>> {
        let address = address.map(network);
        let mut under_way = self.lock();
        let of_address = under_way.by_address.get(&address).copied().unwrap_or(0);
        let share = (self.most / 8).max(1);
        let crowded = under_way.all * 2 > self.most && of_address >= share;
        if under_way.all >= self.most || crowded {
            return None;
        }
        under_way.all += 1;
        under_way.by_address.insert(address, of_address + 1);
        Some(Place { of: self, address })
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upload's place, free when this is dropped.
pub struct Place<'a> {
    of: &'a Uploads,
    address: Option<IpAddr>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut under_way = self.of.lock();
        under_way.all -= 1;
        if let Some(of_address) = under_way.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                under_way.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_keeps_nobody_out_and_every_place_comes_back() {
        let uploads = Uploads::new(16);
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().ok());

        let greedy: Vec<_> = std::iter::from_fn(|| uploads.enter(one)).collect();
        // Half of all, and the one that makes it more than half.
        assert_eq!(greedy.len(), 9);
        let modest: Vec<_> = std::iter::from_fn(|| uploads.enter(other)).collect();
        assert_eq!(modest.len(), 2);
        assert!(uploads.enter(None).is_some());

        drop((greedy, modest));
        let under_way = uploads.lock();
        assert!(under_way.all == 0 && under_way.by_address.is_empty());
    }

    #[test]
    fn there_are_only_so_many() {
        let uploads = Uploads::new(2);
        let places = [uploads.enter(None), uploads.enter(None)];
        assert!(places.iter().all(Option::is_some));
        assert!(uploads.enter("192.0.2.1".parse().ok()).is_none());
    }
}
