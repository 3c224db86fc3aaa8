//! Orders as clients read them, and the filters by which they list them.

use std::collections::HashMap;

use contracts::{Money, OrderId, PlanId, Timestamp, UserId};
use garde::Validate;
use platform::http::PageQuery;
use serde::{Deserialize, Deserializer, Serialize};
use sqlx::PgConnection;

use super::{Order, OrderState};
use crate::callers::Family;
use crate::payment::Method;
use crate::plan::{self, Plan, PlanReply};
use crate::times::Bound;

/// An order.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Order)]
pub struct OrderReply {
    pub id: OrderId,
    pub order_no: String,
    /// The same as `orderNo`.
    pub order_number: String,
    pub user_id: UserId,
    pub plan_id: PlanId,
    pub plan_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanReply>,
    pub amount: Money,
    pub discount_amount: Money,
    pub final_amount: Money,
    pub currency: String,
    /// Under `/orders` the state in upper case; under `/billing/orders` pending, paid, cancelled, refunded or expired.
    pub status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coupon_id: Option<String>,
    pub expires_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paid_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancelled_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refunded_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refund_amount: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<serde_json::Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl OrderReply {
    /// The order as a family of paths shows it.
    pub fn new(order: Order, plan: Option<Plan>, family: Family) -> Self {
        Self {
            id: order.id,
            order_number: order.order_no.clone(),
            order_no: order.order_no,
            user_id: order.user_id,
            plan_id: order.plan_id,
            plan_name: order.plan_name,
            plan: plan.map(PlanReply::from),
            amount: order.amount,
            discount_amount: order.discount_amount,
            final_amount: order.final_amount,
            currency: order.currency,
            status: match family {
                Family::Upper => order.state.name(),
                Family::Lower => order.state.five(),
            },
            payment_method: order.payment_method,
            transaction_id: order.transaction_id,
            coupon_id: order.coupon_id,
            expires_at: order.expires_at,
            paid_at: order.paid_at,
            cancelled_at: order.cancelled_at,
            refunded_at: order.refunded_at,
            refund_amount: Some(order.refund_amount).filter(|amount| *amount > Money::ZERO),
            remark: order.remark,
            metadata: order.metadata,
            created_at: order.created_at,
            updated_at: order.updated_at,
        }
    }

    /// The order with its plan.
    pub async fn load(conn: &mut PgConnection, order: Order, family: Family) -> sqlx::Result<Self> {
        let plan = plan::db::find(conn, order.plan_id.as_str()).await?;
        Ok(Self::new(order, plan, family))
    }

    /// Orders with their plans.
    pub async fn load_all(
        conn: &mut PgConnection,
        orders: Vec<Order>,
        family: Family,
    ) -> sqlx::Result<Vec<Self>> {
        let ids: Vec<PlanId> = orders.iter().map(|order| order.plan_id.clone()).collect();
        let plans = plan::db::list_by_id(conn, &ids).await?;
        let plans: HashMap<PlanId, Plan> = plans
            .into_iter()
            .map(|plan| (plan.id.clone(), plan))
            .collect();
        let reply = |order: Order| {
            let plan = plans.get(&order.plan_id).cloned();
            Self::new(order, plan, family)
        };
        Ok(orders.into_iter().map(reply).collect())
    }
}

/// A filter by status: one of the five words, or one state.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusFilter(pub Vec<OrderState>);

impl<'de> Deserialize<'de> for StatusFilter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let states: Vec<OrderState> = OrderState::ALL
            .into_iter()
            .filter(|state| state.name() == text || state.five() == text)
            .collect();
        if states.is_empty() {
            return Err(serde::de::Error::custom(
                "a status is pending, paid, cancelled, refunded, expired, or a state in upper case",
            ));
        }
        Ok(Self(states))
    }
}

/// Which orders are wanted.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct OrderQuery {
    /// Which page, from 1.
    #[garde(range(min = 1, max = 1_000_000_000))]
    pub page: Option<i64>,
    /// How many on a page, 1 to 500; default 10.
    #[garde(range(min = 1))]
    pub page_size: Option<i64>,
    /// The same as `pageSize`.
    #[garde(range(min = 1))]
    pub limit: Option<i64>,
    /// One of the five words, or one state in upper case.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub status: Option<StatusFilter>,
    #[param(inline)]
    #[garde(skip)]
    pub payment_method: Option<Method>,
    /// Part of the number or of the plan's name.
    #[garde(custom(crate::rules::text))]
    pub search: Option<String>,
    /// A day or a moment.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub start_date: Option<Bound>,
    /// A day or a moment, with which the span ends.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub end_date: Option<Bound>,
    /// Whose orders; an admin may name anybody.
    #[garde(skip)]
    pub user_id: Option<UserId>,
}

impl OrderQuery {
    /// The page wanted.
    pub fn page(&self) -> PageQuery {
        PageQuery {
            page: self.page,
            page_size: self.page_size,
            limit: self.limit,
            offset: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stands_for_its_states_and_a_state_for_itself() {
        let read = |text: &str| serde_json::from_value::<StatusFilter>(text.into());

        assert_eq!(
            read("paid").unwrap().0,
            [
                OrderState::Paid,
                OrderState::Completed,
                OrderState::Refunding
            ]
        );
        assert_eq!(read("PAID").unwrap().0, [OrderState::Paid]);
        assert!(read("unknown").is_err());
    }
}
