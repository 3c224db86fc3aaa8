//! When a job is due: a cron expression in a time zone, and an offset that spreads jobs of one schedule.
//!
//! Where a zone puts its clocks forward, a job at a fixed hour inside the hour that is skipped runs at the first instant
//! after it; where the clocks are put back, it runs in the first of the two equal hours and not in the second. A job with
//! a wildcard or an interval in its minutes or hours (`*/5 * * * *`, `0 * * * *`) follows the real time: nothing is
//! made good for the skipped hour, and both equal hours have their slots. That is the rule of vixie cron.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use chrono_tz::Tz;

use super::CronError;

/// A schedule that was understood.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: croner::Cron,
    zone: Tz,
    jitter: TimeDelta,
    /// Which part of the jitter is this job's, from 0 to 1; the same on every replica.
    share: f64,
}

impl Schedule {
    /// Reads the schedule of a job.
    pub fn parse(job: &str, schedule: &str, zone: Tz, jitter: Duration) -> Result<Self, CronError> {
        let cron = schedule
            .parse()
            .map_err(|source: croner::errors::CronError| CronError::Schedule {
                job: job.to_owned(),
                schedule: schedule.to_owned(),
                source: Box::new(source),
            })?;
        Ok(Self {
            cron,
            zone,
            jitter: TimeDelta::from_std(jitter).unwrap_or(TimeDelta::MAX),
            share: share(job),
        })
    }

    /// The latest slot that is not after `now`.
    pub fn latest(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.before(now, true)
    }

    /// The first slot after `now`.
    pub fn next(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let now = whole(now).with_timezone(&self.zone);
        let next = self.cron.find_next_occurrence(&now, false).ok()?;
        Some(next.to_utc())
    }

    /// When a slot falls due: a while after it, always before half the way to the next one.
    pub fn due_at(&self, slot: DateTime<Utc>) -> DateTime<Utc> {
        if self.jitter.is_zero() {
            return slot;
        }
        let half = self
            .next(slot)
            .map_or(self.jitter, |next| (next - slot) / 2);
        let most = self.jitter.min(half).num_milliseconds();
        slot + TimeDelta::milliseconds((most as f64 * self.share) as i64)
    }

    /// The latest slot that fell due not after `now`.
    pub fn latest_due(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let latest = self.latest(now)?;
        if self.due_at(latest) <= now {
            Some(latest)
        } else {
            self.before(latest, false)
        }
    }

    /// When the next slot falls due after `now`.
    pub fn next_due(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let pending = self.latest(now).map(|latest| self.due_at(latest));
        match pending.filter(|due| *due > now) {
            Some(due) => Some(due),
            None => Some(self.due_at(self.next(now)?)),
        }
    }

    /// The next moments at which slots fall due, `count` at most.
    pub fn upcoming(&self, now: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
        let first = self
            .latest(now)
            .filter(|latest| self.due_at(*latest) > now)
            .or_else(|| self.next(now));
        std::iter::successors(first, |slot| self.next(*slot))
            .take(count)
            .map(|slot| self.due_at(slot))
            .collect()
    }

    /// The slots after `from` that fell due up to `to`, newest first, at most `limit`.
    pub fn between(
        &self,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
        limit: usize,
    ) -> Vec<DateTime<Utc>> {
        std::iter::successors(self.latest_due(to), |slot| self.before(*slot, false))
            .take_while(|slot| *slot > from)
            .take(limit)
            .collect()
    }

    fn before(&self, time: DateTime<Utc>, inclusive: bool) -> Option<DateTime<Utc>> {
        let time = whole(time).with_timezone(&self.zone);
        let slot = self.cron.find_previous_occurrence(&time, inclusive).ok()?;
        Some(slot.to_utc())
    }
}

fn whole(time: DateTime<Utc>) -> DateTime<Utc> {
    time.with_nanosecond(0).unwrap_or(time)
}

