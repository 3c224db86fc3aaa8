//! Domain events: what one service did and others act on.

use serde::{Deserialize, Serialize};

use crate::{
    AppId, CreditHoldId, DeviceId, EventId, Money, NotificationId, OrderId, PlanId, SnapshotId,
    TaskId, Timestamp, TransactionId, UserId,
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

/// What a paid plan allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanTerms {
    /// What it is called.
    pub name: String,
    /// For how long, in days.
    pub days: i64,
    /// How many devices.
    pub max_devices: i64,
    /// Processor cores of one device.
    pub cpu_cores: i64,
    /// Memory of one device.
    pub memory_mb: i64,
    /// Storage of one device.
    pub storage_mb: i64,
    /// Storage of all devices.
    pub storage_quota_gb: i64,
    /// Traffic of a month.
    pub traffic_quota_gb: i64,
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
    /// An account was deleted: what it has is given up.
    #[serde(rename = "user.deleted")]
    UserDeleted {},
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

    /// A device is on another node from now on, with other ports, and with all that was on it; where a snapshot is named, with
    /// what that kept.
    #[serde(rename = "device.moved")]
    DeviceMoved {
        device_id: DeviceId,
        name: String,
        from_node: String,
        to_node: String,
        snapshot_id: Option<SnapshotId>,
    },
    /// A device could not be taken to another node: it is what it was, where it was.
    #[serde(rename = "device.move_failed")]
    DeviceMoveFailed {
        device_id: DeviceId,
        name: String,
        from_node: String,
        reason: String,
    },

    /// A device ran for so many minutes of an hour: told once for each device and hour.
    #[serde(rename = "device.used")]
    DeviceUsed {
        device_id: DeviceId,
        began_at: Timestamp,
        ended_at: Timestamp,
        minutes: i32,
    },
    /// A device was stopped, since what its user runs is beyond a limit of the quota.
    #[serde(rename = "device.stopped_by_quota")]
    DeviceStoppedByQuota {
        device_id: DeviceId,
        name: String,
        quota: String,
        current: i64,
        limit: i64,
    },
    /// A device ends soon.
    #[serde(rename = "device.expiring")]
    DeviceExpiring {
        device_id: DeviceId,
        name: String,
        expires_at: Timestamp,
    },
    /// So many devices of a batch are done; how many of them failed.
    #[serde(rename = "device.batch_progressed")]
    BatchProgressed {
        batch_id: TaskId,
        operation: String,
        total: usize,
        done: usize,
        failed: usize,
    },

    /// A package was stored.
    #[serde(rename = "app.uploaded")]
    AppUploaded {
        app_id: AppId,
        package_name: String,
        version_code: i64,
    },
    /// An app of the user's went on on its way to the shelf, or was turned back.
    #[serde(rename = "app.reviewed")]
    AppReviewed {
        app_id: AppId,
        name: String,
        version_name: String,
        status: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        comment: Option<String>,
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
        /// What the plan allowed when it was ordered.
        plan: PlanTerms,
    },
    /// The term of a paid order is over.
    #[serde(rename = "order.completed")]
    OrderCompleted { order_id: OrderId, order_no: String },
    /// A paid order was given back as a whole; what it granted ends.
    #[serde(rename = "order.refunded")]
    OrderRefunded {
        order_id: OrderId,
        order_no: String,
        amount: Money,
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
    /// A refund that had gone to where the payment came from has come back: the order is what it was before.
    #[serde(rename = "refund.failed")]
    RefundFailed {
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

    /// The available balance fell to its threshold or below: told when it falls, not with each debit below.
    #[serde(rename = "balance.low")]
    BalanceLow { balance: Money, threshold: Money },
    /// An hour of a device cost more than the balance had; it is owed.
    #[serde(rename = "debt.recorded")]
    DebtRecorded { device_id: DeviceId, amount: Money },

    /// A media task asks billing to set credits aside.
    #[serde(rename = "credits.hold_requested")]
    CreditHoldRequested {
        hold_id: CreditHoldId,
        task_id: TaskId,
        credits: i64,
    },
    /// A media task went on, and is not done yet.
    #[serde(rename = "task.progressed")]
    TaskProgressed {
        task_id: TaskId,
        kind: String,
        status: String,
        progress: i16,
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
            Self::UserDeleted { .. } => "user.deleted",
            Self::UserLocked { .. } => "user.locked",
            Self::SessionEnded { .. } => "session.ended",
            Self::DeviceCreated { .. } => "device.created",
            Self::DeviceStatusChanged { .. } => "device.status_changed",
            Self::DeviceDeleted { .. } => "device.deleted",
            Self::DeviceMoved { .. } => "device.moved",
            Self::DeviceMoveFailed { .. } => "device.move_failed",
            Self::DeviceUsed { .. } => "device.used",
            Self::DeviceStoppedByQuota { .. } => "device.stopped_by_quota",
            Self::DeviceExpiring { .. } => "device.expiring",
            Self::BatchProgressed { .. } => "device.batch_progressed",
            Self::AppUploaded { .. } => "app.uploaded",
            Self::AppReviewed { .. } => "app.reviewed",
            Self::OrderCreated { .. } => "order.created",
            Self::OrderPaid { .. } => "order.paid",
            Self::OrderCompleted { .. } => "order.completed",
            Self::OrderRefunded { .. } => "order.refunded",
            Self::OrderCancelled { .. } => "order.cancelled",
            Self::OrderExpired { .. } => "order.expired",
            Self::PaymentRefunded { .. } => "payment.refunded",
            Self::RefundFailed { .. } => "refund.failed",
            Self::PaymentFailed { .. } => "payment.failed",
            Self::BalanceChanged { .. } => "balance.changed",
            Self::BalanceLow { .. } => "balance.low",
            Self::DebtRecorded { .. } => "debt.recorded",
            Self::CreditHoldRequested { .. } => "credits.hold_requested",
            Self::TaskProgressed { .. } => "task.progressed",
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
            plan: PlanTerms {
                name: "Basic".into(),
                days: 30,
                max_devices: 5,
                cpu_cores: 2,
                memory_mb: 2_048,
                storage_mb: 16_384,
                storage_quota_gb: 80,
                traffic_quota_gb: 500,
            },
        };

        let wire = serde_json::to_value(&body).unwrap();

        assert_eq!(wire["type"], body.kind());
        assert_eq!(serde_json::from_value::<EventBody>(wire).unwrap(), body);
    }
}
