//! What other services did, as their events tell: each becomes one entry.

use anyhow::Context;
use contracts::{Event, EventId};
use platform::events::Consumer;
use serde_json::json;
use sqlx::PgConnection;

use super::origin::Origin;
use super::{Entry, Status, db};

/// Writes entries of events.
#[derive(Clone, Copy, Debug)]
pub struct Recorder;

impl Consumer for Recorder {
    const NAME: &'static str = "audit-log";
    const KINDS: &'static [&'static str] = &[
        "user.locked",
        "device.created",
        "device.deleted",
        "device.moved",
        "device.stopped_by_quota",
        "app.uploaded",
        "app.reviewed",
        "order.created",
        "order.paid",
        "order.cancelled",
        "order.refunded",
        "payment.refunded",
        "payment.failed",
        "refund.failed",
        "balance.changed",
        "debt.recorded",
    ];

    async fn apply(&self, tx: &mut PgConnection, event: &Event) -> anyhow::Result<()> {
        let kind = event.body.kind();
        let details = db::facts(&event.body);
        let resource = kind.split('.').next().unwrap_or(kind);
        let id = ["deviceId", "appId", "orderId", "transactionId"]
            .into_iter()
            .find_map(|name| details[name].as_str().map(str::to_owned));
        let status = match kind {
            "payment.failed" | "refund.failed" => Status::Failed,
            "user.locked" | "device.stopped_by_quota" | "debt.recorded" => Status::Warning,
            _ => Status::Success,
        };
        let entry = Entry {
            user: Some(&event.user_id),
            action: kind,
            resource: (resource, id.as_deref()),
            status,
            details: if details.is_null() {
                json!({})
            } else {
                details
            },
            changes: None,
        };
        let origin = (&Origin::default(), Some(&event.id));
        db::insert(tx, &EventId::new(), &entry, origin, event.occurred_at)
            .await
            .with_context(|| format!("writing {kind} into the audit log"))?;
        Ok(())
    }
}