/// A number from 0 to 1 that depends on nothing but the name, and differs much between similar names (FNV-1a, then the
/// finaliser of `SplitMix64`).
fn share(name: &str) -> f64 {
    let mut hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        hash = (hash ^ (hash >> 30)).wrapping_mul(factor);
    }
    ((hash ^ (hash >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn schedule(text: &str, zone: Tz) -> Schedule {
        Schedule::parse("job", text, zone, Duration::ZERO).expect("a schedule")
    }

    fn jittered(job: &str, text: &str, jitter: Duration) -> Schedule {
        Schedule::parse(job, text, Tz::UTC, jitter).expect("a schedule")
    }

    /// The slots of a span as both directions of search find them.
    fn slots(text: &str, zone: Tz, from: &str, to: &str) -> Vec<String> {
        let (schedule, from, to) = (schedule(text, zone), at(from), at(to));
        let forward: Vec<_> =
            std::iter::successors(schedule.next(from), |slot| schedule.next(*slot))
                .take_while(|slot| *slot <= to)
                .collect();
        let mut backward = schedule.between(from, to, 1000);
        backward.reverse();
        assert_eq!(forward, backward, "{text} in {zone}");
        let local = |slot: &DateTime<Utc>| slot.with_timezone(&zone).format("%H:%M %z").to_string();
        forward.iter().map(local).collect()
    }

    #[test]
    fn slots_come_from_the_schedule_whatever_the_moment_of_asking() {
        let schedule = schedule("*/5 * * * *", Tz::UTC);

        for now in [
            "2026-01-01T10:05:00Z",
            "2026-01-01T10:05:00.999Z",
            "2026-01-01T10:09:59.999Z",
        ] {
            let (before, after) = (at("2026-01-01T10:05:00Z"), at("2026-01-01T10:10:00Z"));
            assert_eq!(schedule.latest(at(now)), Some(before), "{now}");
            assert_eq!(schedule.next(at(now)), Some(after), "{now}");
        }
    }

    #[test]
    fn six_fields_have_seconds() {
        let schedule = schedule("*/2 * * * * *", Tz::UTC);

        let slots = schedule.between(at("2026-01-01T10:00:00Z"), at("2026-01-01T10:00:05.5Z"), 10);

        assert_eq!(
            slots,
            [at("2026-01-01T10:00:04Z"), at("2026-01-01T10:00:02Z")]
        );
        let wrong = Schedule::parse("job", "every now and then", Tz::UTC, Duration::ZERO);
        assert!(wrong.is_err());
    }

    #[test]
    fn a_job_has_the_time_of_its_zone() {
        let shanghai = schedule("0 3 * * *", Tz::Asia__Shanghai);

        let next = shanghai.next(at("2026-01-01T10:00:00Z"));

        assert_eq!(next, Some(at("2026-01-01T19:00:00Z")));
    }

    // Europe/Berlin went from 02:00 to 03:00 on 29 March 2026, New York on 8 March.
    #[test]
    fn a_fixed_time_in_the_hour_that_is_skipped_runs_once_right_after_it() {
        let (from, to) = ("2026-03-28T22:00:00Z", "2026-03-29T21:00:00Z");

        let daily = slots("30 2 * * *", Tz::Europe__Berlin, from, to);

        assert_eq!(daily, ["03:00 +0200"]);
        let (from, to) = ("2026-03-08T04:00:00Z", "2026-03-09T04:00:00Z");
        let daily = slots("30 2 * * *", Tz::America__New_York, from, to);
        assert_eq!(daily, ["03:00 -0400"]);
    }

    #[test]
    fn an_interval_goes_on_through_the_hour_that_is_skipped() {
        let (from, to) = ("2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z");

        let often = slots("*/15 * * * *", Tz::Europe__Berlin, from, to);

        let expected = ["01:45 +0100", "03:00 +0200", "03:15 +0200", "03:30 +0200"];
        assert_eq!(often, expected);
        let hourly = slots("0 * * * *", Tz::Europe__Berlin, from, to);
        assert_eq!(hourly, ["03:00 +0200"]);
    }

    // Europe/Berlin went from 03:00 back to 02:00 on 25 October 2026.
    #[test]
    fn a_fixed_time_in_the_hour_that_comes_twice_runs_once_in_the_first() {
        let (from, to) = ("2026-10-24T22:00:00Z", "2026-10-25T22:00:00Z");

        let daily = slots("30 2 * * *", Tz::Europe__Berlin, from, to);

        assert_eq!(daily, ["02:30 +0200"]);
    }

    #[test]
    fn an_interval_runs_in_both_hours_that_are_called_the_same() {
        let (from, to) = ("2026-10-24T23:45:00Z", "2026-10-25T02:00:00Z");

        let often = slots("*/30 * * * *", Tz::Europe__Berlin, from, to);

        let expected = [
            "02:00 +0200",
            "02:30 +0200",
            "02:00 +0100",
            "02:30 +0100",
            "03:00 +0100",
        ];
        assert_eq!(often, expected);
        let hourly = slots("0 * * * *", Tz::Europe__Berlin, from, to);
        assert_eq!(hourly, ["02:00 +0200", "02:00 +0100", "03:00 +0100"]);
    }

    #[test]
    fn jitter_is_the_jobs_own_and_stays_below_the_interval() {
        let slot = at("2026-01-01T10:05:00Z");
        let offset = |job: &str| {
            let schedule = jittered(job, "*/5 * * * *", Duration::from_secs(3600));
            schedule.due_at(slot) - slot
        };
        let offsets: Vec<TimeDelta> = (0..100).map(|n| offset(&format!("job-{n}"))).collect();

        assert_eq!(offset("job-7"), offsets[7]);
        let bounds = TimeDelta::zero()..TimeDelta::seconds(150);
        assert!(offsets.iter().all(|offset| bounds.contains(offset)));
        // Spread: each fifth of the span has its share.
        for fifth in 0..5 {
            let part = TimeDelta::seconds(30 * fifth)..TimeDelta::seconds(30 * (fifth + 1));
            let count = offsets
                .iter()
                .filter(|offset| part.contains(offset))
                .count();
            assert!(count >= 8, "{count} of 100 in {part:?}");
        }
    }

    #[test]
    fn a_slot_is_not_due_before_its_jitter_is_over() {
        let schedule = jittered("note", "*/5 * * * *", Duration::from_secs(120));
        let (before, slot) = (at("2026-01-01T10:00:00Z"), at("2026-01-01T10:05:00Z"));
        let due = schedule.due_at(slot);
        assert!(due > slot);

        assert_eq!(schedule.latest_due(slot), Some(before));
        assert_eq!(schedule.next_due(slot), Some(due));
        assert_eq!(schedule.upcoming(slot, 2)[0], due);
        assert_eq!(schedule.latest_due(due), Some(slot));
        assert!(schedule.between(before, slot, 10).is_empty());
        assert_eq!(schedule.between(before, due, 10), [slot]);
    }

    #[test]
    fn any_schedule_that_is_read_has_slots_in_order() {
        const WORDS: [&str; 16] = [
            "*",
            " ",
            "* * * * *",
            "/5",
            "0",
            "59",
            "-",
            ",",
            "L",
            "MON",
            "#2",
            "@daily",
            "31",
            "2",
            "W",
            "60",
        ];
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        bolero::check!()
            .with_iterations(500)
            .with_max_len(10)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let Ok(schedule) =
                    Schedule::parse("any", &text, Tz::Europe__Berlin, Duration::ZERO)
                else {
                    return;
                };
                let (latest, next) = (schedule.latest(now), schedule.next(now));
                assert!(latest.is_none_or(|latest| latest <= now), "{text}");
                assert!(next.is_none_or(|next| next > now), "{text}");
            });
    }
}
