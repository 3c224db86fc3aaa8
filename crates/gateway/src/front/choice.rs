//! Which instance gets a request: the healthy before the others, the near before the far, the idle before the busy, and
//! those that are new or back a growing share.

use std::sync::Arc;
use std::time::Instant;

use crate::front::config::Balance;
use crate::front::instance::{Instance, Standing, WARM};
use crate::front::locality::Distance;

/// A near instance is taken while it has no more requests than a far one twice, and this many.
const SLACK: u32 = 4;

/// By what instances are compared.
pub type Load = fn(&Instance) -> u32;

/// One of the instances, except those in `but`, which were tried.
pub fn choose<'a>(
    instances: &'a [Arc<Instance>],
    but: &[Arc<Instance>],
    load: Load,
    balance: &Balance,
    now: Instant,
) -> Option<&'a Arc<Instance>> {
    if let ([only], []) = (instances, but) {
        return Some(only);
    }
    let panics = panics(instances, balance, now);
    let standing = |instance: &Instance| instance.standing(now, panics);
    let warmth = |instance: &Instance| match panics {
        true => WARM,
        false => instance.warmth(now),
    };
    let left = || {
        instances
            .iter()
            .filter(|instance| !but.iter().any(|tried| Arc::ptr_eq(tried, instance)))
    };
    let best = left().map(|instance| standing(instance)).min()?;
    let equals = || left().filter(|instance| standing(instance) == best);
    let drawn = match nearest(equals(), warmth) {
        Some(nearest) => {
            let is_near = |instance: &&Arc<Instance>| instance.distance == nearest;
            let near = draw(|| equals().filter(is_near), load, warmth);
            let far = || equals().filter(|instance| !is_near(instance));
            let far = draw(far, load, warmth);
            match (near, far) {
                (Some(near), Some(far)) if load(near) > load(far) * 2 + SLACK => Some(far),
                (near, far) => near.or(far),
            }
        }
        None => draw(equals, load, warmth),
    };
    // The clock did not move in between, but a standing may have.
    drawn.or_else(|| left().next())
}

/// Whether so many are ejected that the rest could not bear the load: then all share it again.
pub fn panics(instances: &[Arc<Instance>], balance: &Balance, now: Instant) -> bool {
    let (mut present, mut ejected) = (0, 0);
    for instance in instances {
        match instance.standing(now, false) {
            Standing::Draining => continue,
            Standing::Ejected => ejected += 1,
            Standing::Good | Standing::Suspected => {}
        }
        present += 1;
    }
    ejected > 0 && (present - ejected) * 100 < present * balance.panic_percent
}

/// The distance of those that are preferred, where some are nearer than others. Where even the warmest of the near ones
/// are new, they are preferred as often as their share has grown.
fn nearest<'a>(
    instances: impl Iterator<Item = &'a Arc<Instance>>,
    warmth: impl Fn(&Instance) -> u32,
) -> Option<Distance> {
    let mut nearest = (Distance::Far, 0);
    let (mut warmest, mut differ) = (0, false);
    for (index, instance) in instances.enumerate() {
        let warmth = warmth(instance);
        warmest = warmth.max(warmest);
        differ |= index > 0 && instance.distance != nearest.0;
        nearest = match instance.distance.cmp(&nearest.0) {
            std::cmp::Ordering::Less => (instance.distance, warmth),
            std::cmp::Ordering::Equal => (nearest.0, warmth.max(nearest.1)),
            std::cmp::Ordering::Greater => nearest,
        };
    }
    let (distance, warmth) = nearest;
    let preferred = differ && (warmth >= warmest || rand::random_range(0..warmest) < warmth);
    preferred.then_some(distance)
}

