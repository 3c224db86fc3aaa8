//! Times: UTC with milliseconds, `2025-10-22T08:00:00.000Z` on the wire, `timestamptz` in the store.

use std::fmt;
use std::ops::{Add, Sub};

use chrono::{DateTime, Datelike, SecondsFormat, SubsecRound, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment in UTC, cut to milliseconds so that what was stored reads back the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type, utoipa::ToSchema)]
#[sqlx(transparent)]
#[schema(value_type = String, format = DateTime, example = "2025-10-22T08:00:00.000Z")]
pub struct Timestamp(DateTime<Utc>);

impl Timestamp {
    /// The moment as chrono has it.
    pub fn utc(self) -> DateTime<Utc> {
        self.0
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        Self(time.trunc_subsecs(3))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let time = DateTime::<Utc>::deserialize(deserializer)?;
        // chrono knows other years, which the store does not and with which no one can reckon.
        if (1..=9999).contains(&time.year()) {
            Ok(Self::from(time))
        } else {
            Err(serde::de::Error::custom("a year has four digits"))
        }
    }
}

impl Add<TimeDelta> for Timestamp {
    type Output = Self;

    fn add(self, span: TimeDelta) -> Self {
        Self(self.0 + span)
    }
}

impl Sub<TimeDelta> for Timestamp {
    type Output = Self;

    fn sub(self, span: TimeDelta) -> Self {
        Self(self.0 - span)
    }
}

impl Sub for Timestamp {
    type Output = TimeDelta;

    fn sub(self, other: Self) -> TimeDelta {
        self.0 - other.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Timestamp> {
        serde_json::from_value(text.into()).ok()
    }

    #[test]
    fn years_of_other_than_four_digits_are_refused() {
        assert!(read("9999-12-31T23:59:59.999Z").is_some());
        assert!(read("0001-01-01T00:00:00Z").is_some());
        for text in [
            "0000-12-31T23:59:59Z",
            "-4800-01-01T00:00:00Z",
            "+10000-01-01T00:00:00Z",
            "+262142-12-31T23:59:59Z",
            "9999-12-31T23:59:59-01:00",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn any_moment_survives_the_wire_and_can_be_reckoned_with() {
        bolero::check!()
            .with_type::<i64>()
            .with_iterations(3_000)
            .for_each(|seconds| {
                let Some(time) =
                    DateTime::from_timestamp(*seconds % 9_000_000_000_000, 999_999_999)
                else {
                    return;
                };
                let time = Timestamp::from(time);
                if let Some(back) = read(&time.to_string()) {
                    assert_eq!(back, time);
                    assert_eq!(time.to_string().len(), "2025-10-22T08:00:00.000Z".len());
                    let century = TimeDelta::days(36_525);
                    assert_eq!(back + century - century, time);
                }
            });
    }
}
