//! Coupons: what lowers the price of one order. A coupon is used by the order that names it for as long as that order is
//! neither cancelled nor expired, and by one order at most.

pub mod api;
pub mod campaign;
pub mod db;

use contracts::event::PlanTerms;
use contracts::{Money, OrderId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::order::Order;
use crate::payment::{self, Funding, Method, Paying};
use crate::{Error, Result};

/// What a coupon's value means.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
#[schema(as = CouponType)]
pub enum Kind {
    /// So many percent less, rounded half up to fen.
    Discount,
    /// So many yuan less, the price at most.
    Amount,
    /// So many days of the plan for nothing, its own term at most.
    Trial,
}

/// Where a coupon stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
#[schema(as = CouponStatus)]
pub enum Status {
    Unused,
    Used,
    Expired,
}

/// A user's coupon.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Coupon {
    pub id: String,
    pub code: String,
    pub user_id: UserId,
    pub name: String,
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub kind: Kind,
    /// Percent of a discount, yuan of an amount, days of a trial.
    pub value: Money,
    /// The least price of an order that can use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_amount: Option<Money>,
    pub status: Status,
    pub start_time: Timestamp,
    pub end_time: Timestamp,
    /// The same as `endTime`.
    pub expires_at: Timestamp,
    /// The order that uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_id: Option<OrderId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl Coupon {
    /// Lowers an order that has no coupon yet: its discount, and the days of a trial.
    ///
    /// # Errors
    /// 409 where the coupon is used or not valid now, or the order has a coupon or is too small.
    pub fn lower(&self, order: &mut Order, now: Timestamp) -> Result<()> {
        if order.coupon_id.is_some() {
            return Err(Error::CouponUnusable("the order has a coupon already"));
        }
        match self.status {
            Status::Used => return Err(Error::CouponUnusable("the coupon is used")),
            Status::Expired => return Err(Error::CouponUnusable("the coupon has expired")),
            Status::Unused if now < self.start_time => {
                return Err(Error::CouponUnusable("the coupon is not valid yet"));
            }
            Status::Unused => {}
        }
        if self.min_amount.is_some_and(|least| order.amount < least) {
            return Err(Error::CouponUnusable(
                "the order is smaller than the coupon asks for",
            ));
        }
        order.discount_amount = self.discount(order.amount);
        order.final_amount = order.amount - order.discount_amount;
        if self.kind == Kind::Trial {
            shorten(&mut order.terms.0, self.value.fen() / 100);
        }
        order.coupon_id = Some(self.id.clone());
        order.coupon_used_at = Some(now);
        Ok(())
    }

    /// What it takes off a price: never more than that.
    fn discount(&self, price: Money) -> Money {
        match self.kind {
            Kind::Discount => Money((price.fen() * self.value.fen() + 5_000) / 10_000).min(price),
            Kind::Amount => self.value.min(price),
            Kind::Trial => price,
        }
    }
}

fn shorten(terms: &mut PlanTerms, days: i64) {
    terms.days = terms.days.min(days);
}

/// Pays a locked order that a coupon left nothing of: no money moves.
///
/// # Errors
/// 409 where it is no longer pending: roll back.
pub async fn pay_nothing(conn: &mut PgConnection, order: &Order, now: Timestamp) -> Result<Order> {
    let paying = Paying {
        method: Method::of_order(order),
        transaction_id: None,
        payment: None,
        operator_id: None,
    };
    Ok(payment::pay(conn, order, paying, Funding::Outside, now)
        .await?
        .0)
}

/// Tells the refusal of a coupon that another order took meanwhile from a store that failed.
pub fn refuse_second(error: sqlx::Error) -> Error {
    let database = error.as_database_error();
    match database.and_then(|error| error.constraint()) {
        Some("orders_coupon_once") => Error::CouponUnusable("the coupon is used"),
        _ => error.into(),
    }
}

/// Whether a value is one of its kind: percent to 100, yuan to a million, whole days to ten years.
///
/// # Errors
/// 400 where it is not.
pub fn check_value(kind: Kind, value: Money) -> Result<()> {
    let good = match kind {
        Kind::Discount => (1..=10_000).contains(&value.fen()),
        Kind::Amount => (1..=Money::MAX_INPUT.fen()).contains(&value.fen()),
        Kind::Trial => value.fen() % 100 == 0 && (100..=366_000).contains(&value.fen()),
    };
    let wanted = "must be 0.01 to 100 percent, 0.01 to 1000000 yuan, or 1 to 3660 whole days";
    if good {
        Ok(())
    } else {
        Err(platform::Problem::invalid_field("value", wanted).into())
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use platform::Clock;

    use super::*;
    use crate::order::OrderState;
    use crate::order::tests::order;

    fn coupon(kind: Kind, value: i64, now: Timestamp) -> Coupon {
        Coupon {
            id: "c".into(),
            code: "C".into(),
            user_id: "u".parse().unwrap(),
            name: "c".into(),
            kind,
            value: Money(value),
            min_amount: None,
            status: Status::Unused,
            start_time: now,
            end_time: now + TimeDelta::days(1),
            expires_at: now + TimeDelta::days(1),
            order_id: None,
            used_at: None,
            created_at: now,
        }
    }

    #[test]
    fn an_order_is_lowered_by_what_the_coupon_says_and_never_below_nothing() {
        let now = Clock::system().now();
        for (kind, value, discount, days) in [
            (Kind::Discount, 2_000, 1_980, 30),
            (Kind::Discount, 1, 1, 30),
            (Kind::Discount, 10_000, 9_900, 30),
            (Kind::Amount, 1_050, 1_050, 30),
            (Kind::Amount, 99_999, 9_900, 30),
            (Kind::Trial, 700, 9_900, 7),
            (Kind::Trial, 90_000, 9_900, 30),
        ] {
            let mut order = order(OrderState::Pending, now);

            coupon(kind, value, now).lower(&mut order, now).unwrap();

            assert_eq!(order.discount_amount, Money(discount), "{kind:?} {value}");
            assert_eq!(order.final_amount, Money(9_900 - discount));
            assert_eq!(order.terms.days, days, "{kind:?} {value}");
            assert!(coupon(kind, value, now).lower(&mut order, now).is_err());
        }
    }

    #[test]
    fn a_coupon_that_does_not_hold_lowers_nothing() {
        let now = Clock::system().now();
        let good = coupon(Kind::Amount, 100, now);
        for bad in [
            Coupon {
                status: Status::Used,
                ..good.clone()
            },
            Coupon {
                status: Status::Expired,
                ..good.clone()
            },
            Coupon {
                start_time: now + TimeDelta::milliseconds(1),
                ..good.clone()
            },
            Coupon {
                min_amount: Some(Money(9_901)),
                ..good
            },
        ] {
            let mut order = order(OrderState::Pending, now);

            assert!(bad.lower(&mut order, now).is_err());
            assert_eq!(order.final_amount, order.amount);
        }
    }

    #[test]
    fn a_value_is_bounded_by_its_kind() {
        for (kind, value, good) in [
            (Kind::Discount, 0, false),
            (Kind::Discount, 10_000, true),
            (Kind::Discount, 10_001, false),
            (Kind::Amount, 100_000_000, true),
            (Kind::Amount, 100_000_001, false),
            (Kind::Trial, 100, true),
            (Kind::Trial, 150, false),
            (Kind::Trial, 366_100, false),
        ] {
            assert_eq!(check_value(kind, Money(value)).is_ok(), good, "{value}");
        }
    }
}
