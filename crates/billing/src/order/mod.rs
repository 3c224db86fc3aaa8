//! Orders: purchases of plans, their states, and who may see and change them.

pub mod admin;
pub mod api;
pub mod db;
pub mod jobs;
pub mod refund;
pub mod reply;

use contracts::event::PlanTerms;
use contracts::{EventBody, Money, OrderId, PlanId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;

use crate::{Error, Result};

/// The states of an order.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "UPPERCASE")]
#[sqlx(type_name = "text", rename_all = "UPPERCASE")]
pub enum OrderState {
    /// Waits for its payment.
    Pending,
    /// Paid; its term runs.
    Paid,
    /// Paid, and its term is over.
    Completed,
    /// Given up by its user or an admin.
    Cancelled,
    /// Not paid in time.
    Expired,
    /// On the way back to the user.
    Refunding,
    /// All of it given back.
    Refunded,
    /// Could not be carried out.
    Failed,
}

impl OrderState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Paid,
        Self::Completed,
        Self::Cancelled,
        Self::Expired,
        Self::Refunding,
        Self::Refunded,
        Self::Failed,
    ];

    /// The state in upper case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Paid => "PAID",
            Self::Completed => "COMPLETED",
            Self::Cancelled => "CANCELLED",
            Self::Expired => "EXPIRED",
            Self::Refunding => "REFUNDING",
            Self::Refunded => "REFUNDED",
            Self::Failed => "FAILED",
        }
    }

    /// The state as one of five lower-case words.
    pub const fn five(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Paid | Self::Completed | Self::Refunding => "paid",
            Self::Cancelled | Self::Failed => "cancelled",
            Self::Expired => "expired",
            Self::Refunded => "refunded",
        }
    }
}

/// An order, as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Order {
    pub id: OrderId,
    pub order_no: String,
    pub user_id: UserId,
    pub plan_id: PlanId,
    pub plan_name: String,
    /// What the plan allowed when it was ordered.
    pub terms: Json<PlanTerms>,
    pub amount: Money,
    pub discount_amount: Money,
    pub final_amount: Money,
    pub currency: String,
    pub state: OrderState,
    pub payment_method: Option<String>,
    pub transaction_id: Option<String>,
    pub coupon_id: Option<String>,
    pub coupon_used_at: Option<Timestamp>,
    pub expires_at: Timestamp,
    pub paid_at: Option<Timestamp>,
    pub cancelled_at: Option<Timestamp>,
    pub refunded_at: Option<Timestamp>,
    pub refund_amount: Money,
    pub remark: Option<String>,
    pub metadata: Option<serde_json::Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Order {
    /// Whether it can be paid: it waits for it, and its time is not over, whether the cron has come or not.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn payable(&self, now: Timestamp) -> Result<()> {
        if self.state != OrderState::Pending {
            return Err(Error::OrderState {
                state: self.state,
                wanted: "paid",
            });
        }
        if now >= self.expires_at {
            return Err(Error::OrderTooLate);
        }
        Ok(())
    }

    /// Whether an amount that was sent along is the one due.
    ///
    /// # Errors
    /// Where it is another one.
    pub fn agrees(&self, amount: Option<Money>) -> Result<()> {
        match amount {
            Some(got) if got != self.final_amount => Err(Error::AmountMismatch {
                got,
                due: self.final_amount,
            }),
            _ => Ok(()),
        }
    }

    /// How much of it can be refunded: all of it by default.
    ///
    /// # Errors
    /// Where it is not paid, or less is left.
    pub fn refundable(&self, wanted: Option<Money>) -> Result<Money> {
        let left = self.final_amount - self.refund_amount;
        let refused = match self.state {
            OrderState::Paid | OrderState::Completed => None,
            OrderState::Refunding => Some("refunded again before the refund on its way is made"),
            _ => Some("refunded"),
        };
        if let Some(wanted) = refused {
            return Err(Error::OrderState {
                state: self.state,
                wanted,
            });
        }
        let amount = wanted.unwrap_or(left);
        if amount <= Money::ZERO || amount > left {
            return Err(Error::RefundTooLarge { left });
        }
        Ok(amount)
    }

    /// The event of its being cancelled.
    pub fn cancelled(&self) -> EventBody {
        EventBody::OrderCancelled {
            order_id: self.id.clone(),
            order_no: self.order_no.clone(),
            amount: self.final_amount,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use chrono::TimeDelta;
    use platform::Clock;

    use super::*;

    pub fn order(state: OrderState, now: Timestamp) -> Order {
        Order {
            id: OrderId::new(),
            order_no: "ORD1".into(),
            user_id: "u".parse().unwrap(),
            plan_id: "basic".parse().unwrap(),
            plan_name: "Basic".into(),
            terms: Json(PlanTerms {
                name: "Basic".into(),
                days: 30,
                max_devices: 5,
                cpu_cores: 2,
                memory_mb: 2_048,
                storage_mb: 16_384,
                storage_quota_gb: 80,
                traffic_quota_gb: 500,
            }),
            amount: Money::yuan(99),
            discount_amount: Money::ZERO,
            final_amount: Money::yuan(99),
            currency: "CNY".into(),
            state,
            payment_method: None,
            transaction_id: None,
            coupon_id: None,
            coupon_used_at: None,
            expires_at: now + TimeDelta::minutes(30),
            paid_at: None,
            cancelled_at: None,
            refunded_at: None,
            refund_amount: Money::ZERO,
            remark: None,
            metadata: None,
            created_at: now,
            updated_at: now,
        }
    }

    #[test]
    fn only_a_pending_order_in_time_is_payable() {
        let now = Clock::system().now();
        for state in OrderState::ALL {
            let order = order(state, now);

            let pending = state == OrderState::Pending;
            assert_eq!(order.payable(now).is_ok(), pending, "{state:?}");
            assert!(order.payable(order.expires_at).is_err(), "{state:?}");
        }
    }

    #[test]
    fn no_more_is_refunded_than_is_left() {
        let mut order = order(OrderState::Paid, Clock::system().now());
        order.refund_amount = Money::yuan(90);

        assert_eq!(order.refundable(None).unwrap(), Money::yuan(9));
        assert_eq!(order.refundable(Some(Money(1))).unwrap(), Money(1));
        assert!(order.refundable(Some(Money(901))).is_err());
        order.refund_amount = order.final_amount;
        assert!(order.refundable(None).is_err());
        order.state = OrderState::Pending;
        assert!(order.refundable(Some(Money(1))).is_err());
    }
}
