//! Domain events: each that users care about becomes one notification, with the pushes that belong to it.

use contracts::{Event, EventBody, Money, OrderId};
use platform::events::{Consumer, spawn_consumer};
use platform::lifecycle::Tasks;
use serde_json::{Map, Value, json};
use sqlx::PgConnection;
use tracing::debug;

use crate::leaver::Leavers;
use crate::notification::{Channel, Draft, Kind, MAX_MESSAGE, Priority, Push, db, store::store};
use crate::socket::Sockets;
use crate::{Notifications, metrics};

/// Starts handling.
///
/// # Errors
/// Where a store does not answer at start.
pub async fn spawn(state: &Notifications, tasks: &Tasks) -> anyhow::Result<()> {
    let teller = Teller {
        sockets: state.sockets(),
    };
    spawn_consumer(&state.platform, tasks, teller).await?;
    spawn_consumer(&state.platform, tasks, Leavers).await
}

struct Teller {
    sockets: Sockets,
}

impl Consumer for Teller {
    const NAME: &'static str = "notifications";
    const KINDS: &'static [&'static str] = &[
        "user.registered",
        "user.password_changed",
        "user.locked",
        "session.ended",
        "device.created",
        "device.status_changed",
        "device.deleted",
        "device.moved",
        "device.batch_progressed",
        "task.progressed",
        "device.stopped_by_quota",
        "device.expiring",
        "app.uploaded",
        "app.reviewed",
        "order.paid",
        "order.cancelled",
        "order.expired",
        "order.refunded",
        "payment.refunded",
        "payment.failed",
        "balance.low",
        "debt.recorded",
        "task.finished",
    ];

    async fn apply(&self, tx: &mut PgConnection, event: &Event) -> anyhow::Result<()> {
        if let Some(draft) = draft(event) {
            store(tx, draft, self.sockets.platform.clock.now()).await?;
        }
        Ok(())
    }

    async fn committed(&self, event: &Event) {
        let hub = &self.sockets.hub;
        if let EventBody::SessionEnded { session_id } = &event.body {
            hub.announce_session(session_id);
            // The others hear it by Redis; nobody hears the own voice.
            return self.sockets.check_sessions(Some(session_id)).await;
        }
        match draft(event) {
            Some(draft) => match self.is_stored(event).await {
                Ok(false) => {
                    // The user wants no words of it; what it changes is still shown.
                    for push in &draft.pushes {
                        hub.push(&event.user_id, &push.event, &push.data);
                    }
                }
                Ok(true) | Err(_) => {
                    metrics::notification_sent();
                    hub.announce(&draft.user_id);
                }
            },
            // A change that needs no words is still shown at once.
            None => match device_push(event) {
                Some(push) => hub.push(&event.user_id, &push.event, &push.data),
                None => debug!("nothing to tell about {}", event.body.kind()),
            },
        }
    }
}

impl Teller {
    async fn is_stored(&self, event: &Event) -> sqlx::Result<bool> {
        let mut conn = self.sockets.platform.db.acquire().await?;
        db::is_told(&mut conn, &event.id).await
    }
}

/// What a user is told about an event; nothing about those that only others act on.
fn draft(event: &Event) -> Option<Draft> {
    let (kind, name, title, message) = words(&event.body)?;
    let priority = match &event.body {
        EventBody::UserLocked { .. } | EventBody::PaymentFailed { .. } => Priority::High,
        EventBody::DeviceStatusChanged { status, .. } if status == "error" => Priority::High,
        _ => Priority::Normal,
    };
    Some(Draft {
        user_id: event.user_id.clone(),
        kind,
        event: Some(name),
        title: title.to_owned(),
        message,
        priority,
        channels: vec![Channel::Websocket],
        channels_named: false,
        by_user: false,
        data: Some(facts(&event.body)),
        pushes: pushes(event),
        event_id: Some(event.id.clone()),
        broadcast_id: None,
        expires_at: None,
    })
}

