//! The bounds of a filter by time: a moment, or a whole day.

use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, Utc};
use contracts::Timestamp;
use serde::{Deserialize, Deserializer};

/// A moment, or a day in UTC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// `2025-10-22T08:00:00.000Z`.
    Moment(Timestamp),
    /// `2025-10-22`.
    Day(NaiveDate),
}

impl Bound {
    /// The first moment that belongs to it.
    pub fn start(self) -> Timestamp {
        match self {
            Self::Moment(moment) => moment,
            Self::Day(day) => day.and_time(chrono::NaiveTime::MIN).and_utc().into(),
        }
    }

    /// The last moment that belongs to it.
    pub fn end(self) -> Timestamp {
        match self {
            Self::Moment(moment) => moment,
            Self::Day(_) => self.start() + TimeDelta::days(1) - TimeDelta::milliseconds(1),
        }
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let unknown =
            || serde::de::Error::custom("a time is 2025-10-22 or 2025-10-22T08:00:00.000Z");
        // Years of four digits: chrono knows others, with which the store and a day's end cannot reckon.
        let known = |day: NaiveDate| (1..=9999).contains(&day.year());
        if let Ok(day) = text.parse::<NaiveDate>() {
            return known(day).then_some(Self::Day(day)).ok_or_else(unknown);
        }
        let moment: DateTime<Utc> = text.parse().map_err(|_| unknown())?;
        known(moment.date_naive())
            .then(|| Self::Moment(moment.into()))
            .ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_ends_with_its_last_millisecond() {
        let day: Bound = serde_json::from_str("\"2025-10-22\"").unwrap();

        assert_eq!(day.start().to_string(), "2025-10-22T00:00:00.000Z");
        assert_eq!(day.end().to_string(), "2025-10-22T23:59:59.999Z");
        for text in [
            "soon",
            "+262142-12-31",
            "-4800-01-01",
            "-4800-01-01T00:00:00Z",
            "+10000-01-01T00:00:00Z",
        ] {
            assert!(
                serde_json::from_value::<Bound>(text.into()).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn any_bound_begins_before_it_ends() {
        const WORDS: [&str; 12] = [
            "2025-10-22",
            "T",
            "08:00:00",
            "Z",
            ".999",
            "+",
            "-",
            "9999-12-31",
            "01:00",
            "0001-01-01",
            "24:00:00",
            "10",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(8)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                if let Ok(bound) = serde_json::from_value::<Bound>(text.as_str().into()) {
                    assert!(bound.start() <= bound.end(), "{text}");
                    assert!((1..=9999).contains(&bound.end().utc().year()), "{text}");
                }
            });
    }
}
