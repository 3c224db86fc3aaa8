//! Notices of the sandbox's provider, and their delivery over the network.

use chrono::TimeDelta;
use contracts::Service;
use platform::lifecycle::Tick;
use serde_json::json;
use sqlx::PgConnection;
use tracing::{debug, warn};

use super::db;
use crate::Billing;
use crate::provider::calls;
use platform::standard_webhook;

const BATCH: i64 = 20;
/// After so many attempts, the last of them minutes later, a notice is given up, as providers do.
const ATTEMPTS: i32 = 10;

/// Writes down what is told about a payment that was carried out: the outcome at once, again at the same moment and
/// seconds later; and an attempt that failed before it, which is told after it.
pub async fn schedule(
    conn: &mut PgConnection,
    number: &str,
    outcome: &str,
    known: &db::Known,
) -> sqlx::Result<()> {
    let told = json!({
        "paymentNo": number,
        "status": outcome,
        "transactionId": known.transaction_id,
        "amount": known.amount,
    });
    let id = format!("sandbox-{number}-{outcome}");
    for after in [0, 0, 3] {
        db::tell(conn, &id, &told.to_string(), TimeDelta::seconds(after)).await?;
    }
    if outcome == "paid" {
        let earlier = json!({
            "paymentNo": number,
            "status": "failed",
            "transactionId": format!("{}-0", known.transaction_id),
        });
        let id = format!("sandbox-{number}-attempt");
        db::tell(conn, &id, &earlier.to_string(), TimeDelta::seconds(1)).await?;
    }
    Ok(())
}

/// Delivers the notices whose time has come to the address that all billing replicas of this machine share.
pub async fn deliver_due(state: &Billing, client: &reqwest::Client) -> anyhow::Result<Tick> {
    let mut conn = state.platform.db.acquire().await?;
    let due = db::take_due(&mut conn, BATCH).await?;
    drop(conn);
    let taken = due.len();
    for notice in due {
        if deliver(state, client, &notice).await || notice.attempts >= ATTEMPTS {
            let mut conn = state.platform.db.acquire().await?;
            db::answered(&mut conn, notice.id).await?;
        }
    }
    Ok(Tick::after_batch(taken, BATCH))
}

/// Whether a notice was taken, or refused for good.
async fn deliver(state: &Billing, client: &reqwest::Client, notice: &db::Due) -> bool {
    let billing = super::here(&state.platform, Service::Billing);
    let mut request = client
        .post(format!("http://{billing}/webhooks/payment"))
        .header(http::header::CONTENT_TYPE, "application/json");
    // Without a key the sandbox believes this machine.
    if let Some(key) = state.config.webhook_keys.first() {
        let now = state.platform.clock.now().utc().timestamp();
        let signed = standard_webhook::sign(key, &notice.webhook_id, now, notice.body.as_bytes());
        for (name, value) in signed {
            request = request.header(name, value);
        }
    }
    match calls::call(request.body(notice.body.clone())).await {
        Ok(answer) if answer.status.is_success() => true,
        Ok(answer) => {
            debug!(webhook.id = notice.webhook_id, "answered {}", answer.status);
            false
        }
        Err(error) => {
            warn!(
                webhook.id = notice.webhook_id,
                "a notice of the sandbox was not delivered: {error}"
            );
            false
        }
    }
}