fn words(body: &EventBody) -> Option<(Kind, &'static str, &'static str, String)> {
    let words = match body {
        EventBody::UserRegistered { username } => (
            Kind::System,
            body.kind(),
            "Welcome",
            format!("Welcome to Cloudphone, {username}"),
        ),
        EventBody::PasswordChanged {} => (
            Kind::Security,
            body.kind(),
            "Password changed",
            "Your password was changed; all other sessions have ended".to_owned(),
        ),
        EventBody::UserLocked { until } => (
            Kind::Security,
            body.kind(),
            "Account locked",
            format!("Too many wrong passwords: your account is locked until {until}"),
        ),
        EventBody::DeviceCreated { name, .. } => (
            Kind::Device,
            body.kind(),
            "Device created",
            format!("Device {name} is being prepared"),
        ),
        EventBody::DeviceStatusChanged {
            name,
            status,
            error,
            ..
        } => match status.as_str() {
            "running" => (
                Kind::Device,
                "device.started",
                "Device ready",
                format!("Device {name} is running"),
            ),
            "stopped" => (
                Kind::Device,
                "device.stopped",
                "Device stopped",
                format!("Device {name} has stopped"),
            ),
            "error" => {
                let reason = error
                    .as_deref()
                    .map(|error| format!(": {error}"))
                    .unwrap_or_default();
                (
                    Kind::Device,
                    "device.error",
                    "Device error",
                    shorten(format!("Device {name} has failed{reason}")),
                )
            }
            _ => return None,
        },
        EventBody::DeviceDeleted { name, .. } => (
            Kind::Device,
            body.kind(),
            "Device deleted",
            format!("Device {name} was deleted"),
        ),
        EventBody::DeviceMoved {
            name, snapshot_id, ..
        } => (
            Kind::Device,
            body.kind(),
            "Device moved",
            match snapshot_id {
                None => format!(
                    "Device {name} was moved with all that is on it, and has another address now"
                ),
                Some(_) => format!(
                    "The machine of device {name} has failed: it goes on elsewhere as its last snapshot kept it, with another address"
                ),
            },
        ),
        EventBody::DeviceStoppedByQuota {
            name,
            quota,
            current,
            limit,
            ..
        } => (
            Kind::Device,
            body.kind(),
            "Device stopped",
            format!(
                "Device {name} was stopped: the quota of {quota} allows {limit}, and {current} are used"
            ),
        ),
        EventBody::DeviceExpiring {
            name, expires_at, ..
        } => (
            Kind::Device,
            body.kind(),
            "Device expires soon",
            format!(
                "Device {name} ends at {}",
                expires_at.utc().format("%Y-%m-%d %H:%M UTC")
            ),
        ),
        EventBody::AppUploaded {
            package_name,
            version_code,
            ..
        } => (
            Kind::System,
            body.kind(),
            "App uploaded",
            format!("{package_name}, version {version_code}, was uploaded"),
        ),
        EventBody::AppReviewed {
            name,
            version_name,
            status,
            comment,
            ..
        } => {
            let (title, what) = match status.as_str() {
                "pending_review" => return None,
                "approved" => ("App approved", "was approved"),
                "rejected" => ("App rejected", "was rejected"),
                "uploading" => (
                    "App needs changes",
                    "needs changes before it is submitted again",
                ),
                "available" => ("App published", "can be installed now"),
                _ => ("App unpublished", "is offered no longer"),
            };
            let why = comment.as_deref().map(|why| format!(": {why}"));
            let why = why.unwrap_or_default();
            let message = shorten(format!("{name} {version_name} {what}{why}"));
            (Kind::System, body.kind(), title, message)
        }
        EventBody::OrderPaid {
            order_no, amount, ..
        } => (
            Kind::Billing,
            body.kind(),
            "Payment received",
            format!("Order {order_no} is paid: {amount} yuan"),
        ),
        EventBody::OrderCancelled { order_no, .. } => (
            Kind::Billing,
            body.kind(),
            "Order cancelled",
            format!("Order {order_no} was cancelled"),
        ),
        EventBody::OrderRefunded { order_no, .. } => (
            Kind::Billing,
            body.kind(),
            "Order refunded",
            format!("Order {order_no} was given back, and what it granted has ended"),
        ),
        EventBody::OrderExpired { order_no, .. } => (
            Kind::Billing,
            body.kind(),
            "Order expired",
            format!("Order {order_no} was not paid in time"),
        ),
        EventBody::PaymentRefunded {
            order_no, amount, ..
        } => (
            Kind::Billing,
            body.kind(),
            "Payment refunded",
            format!("{amount} yuan for order {order_no} were given back"),
        ),
        EventBody::PaymentFailed {
            order_no, amount, ..
        } => (
            Kind::Billing,
            body.kind(),
            "Payment failed",
            format!("The payment of {amount} yuan for order {order_no} has failed"),
        ),
        EventBody::BalanceLow { balance, threshold } => (
            Kind::Billing,
            body.kind(),
            "Balance low",
            format!("The balance is {balance} yuan, not above {threshold}"),
        ),
        EventBody::DebtRecorded { device_id, amount } => (
            Kind::Billing,
            body.kind(),
            "Balance too small",
            format!("{amount} yuan for device {device_id} are owed"),
        ),
        EventBody::TaskFinished { kind, status, .. } => (
            Kind::System,
            body.kind(),
            "Task finished",
            format!("The task {kind} ended as {status}"),
        ),
        EventBody::SessionEnded { .. }
        | EventBody::UserDeleted {}
        | EventBody::BatchProgressed { .. }
        | EventBody::TaskProgressed { .. }
        | EventBody::DeviceUsed { .. }
        | EventBody::OrderCreated { .. }
        | EventBody::OrderCompleted { .. }
        | EventBody::RefundFailed { .. }
        | EventBody::BalanceChanged { .. }
        | EventBody::CreditHoldRequested { .. }
        | EventBody::NotificationStored { .. }
        | EventBody::DeviceMoveFailed { .. } => return None,
    };
    Some(words)
}

