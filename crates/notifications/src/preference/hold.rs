//! When what leaves the platform may leave: after quiet hours, or with a digest.

use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;
use contracts::Timestamp;
use serde::{Deserialize, Serialize};

use super::Digest;

/// When a daily digest leaves.
const MORNING: NaiveTime = match NaiveTime::from_hms_opt(9, 0, 0) {
    Some(time) => time,
    None => NaiveTime::MIN,
};

/// A part of each day, over midnight where it ends before it begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuietHours {
    /// When they begin, as in `22:00`.
    #[schema(value_type = String, example = "22:00")]
    pub from: ClockTime,
    /// When they end, as in `07:00`.
    #[schema(value_type = String, example = "07:00")]
    pub to: ClockTime,
    /// By whose clock, as in `Asia/Shanghai`; the days of digests are those of this clock, too.
    #[schema(value_type = String, example = "Asia/Shanghai")]
    pub time_zone: Zone,
}

/// A time of the day, to the minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClockTime(NaiveTime);

/// A time zone by its name in the IANA database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(Tz);

impl TryFrom<String> for ClockTime {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let time = NaiveTime::parse_from_str(&text, "%H:%M");
        time.map(Self)
            .map_err(|_| "a time of the day is written as in 22:00")
    }
}

impl From<ClockTime> for String {
    fn from(time: ClockTime) -> Self {
        time.0.format("%H:%M").to_string()
    }
}

impl TryFrom<String> for Zone {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let zone = text.parse();
        zone.map(Self)
            .map_err(|_| "a time zone is named as in Asia/Shanghai")
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.0.name().to_owned()
    }
}

/// The first moment, not before now, at which something may leave.
pub fn leaves_at(quiet: Option<&QuietHours>, digest: Digest, now: Timestamp) -> Timestamp {
    let zone = quiet.map_or(Tz::UTC, |quiet| quiet.time_zone.0);
    let now = now.utc().with_timezone(&zone);
    let gathered = match digest {
        Digest::Off => now,
        Digest::Hourly => {
            let begun = now - TimeDelta::minutes(now.minute().into()) - within_minute(&now);
            begun + TimeDelta::hours(1)
        }
        Digest::Daily => next(&now, MORNING),
    };
    let free = match quiet {
        Some(quiet) if quiet.cover(gathered.time()) => next(&gathered, quiet.to.0),
        _ => gathered,
    };
    free.with_timezone(&Utc).into()
}

impl QuietHours {
    fn cover(&self, time: NaiveTime) -> bool {
        let (from, to) = (self.from.0, self.to.0);
        if from <= to {
            from <= time && time < to
        } else {
            from <= time || time < to
        }
    }
}

fn within_minute(time: &DateTime<Tz>) -> TimeDelta {
    TimeDelta::seconds(time.second().into()) + TimeDelta::nanoseconds(time.nanosecond().into())
}

/// When the clock shows a time next.
fn next(after: &DateTime<Tz>, time: NaiveTime) -> DateTime<Tz> {
    let today = after.date_naive();
    let tomorrow = today.checked_add_days(Days::new(1)).unwrap_or(today);
    [today, tomorrow]
        .into_iter()
        .flat_map(|day| at(&after.timezone(), day, time))
        .find(|moment| moment > after)
        .unwrap_or_else(|| *after + TimeDelta::days(1))
}

