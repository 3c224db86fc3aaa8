//! Domain events: what one service did and others act on.

use serde::{Deserialize, Serialize};

use crate::{
    AppId, CreditHoldId, DeviceId, EventId, Money, NotificationId, OrderId, PlanId, TaskId,
    Timestamp, TransactionId, UserId,
};

/// An event as it stands in the outbox and in the stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Names the event; a consumer that has recorded it does nothing more.
    pub id: EventId,
    /// Whom it concerns.
    pub user_id: UserId,
    /// When its effect was written.
    pub occurred_at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

impl Event {
    /// An event of now.
    pub fn new(user_id: UserId, occurred_at: Timestamp, body: EventBody) -> Self {
        Self {
            id: EventId::new(),
            user_id,
            occurred_at,
            body,
        }
    }
}

/// What happened, with the facts that others need.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all_fields = "camelCase")]
pub enum EventBody {
    /// A user registered.
    #[serde(rename = "user.registered")]
    UserRegistered { username: String },
    /// A user changed the password; other sessions have ended.
    #[serde(rename = "user.password_changed")]
    PasswordChanged {},
    /// An account was locked after too many wrong passwords.
    #[serde(rename = "user.locked")]
    UserLocked { until: Timestamp },
    /// A session ended; its sockets close.
    #[serde(rename = "session.ended")]
    SessionEnded { session_id: crate::SessionId },

    /// A device was accepted, with its ports.
    #[serde(rename = "device.created")]
    DeviceCreated { device_id: DeviceId, name: String },
    /// A device changed its status; both as on the wire. Where both are the same, its ports are others now.
    #[serde(rename = "device.status_changed")]
    DeviceStatusChanged {
        device_id: DeviceId,
        name: String,
        status: String,
        previous_status: String,
        error: Option<String>,
    },
    /// A device is gone, its ports returned.
    #[serde(rename = "device.deleted")]
    DeviceDeleted { device_id: DeviceId, name: String },

    /// A package was stored.
    #[serde(rename = "app.uploaded")]
    AppUploaded {
        app_id: AppId,
        package_name: String,
        version_code: i64,
    },

    /// An order was placed.
    #[serde(rename = "order.created")]
    OrderCreated {
        order_id: OrderId,
        order_no: String,
        plan_id: PlanId,
        amount: Money,
    },
    /// An order was paid: once in its life.
    #[serde(rename = "order.paid")]
    OrderPaid {
        order_id: OrderId,
        order_no: String,
        plan_id: PlanId,
        amount: Money,
        payment_no: Option<String>,
    },
    /// An order was cancelled by its user or an admin.
    #[serde(rename = "order.cancelled")]
    OrderCancelled {
        order_id: OrderId,
        order_no: String,
        amount: Money,
    },
    /// An order was not paid in time.
    #[serde(rename = "order.expired")]
    OrderExpired {
        order_id: OrderId,
        order_no: String,
        amount: Money,
    },
    /// A payment came for an order that could no longer take it, and was given back.
    #[serde(rename = "payment.refunded")]
    PaymentRefunded {
        order_id: OrderId,
        order_no: String,
        amount: Money,
    },
    /// The provider reported that a payment failed.
    #[serde(rename = "payment.failed")]
    PaymentFailed {
        order_id: OrderId,
        order_no: String,
        amount: Money,
    },
    /// The available balance moved.
    #[serde(rename = "balance.changed")]
    BalanceChanged {
        transaction_id: TransactionId,
        balance: Money,
    },

    /// A media task asks billing to set credits aside.
    #[serde(rename = "credits.hold_requested")]
    CreditHoldRequested {
        hold_id: CreditHoldId,
        task_id: TaskId,
        credits: i64,
    },
    /// A media task reached a final state.
    #[serde(rename = "task.finished")]
    TaskFinished {
        task_id: TaskId,
        kind: String,
        status: String,
        error_code: Option<String>,
    },

    /// A notification was stored.
    #[serde(rename = "notification.stored")]
    NotificationStored { notification_id: NotificationId },
}

impl EventBody {
    /// The name of the event, as in `order.paid`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::UserRegistered { .. } => "user.registered",
            Self::PasswordChanged { .. } => "user.password_changed",
            Self::UserLocked { .. } => "user.locked",
            Self::SessionEnded { .. } => "session.ended",
            Self::DeviceCreated { .. } => "device.created",
            Self::DeviceStatusChanged { .. } => "device.status_changed",
            Self::DeviceDeleted { .. } => "device.deleted",
            Self::AppUploaded { .. } => "app.uploaded",
            Self::OrderCreated { .. } => "order.created",
            Self::OrderPaid { .. } => "order.paid",
            Self::OrderCancelled { .. } => "order.cancelled",
            Self::OrderExpired { .. } => "order.expired",
            Self::PaymentRefunded { .. } => "payment.refunded",
            Self::PaymentFailed { .. } => "payment.failed",
            Self::BalanceChanged { .. } => "balance.changed",
            Self::CreditHoldRequested { .. } => "credits.hold_requested",
            Self::TaskFinished { .. } => "task.finished",
            Self::NotificationStored { .. } => "notification.stored",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_the_type_on_the_wire() {
        let body = EventBody::OrderPaid {
            order_id: OrderId::new(),
            order_no: "1".into(),
            plan_id: "basic".parse().unwrap(),
            amount: Money::yuan(99),
            payment_no: None,
        };

        let wire = serde_json::to_value(&body).unwrap();

        assert_eq!(wire["type"], body.kind());
        assert_eq!(serde_json::from_value::<EventBody>(wire).unwrap(), body);
    }
}