/// The less busy of two that are taken at random. As long as some are warmer than others, one at random by warmth, and
/// the less the busier it is.
fn draw<'a, I: Iterator<Item = &'a Arc<Instance>>>(
    all: impl Fn() -> I,
    load: Load,
    warmth: impl Fn(&Instance) -> u32,
) -> Option<&'a Arc<Instance>> {
    let (mut count, mut coldest, mut warmest) = (0, WARM, 0);
    for instance in all() {
        let warmth = warmth(instance);
        (coldest, warmest) = (coldest.min(warmth), warmest.max(warmth));
        count += 1;
    }
    if count < 2 {
        return all().next();
    }
    if coldest == warmest {
        let one = rand::random_range(0..count);
        let other = (one + rand::random_range(1..count)) % count;
        let (one, other) = (all().nth(one)?, all().nth(other)?);
        return Some(if load(other) < load(one) { other } else { one });
    }
    let weight = |instance: &Instance| {
        u64::from(warmth(instance)) * 1_000_000 / (u64::from(load(instance)) + 1)
    };
    let whole = all().map(|instance| weight(instance)).sum::<u64>();
    let mut point = rand::random_range(0..whole.max(1));
    for instance in all() {
        let weight = weight(instance);
        if point < weight {
            return Some(instance);
        }
        point -= weight;
    }
    // Loads have changed since they were summed up.
    all().next()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::front::config::FrontConfig;
    use crate::front::instance::Reason;
    use crate::front::locality::Locality;
    use crate::front::upstreams::Upstream;

    const SECOND: Duration = Duration::from_secs(1);

    fn config() -> FrontConfig {
        FrontConfig {
            ejection: 5 * SECOND,
            balance: Balance {
                slow_start: 10 * SECOND,
                locality: Some(Locality {
                    host: "here".into(),
                    zone: Some("a".into()),
                }),
                ..Balance::default()
            },
            ..FrontConfig::default()
        }
    }

    fn instance(host: &str, zone: &str) -> Arc<Instance> {
        let upstream = Upstream {
            id: "id".into(),
            name: "instance-0".into(),
            address: "127.0.0.1:1".into(),
            locality: Locality {
                host: host.into(),
                zone: Some(zone.into()),
            },
            draining: false,
        };
        Arc::new(Instance::new(&upstream, &config(), Default::default()))
    }

    /// How often each is chosen in 10,000 draws, in per cent.
    fn shares(instances: &[Arc<Instance>], load: Load, now: Instant) -> Vec<u32> {
        let mut counts = vec![0; instances.len()];
        for _ in 0..10_000 {
            let chosen = choose(instances, &[], load, &config().balance, now).unwrap();
            let at = instances.iter().position(|one| Arc::ptr_eq(one, chosen));
            counts[at.unwrap()] += 1;
        }
        counts.iter().map(|count| count / 100).collect()
    }

    #[test]
    fn one_that_returns_gets_a_growing_share() {
        let all = [instance("x", "x"), instance("x", "x"), instance("x", "x")];
        let start = Instant::now() + 60 * SECOND;
        all[2].eject(start, Reason::Latency);
        let share = |after: Duration| shares(&all, Instance::outstanding, start + after)[2];

        assert_eq!(share(4 * SECOND), 0);
        let growing = [share(6 * SECOND), share(10 * SECOND), share(16 * SECOND)];
        assert!((3..=7).contains(&growing[0]), "{growing:?}");
        assert!((16..=24).contains(&growing[1]), "{growing:?}");
        assert!((29..=38).contains(&growing[2]), "{growing:?}");
    }

    #[test]
    fn where_all_are_new_they_share_alike() {
        let all = [instance("x", "x"), instance("x", "x")];

        let shares = shares(&all, Instance::outstanding, Instant::now());

        assert!(shares.iter().all(|share| *share > 45), "{shares:?}");
    }

    #[test]
    fn the_near_are_preferred_unless_they_are_much_busier_or_not_well() {
        let all = [
            instance("there", "b"),
            instance("next", "a"),
            instance("here", "a"),
            instance("here", "a"),
        ];
        let start = Instant::now() + 60 * SECOND;

        let near = shares(&all, Instance::outstanding, start);
        assert_eq!(near[..2], [0, 0]);
        assert!(near[2] > 45 && near[3] > 45, "{near:?}");

        let busy: Load = |instance| match instance.distance {
            Distance::Host => SLACK + 3,
            Distance::Zone | Distance::Far => 1,
        };
        let far = shares(&all, busy, start);
        assert!(far[0] > 45 && far[1] > 45, "{far:?}");

        all[2].eject(start, Reason::Failures);
        assert_eq!(
            shares(&all, Instance::outstanding, start),
            [0, 0, 0, 100],
            "the other one here"
        );
        all[3].set_draining(true);
        assert_eq!(
            shares(&all, Instance::outstanding, start),
            [0, 100, 0, 0],
            "the one in the zone"
        );
    }

    #[test]
    fn a_near_one_that_is_back_does_not_get_everything_at_once() {
        let all = [instance("there", "b"), instance("here", "a")];
        let start = Instant::now() + 60 * SECOND;
        all[1].eject(start, Reason::Latency);

        let share = shares(&all, Instance::outstanding, start + 6 * SECOND)[1];
        assert!((12..=25).contains(&share), "{share}");
        assert_eq!(
            shares(&all, Instance::outstanding, start + 16 * SECOND)[1],
            100
        );
    }

    #[test]
    fn when_too_few_are_left_all_share_the_load() {
        let all: Vec<_> = (0..4).map(|_| instance("x", "x")).collect();
        let start = Instant::now() + 60 * SECOND;
        all[0].eject(start, Reason::Failures);
        all[1].eject(start, Reason::Failures);
        assert_eq!(
            shares(&all, Instance::outstanding, start)[..2],
            [0, 0],
            "half of them can bear it"
        );

        // One of the rest leaves: a third cannot.
        let shares = shares(&all[..3], Instance::outstanding, start);

        assert!(shares.iter().all(|share| *share > 25), "{shares:?}");
        assert!(panics(&all[..3], &config().balance, start));
    }
}
