//! The protocol of leases and fencing tokens as a specification that a machine checks: every order of events for a few
//! owners, with pauses of any length, a Redis that loses its data or goes back in time, and messages that arrive late,
//! twice, in another order or never.

mod protocol;

use protocol::{Fencing, LATE_WRITE, Protocol, TOKEN_REPEATED};
use stateright::{Checker, Model};

fn protocol(fencing: Fencing, owners: usize, faults: u8) -> Protocol {
    Protocol {
        fencing,
        owners,
        faults,
        duplicates: 1,
    }
}

#[test]
fn with_a_lease_alone_an_old_holders_write_lands_after_a_newer_ones() {
    // No fault is needed: a pause is enough.
    let checker = protocol(Fencing::None, 2, 0).checker().spawn_bfs().join();

    checker.assert_any_discovery(LATE_WRITE);
}

#[test]
fn with_tokens_that_redis_alone_remembers_it_still_does_once_redis_lost_them() {
    let kept = protocol(Fencing::RedisAlone, 2, 0)
        .checker()
        .spawn_bfs()
        .join();
    kept.assert_no_discovery(LATE_WRITE);

    let lost = protocol(Fencing::RedisAlone, 2, 1)
        .checker()
        .spawn_bfs()
        .join();
    lost.assert_any_discovery(LATE_WRITE);
    lost.assert_any_discovery(TOKEN_REPEATED);
}

#[test]
fn with_tokens_recorded_and_proven_in_the_database_it_never_does() {
    for (owners, faults) in [(2, 3), (3, 2)] {
        let checker = protocol(Fencing::Recorded, owners, faults)
            .checker()
            .threads(2);
        let checker = checker.spawn_bfs().join();

        // Every state was looked at, the bad ones do not exist, and the good ones do.
        assert!(checker.is_done());
        checker.assert_properties();
        eprintln!(
            "{owners} owners, {faults} faults: {} states, {} steps deep",
            checker.unique_state_count(),
            checker.max_depth()
        );
    }
}
