//! Handshakes under way: each ends in time, and there are only so many, in all and of each address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::network::network;

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unshaken {
    /// The client broke off, or does not speak what we speak.
    #[error("the handshake failed")]
    Failed(#[source] io::Error),
    /// The client took too long.
    #[error("the handshake took too long")]
    Late,
    /// Newer ones, of its address or of all, needed the room. Who is silent grows old, so clients that mean it are not hit.
    #[error("the handshake gave way to newer ones")]
    Crowded,
}

/// The handshakes that are under way.
pub struct Handshakes {
    most: usize,
    of_address: usize,
    within: Duration,
    under_way: Mutex<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    last: u64,
    // Dropping a sender ends its handshake.
    all: BTreeMap<u64, (IpAddr, oneshot::Sender<Infallible>)>,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
}

impl UnderWay {
    fn remove(&mut self, id: u64) {
        let Some((address, _)) = self.all.remove(&id) else {
            return;
        };
        if let Some(of_address) = self.by_address.get_mut(&address) {
            of_address.remove(&id);
            if of_address.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }
}

impl Handshakes {
    /// At most `most` at once and, once half of them are, `of_address` of one address, each `within` a time.
    pub fn new(most: usize, of_address: usize, within: Duration) -> Self {
        Self {
            most,
            of_address,
            within,
            under_way: Mutex::default(),
        }
    }

    /// Waits for a handshake with an address.
    pub async fn run<T>(
        &self,
        address: IpAddr,
        handshake: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Unshaken> {
        let (place, outdated) = self.enter(network(address));
        let done = tokio::select! {
            biased;
            done = handshake => done.map_err(Unshaken::Failed),
            _ = outdated => Err(Unshaken::Crowded),
            () = sleep(self.within) => Err(Unshaken::Late),
        };
        drop(place);
        let outcome = match &done {
            Ok(_) => "done",
            Err(Unshaken::Failed(_)) => "failed",
            Err(Unshaken::Late) => "late",
            Err(Unshaken::Crowded) => "crowded",
        };
        metrics::counter!("gateway_tls_handshakes_total", "outcome" => outcome).increment(1);
        done
    }

    fn enter(&self, address: IpAddr) -> (Place<'_>, oneshot::Receiver<Infallible>) {
        let (sender, outdated) = oneshot::channel();
        let mut under_way = self.lock();
        under_way.last += 1;
        let id = under_way.last;
        under_way.all.insert(id, (address, sender));
        let of_address = under_way.by_address.entry(address).or_default();
        of_address.insert(id);
        let crowd = of_address.len() > self.of_address;
        let oldest = of_address.first().copied();
        // With room for all, nobody gives way: many clients may come through one balancer.
        let scarce = under_way.all.len() * 2 > self.most;
        let oldest = match crowd && scarce {
            true => oldest,
            false => {
                let oldest = under_way.all.keys().next().copied();
                oldest.filter(|_| under_way.all.len() > self.most)
            }
        };
        if let Some(oldest) = oldest {
            under_way.remove(oldest);
        }
        drop(under_way);
        (Place { of: self, id }, outdated)
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handshake's place, free when this is dropped.
struct Place<'a> {
    of: &'a Handshakes,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.of.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn the_oldest_gives_way_and_the_silent_are_late() {
        let handshakes = Handshakes::new(2, 2, Duration::from_millis(20));
        let silent = |from| handshakes.run::<()>(address(from), pending());
        let newest = async {
            tokio::task::yield_now().await;
            handshakes.run(address("192.0.2.3"), ready(Ok(()))).await
        };

        let (first, second, third) = tokio::join!(silent("192.0.2.1"), silent("192.0.2.2"), newest);

        assert!(matches!(first, Err(Unshaken::Crowded)), "{first:?}");
        assert!(matches!(second, Err(Unshaken::Late)), "{second:?}");
        assert!(third.is_ok(), "{third:?}");
        let under_way = handshakes.lock();
        assert!(under_way.all.is_empty() && under_way.by_address.is_empty());
    }

    #[tokio::test]
    async fn with_room_for_all_nobody_gives_way() {
        let handshakes = Handshakes::new(6, 1, Duration::from_millis(20));
        let silent = || handshakes.run::<()>(address("192.0.2.1"), pending());

        for late in <[_; 3]>::from(tokio::join!(silent(), silent(), silent())) {
            assert!(matches!(late, Err(Unshaken::Late)), "{late:?}");
        }
    }

    #[tokio::test]
    async fn an_address_that_floods_crowds_out_its_own_alone() {
        let handshakes = Handshakes::new(6, 2, Duration::from_millis(200));
        let silent = |from| handshakes.run::<()>(address(from), pending());

        // The third is of the network of the others, as IPv6 has it.
        let (first, other, second, third) = tokio::join!(
            silent("2001:db8::1"),
            silent("192.0.2.1"),
            silent("2001:db8::2"),
            silent("2001:db8::3"),
        );

        assert!(matches!(first, Err(Unshaken::Crowded)), "{first:?}");
        for late in [other, second, third] {
            assert!(matches!(late, Err(Unshaken::Late)), "{late:?}");
        }
        assert!(handshakes.lock().by_address.is_empty());
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