fn shorten(text: String) -> String {
    text.chars().take(MAX_MESSAGE).collect()
}

/// The facts of an event, without what is absent.
fn facts(body: &EventBody) -> Map<String, Value> {
    let wire = serde_json::to_value(body).unwrap_or_default();
    let facts = wire
        .get("data")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    facts
        .into_iter()
        // On which machine a device is, is for operators.
        .filter(|(name, value)| !value.is_null() && !["fromNode", "toNode"].contains(&&**name))
        .collect()
}

/// The frames that follow the notification on live sockets.
fn pushes(event: &Event) -> Vec<Push> {
    let changed = |id, no, status, amount| order_push(event, id, no, status, amount);
    match &event.body {
        EventBody::OrderPaid {
            order_id,
            order_no,
            amount,
            payment_no,
            ..
        } => {
            let mut paid =
                json!({ "orderId": order_id, "amount": amount, "timestamp": event.occurred_at });
            if let Some(payment_no) = payment_no {
                paid["paymentNo"] = json!(payment_no);
            }
            let success = Push {
                event: "payment-success".to_owned(),
                data: paid,
            };
            vec![changed(order_id, order_no, "paid", amount), success]
        }
        EventBody::OrderCancelled {
            order_id,
            order_no,
            amount,
        } => {
            vec![changed(order_id, order_no, "cancelled", amount)]
        }
        EventBody::OrderExpired {
            order_id,
            order_no,
            amount,
        } => vec![changed(order_id, order_no, "expired", amount)],
        EventBody::OrderRefunded {
            order_id,
            order_no,
            amount,
        } => vec![changed(order_id, order_no, "refunded", amount)],
        _ => device_push(event).into_iter().collect(),
    }
}

fn order_push(
    event: &Event,
    order_id: &OrderId,
    order_no: &str,
    status: &str,
    amount: &Money,
) -> Push {
    let data = json!({
        "orderId": order_id, "orderNo": order_no, "status": status, "amount": amount, "timestamp": event.occurred_at,
    });
    Push {
        event: "order-status-changed".to_owned(),
        data,
    }
}

fn device_push(event: &Event) -> Option<Push> {
    let progress = match &event.body {
        EventBody::BatchProgressed { .. } => Some("batch-progress"),
        EventBody::TaskProgressed { .. } => Some("task-progress"),
        _ => None,
    };
    if let Some(name) = progress {
        let mut data = facts(&event.body);
        data.insert("timestamp".to_owned(), json!(event.occurred_at));
        return Some(Push {
            event: name.to_owned(),
            data: Value::Object(data),
        });
    }
    let EventBody::DeviceStatusChanged {
        device_id,
        name,
        status,
        previous_status,
        ..
    } = &event.body
    else {
        return None;
    };
    let data = json!({
        "deviceId": device_id, "deviceName": name, "status": status, "previousStatus": previous_status,
        "timestamp": event.occurred_at,
    });
    Some(Push {
        event: "device-status-changed".to_owned(),
        data,
    })
}

#[cfg(test)]
mod tests {
    use contracts::event::PlanTerms;
    use contracts::{DeviceId, PlanId, UserId};
    use platform::Clock;

    use super::*;

    fn event(body: EventBody) -> Event {
        Event::new(UserId::new(), Clock::system().now(), body)
    }

    #[test]
    fn a_paid_order_is_told_with_its_pushes() {
        let paid = event(EventBody::OrderPaid {
            order_id: OrderId::new(),
            order_no: "7".into(),
            plan_id: "basic".parse::<PlanId>().unwrap(),
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
        });

        let draft = draft(&paid).unwrap();

        assert_eq!(
            (draft.event, draft.kind),
            (Some("order.paid"), Kind::Billing)
        );
        let pushed: Vec<_> = draft
            .pushes
            .iter()
            .map(|push| push.event.as_str())
            .collect();
        assert_eq!(pushed, ["order-status-changed", "payment-success"]);
        assert_eq!(draft.pushes[0].data["status"], "paid");
        assert!(draft.pushes[1].data.get("paymentNo").is_none());
        assert!(draft.data.unwrap().get("paymentNo").is_none());
    }

    #[test]
    fn a_device_on_its_way_is_pushed_without_words() {
        let change = |status: &str| {
            event(EventBody::DeviceStatusChanged {
                device_id: DeviceId::new(),
                name: "d".into(),
                status: status.into(),
                previous_status: "creating".into(),
                error: None,
            })
        };

        assert!(draft(&change("starting")).is_none() && device_push(&change("starting")).is_some());
        assert_eq!(
            draft(&change("running")).unwrap().event,
            Some("device.started")
        );
    }
}
