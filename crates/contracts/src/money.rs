//! Money: an integer number of fen (hundredths of a yuan), a JSON number in yuan on the wire.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Neg, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount in fen. Arithmetic panics in debug builds and wraps nowhere in practice: the largest amount accepted from
/// outside is a million yuan.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type, utoipa::ToSchema,
)]
#[sqlx(transparent)]
#[schema(value_type = f64, example = 99.0, description = "Yuan, with two decimals at most.")]
pub struct Money(pub i64);

/// A number that is not an amount of money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an amount is a number of yuan with at most two decimals")]
pub struct InvalidMoney;

impl Money {
    /// No money.
    pub const ZERO: Self = Self(0);
    /// The largest amount accepted from outside: 1 000 000 yuan.
    pub const MAX_INPUT: Self = Self(100_000_000);

    /// The amount of whole yuan.
    pub const fn yuan(yuan: i64) -> Self {
        Self(yuan * 100)
    }

    /// The amount in fen.
    pub const fn fen(self) -> i64 {
        self.0
    }

    /// Reads a number of yuan; more than two decimals, NaN, infinities and what exceeds ±10^12 yuan are refused.
    ///
    /// # Errors
    /// [`InvalidMoney`] where the number is none of the amounts a client may name.
    pub fn from_yuan(yuan: f64) -> Result<Self, InvalidMoney> {
        if !yuan.is_finite() || yuan.abs() > 1e12 {
            return Err(InvalidMoney);
        }
        // The shortest text that reads back as this number is the one that the client wrote.
        let text = format!("{yuan}");
        let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
        if decimals.len() > 2 {
            return Err(InvalidMoney);
        }
        format!("{whole}{decimals:0<2}")
            .parse()
            .map(Self)
            .map_err(|_| InvalidMoney)
    }
}

impl FromStr for Money {
    type Err = InvalidMoney;

    /// Reads yuan as providers write them: digits, with one or two decimals or none, up to a trillion.
    fn from_str(text: &str) -> Result<Self, InvalidMoney> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "00"));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if !(1..=12).contains(&whole.len())
            || !(1..=2).contains(&decimals.len())
            || !digits(whole)
            || !digits(decimals)
        {
            return Err(InvalidMoney);
        }
        let fen = format!("{whole}{decimals:0<2}").parse();
        fen.map(Self).map_err(|_| InvalidMoney)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(
            f,
            "{sign}{}.{:02}",
            self.0.unsigned_abs() / 100,
            self.0.unsigned_abs() % 100
        )
    }
}

impl Serialize for Money {
    #[expect(
        clippy::cast_precision_loss,
        reason = "amounts stay far below 2^53 fen"
    )]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 % 100 == 0 {
            serializer.serialize_i64(self.0 / 100)
        } else {
            serializer.serialize_f64(self.0 as f64 / 100.0)
        }
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_yuan(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Add for Money {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sub for Money {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl Neg for Money {
    type Output = Self;

    fn neg(self) -> Self {
        Self(-self.0)
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_has_at_most_two_decimals() {
        for (text, fen) in [
            ("0.01", 1),
            ("99", 9_900),
            ("99.9", 9_990),
            ("1000000", 100_000_000),
            ("-0.5", -50),
            ("1e2", 10_000),
        ] {
            assert_eq!(
                serde_json::from_str::<Money>(text).unwrap(),
                Money(fen),
                "{text}"
            );
        }
        for text in [
            "0.001",
            "1.005",
            "\"1\"",
            "1e400",
            "1e13",
            "null",
            "0.30000000000000004",
        ] {
            assert!(serde_json::from_str::<Money>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_amount_survives_the_wire() {
        for fen in (0..200_000).chain([99_999_999, 100_000_000]) {
            let text = serde_json::to_string(&Money(fen)).unwrap();

            assert_eq!(
                serde_json::from_str::<Money>(&text).unwrap(),
                Money(fen),
                "{text}"
            );
        }
    }

    #[test]
    fn any_amount_survives_the_wire() {
        // What is read is at most a trillion yuan either way.
        const MOST: i64 = 100_000_000_000_000;
        bolero::check!()
            .with_generator(-MOST..=MOST)
            .with_iterations(5_000)
            .for_each(|fen| {
                let text = serde_json::to_string(&Money(*fen)).unwrap();
                assert_eq!(serde_json::from_str::<Money>(&text).unwrap(), Money(*fen));
                assert_eq!(
                    Money(*fen).to_string().parse::<f64>().unwrap(),
                    text.parse::<f64>().unwrap()
                );
            });
    }

    #[test]
    fn any_number_is_the_amount_it_says_or_none() {
        bolero::check!()
            .with_type::<f64>()
            .with_iterations(5_000)
            .for_each(|yuan| {
                if let Ok(money) = Money::from_yuan(*yuan) {
                    assert_eq!(money.to_string().parse::<f64>().unwrap(), *yuan);
                }
            });
    }

    #[test]
    fn yuan_are_read_from_text_exactly() {
        for (text, fen) in [("0.01", 1), ("99", 9_900), ("99.9", 9_990), ("000.10", 10)] {
            assert_eq!(text.parse(), Ok(Money(fen)), "{text}");
        }
        for text in [
            "",
            ".1",
            "1.",
            "1.001",
            "1e2",
            "-1",
            "+1",
            " 1",
            "1,0",
            "1234567890123",
        ] {
            assert_eq!(text.parse::<Money>(), Err(InvalidMoney), "{text}");
        }
    }
}
