//! Quantities and prices with four decimals, and what they come to.

use contracts::Money;
use serde::{Deserialize, Deserializer, Serializer};

const ONE: f64 = 10_000.0;

/// Ten-thousandths of a yuan for one of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, sqlx::Type, utoipa::ToSchema)]
#[sqlx(transparent)]
#[schema(value_type = f64, example = 0.0125, description = "Yuan for one, with four decimals at most.")]
pub struct UnitPrice(pub i64);

/// Ten-thousandths of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[schema(value_type = f64, example = 1.5, description = "How much, with four decimals at most.")]
pub struct Quantity(pub i64);

impl UnitPrice {
    /// Reads a number of yuan: 0 to 1 000 000, with four decimals at most.
    pub fn from_yuan(yuan: f64) -> Option<Self> {
        ten_thousandths(yuan).map(Self)
    }

    /// What so many cost, rounded half up to fen.
    pub fn cost(self, quantity: Quantity) -> Money {
        let fen = (i128::from(self.0) * i128::from(quantity.0) + 500_000) / 1_000_000;
        Money(i64::try_from(fen).unwrap_or(i64::MAX))
    }

    /// The number of yuan.
    pub fn yuan(self) -> f64 {
        number(self.0)
    }
}

impl Quantity {
    /// So many whole ones.
    pub const fn whole(count: i64) -> Self {
        Self(count * 10_000)
    }

    /// The number.
    pub fn number(self) -> f64 {
        number(self.0)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn number(ten_thousandths: i64) -> f64 {
    ten_thousandths as f64 / ONE
}

fn ten_thousandths(number: f64) -> Option<i64> {
    if !(0.0..=1e6).contains(&number) {
        return None;
    }
    // The shortest text that reads back as this number is the one that was written.
    let text = format!("{number}");
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    if decimals.len() > 4 {
        return None;
    }
    format!("{whole}{decimals:0<4}").parse().ok()
}

impl<'de> Deserialize<'de> for UnitPrice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let price = Self::from_yuan(f64::deserialize(deserializer)?);
        price.ok_or_else(|| serde::de::Error::custom("must be 0 to 1000000, with four decimals"))
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let quantity = ten_thousandths(f64::deserialize(deserializer)?).filter(|parts| *parts > 0);
        let fault = "must be above 0, 1000000 at most, with four decimals";
        quantity
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom(fault))
    }
}

/// Writes a number without decimals where it has none.
#[expect(
    clippy::cast_possible_truncation,
    reason = "it is whole, and sums stay far below 2^53"
)]
pub fn plain<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if number.fract() == 0.0 && number.abs() < 9e15 {
        serializer.serialize_i64(*number as i64)
    } else {
        serializer.serialize_f64(*number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_rounded_half_up_to_fen() {
        for (quantity, price, fen) in [
            (60.0, 0.01, 60),
            (1.0, 0.005, 1),
            (1.0, 0.0049, 0),
            (2.5, 0.5, 125),
            (1_000_000.0, 1_000_000.0, 100_000_000_000_000),
        ] {
            let price = UnitPrice::from_yuan(price).unwrap();
            let quantity = Quantity(ten_thousandths(quantity).unwrap());

            assert_eq!(price.cost(quantity), Money(fen), "{price:?} {quantity:?}");
        }
        for bad in [0.00001, -1.0, f64::NAN, 1_000_001.0] {
            assert_eq!(UnitPrice::from_yuan(bad), None, "{bad}");
        }
    }
}