/// A day's moments at which the clock shows a time, in order: two where it is set back, else the same one twice, and the hour
/// after where it is set forward over it.
fn at(zone: &Tz, day: NaiveDate, time: NaiveTime) -> [DateTime<Tz>; 2] {
    let local = day.and_time(time);
    let shown = zone.from_local_datetime(&local);
    let later = || {
        let shown = zone.from_local_datetime(&(local + TimeDelta::hours(1)));
        shown.earliest()
    };
    let otherwise = || later().unwrap_or_else(|| zone.from_utc_datetime(&local));
    [shown.earliest(), shown.latest()].map(|moment| moment.unwrap_or_else(otherwise))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet(from: &str, to: &str, zone: &str) -> QuietHours {
        serde_json::from_value(serde_json::json!({ "from": from, "to": to, "timeZone": zone }))
            .unwrap()
    }

    fn moment(text: &str) -> Timestamp {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc().into()
    }

    #[test]
    fn quiet_hours_that_end_in_the_repeated_hour_end_in_the_second_of_it_too() {
        let autumn = quiet("01:00", "02:30", "Europe/Berlin");
        let second = moment("2026-10-25T01:15:00Z");
        let leaves = leaves_at(Some(&autumn), Digest::Off, second);
        assert_eq!(leaves, moment("2026-10-25T01:30:00Z"));
    }

    #[test]
    fn what_comes_in_quiet_hours_waits_for_their_end_by_the_users_clock() {
        let night = quiet("22:00", "07:00", "Asia/Shanghai");
        let noon = quiet("12:00", "13:30", "UTC");
        let spring = quiet("01:00", "02:30", "Europe/Berlin");
        for (quiet, digest, now, leaves) in [
            (
                &night,
                Digest::Off,
                "2026-01-10T15:00:00Z",
                "2026-01-10T23:00:00Z",
            ),
            (
                &night,
                Digest::Off,
                "2026-01-10T20:00:00Z",
                "2026-01-10T23:00:00Z",
            ),
            (
                &night,
                Digest::Off,
                "2026-01-10T23:00:00Z",
                "2026-01-10T23:00:00Z",
            ),
            (
                &night,
                Digest::Off,
                "2026-01-10T13:59:59Z",
                "2026-01-10T13:59:59Z",
            ),
            (
                &noon,
                Digest::Off,
                "2026-01-10T12:00:00Z",
                "2026-01-10T13:30:00Z",
            ),
            (
                &noon,
                Digest::Hourly,
                "2026-01-10T11:20:01Z",
                "2026-01-10T13:30:00Z",
            ),
            (
                &noon,
                Digest::Hourly,
                "2026-01-10T15:00:00Z",
                "2026-01-10T16:00:00Z",
            ),
            (
                &noon,
                Digest::Daily,
                "2026-01-10T08:59:00Z",
                "2026-01-10T09:00:00Z",
            ),
            (
                &noon,
                Digest::Daily,
                "2026-01-10T09:00:00Z",
                "2026-01-11T09:00:00Z",
            ),
            (
                &night,
                Digest::Daily,
                "2026-01-10T15:00:00Z",
                "2026-01-11T01:00:00Z",
            ),
            // The clock springs from 02:00 to 03:00.
            (
                &spring,
                Digest::Off,
                "2026-03-29T00:30:00Z",
                "2026-03-29T01:30:00Z",
            ),
        ] {
            let told = leaves_at(Some(quiet), digest, moment(now));
            assert_eq!(told, moment(leaves), "{now}");
        }
        assert_eq!(
            leaves_at(None, Digest::Off, moment("2026-01-10T15:00:00Z")),
            moment("2026-01-10T15:00:00Z")
        );
    }

    #[test]
    fn any_quiet_hours_end_within_two_days_and_never_lead_back() {
        bolero::check!()
            .with_type::<(u16, u16, u8, u8, i32)>()
            .with_iterations(3_000)
            .for_each(|(from, to, zone, digest, seconds)| {
                let clock =
                    |minutes: &u16| format!("{:02}:{:02}", minutes % 1_440 / 60, minutes % 60);
                let zone =
                    chrono_tz::TZ_VARIANTS[usize::from(*zone) % chrono_tz::TZ_VARIANTS.len()];
                let quiet = quiet(&clock(from), &clock(to), zone.name());
                let digest = [Digest::Off, Digest::Hourly, Digest::Daily][usize::from(*digest % 3)];
                let now: Timestamp = DateTime::from_timestamp(i64::from(*seconds), 0)
                    .unwrap()
                    .into();
                let leaves = leaves_at(Some(&quiet), digest, now);
                let wait = leaves.utc() - now.utc();
                assert!(
                    wait >= TimeDelta::zero() && wait <= TimeDelta::hours(75),
                    "{quiet:?} {now} {leaves}"
                );
            });
    }

    #[test]
    fn nonsense_is_no_time_and_no_zone() {
        for (from, zone) in [("25:00", "UTC"), ("noon", "UTC"), ("12:00", "Mars/Base")] {
            let read = serde_json::from_value::<QuietHours>(
                serde_json::json!({ "from": from, "to": "07:00", "timeZone": zone }),
            );
            assert!(read.is_err(), "{from} {zone}");
        }
    }
}
