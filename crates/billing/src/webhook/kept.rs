//! Notices that were kept: shown to admins, and tried again by them and by the cron.

use axum::extract::State;
use contracts::{Money, OrderId, Timestamp};
use garde::Validate;
use platform::Admin;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};
use sqlx::types::Json as Jsonb;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::api::count;
use super::db::{self, Delivery, KeptHeaders};
use super::message::Said;
use super::settle::settle;
use super::{Outcome, alipay, stripe, wechatpay};
use crate::times::Bound;
use crate::{Billing, Error, Result};

/// How many one step of the cron tries again.
const BATCH: i64 = 50;
/// Bytes of a body that are shown.
const SHOWN: usize = 16 * 1024;

/// Which notices are listed.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", default)]
pub struct KeptQuery {
    #[garde(skip)]
    pub provider: Option<String>,
    #[garde(skip)]
    pub outcome: Option<Outcome>,
    #[garde(skip)]
    pub order_id: Option<OrderId>,
    #[garde(skip)]
    pub payment_no: Option<String>,
    /// Received then or later.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub start_date: Option<Bound>,
    /// Received then or before.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub end_date: Option<Bound>,
}

/// A notice as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Kept {
    seq: i64,
    provider: String,
    event_id: String,
    status: String,
    outcome: Outcome,
    order_id: Option<String>,
    order_state: Option<String>,
    payment_no: Option<String>,
    transaction_id: Option<String>,
    amount: Option<Money>,
    signed: bool,
    raw: Vec<u8>,
    headers: Option<Jsonb<KeptHeaders>>,
    told: Option<Jsonb<Said>>,
    deliveries: i32,
    retries: i32,
    replayed_by: Option<String>,
    received_at: Timestamp,
    last_received_at: Timestamp,
    retry_at: Option<Timestamp>,
}

/// A notice as admins see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NoticeShown {
    pub id: String,
    pub provider: String,
    pub event_id: String,
    /// paid, failed, cancelled, refund or other.
    pub status: String,
    /// The provider's word for what is none of the first four here, as `charge.dispute.created`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    pub outcome: Outcome,
    /// Whether it was dealt with for good.
    pub applied: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_id: Option<String>,
    /// The state of the order when it was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_no: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<Money>,
    /// Whether its signature was checked; in the sandbox it need not be signed.
    pub signed: bool,
    /// By which its signature can be checked again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    pub headers: Option<KeptHeaders>,
    /// The body as it came, at most 16 KiB of it.
    pub raw: String,
    pub deliveries: i32,
    pub retries: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replayed_by: Option<String>,
    pub received_at: Timestamp,
    pub last_received_at: Timestamp,
    /// When it is tried again by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
}

impl From<Kept> for NoticeShown {
    fn from(kept: Kept) -> Self {
        let raw = &kept.raw[..kept.raw.len().min(SHOWN)];
        let event = match kept.told {
            Some(Jsonb(Said::Other { event } | Said::Foreign { event, .. })) => Some(event),
            Some(Jsonb(Said::Payment { .. } | Said::Refund { .. })) | None => None,
        };
        Self {
            id: kept.seq.to_string(),
            provider: kept.provider,
            event_id: kept.event_id,
            status: kept.status,
            event,
            headers: kept.headers.map(|Jsonb(headers)| headers),
            outcome: kept.outcome,
            applied: kept.outcome.is_final(),
            order_id: kept.order_id,
            order_state: kept.order_state,
            payment_no: kept.payment_no,
            transaction_id: kept.transaction_id,
            amount: kept.amount,
            signed: kept.signed,
            raw: String::from_utf8_lossy(raw).into_owned(),
            deliveries: kept.deliveries,
            retries: kept.retries,
            replayed_by: kept.replayed_by,
            received_at: kept.received_at,
            last_received_at: kept.last_received_at,
            retry_at: kept.retry_at,
        }
    }
}

/// Lists the notices of payment providers, whatever became of them, the newest first.
#[utoipa::path(get, path = "/admin/payments/webhooks/logs", tag = "webhooks", params(PageQuery, KeptQuery),
    responses((status = 200, body = Page<NoticeShown>), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_notices(
    State(state): State<Billing>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(query): Query<KeptQuery>,
) -> Result<Json<Page<NoticeShown>>> {
    let mut conn = state.platform.db.acquire().await?;
    let notices = db::search(&mut conn, &query, page.slice()).await?;
    let total = db::count_found(&mut conn, &query).await?;
    let notices = notices.into_iter().map(NoticeShown::from).collect();
    Ok(Json(Page::new(notices, total, page)))
}

/// Tries a kept notice again; one that was dealt with stays as it is.
#[utoipa::path(post, path = "/admin/payments/webhooks/{id}/replay", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 200, body = NoticeShown), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn replay_notice(
    State(state): State<Billing>,
    Admin(admin): Admin,
    Path(id): Path<OrderId>,
) -> Result<Json<NoticeShown>> {
    let seq: i64 = id.as_str().parse().map_err(|_| Error::NoticeNotFound)?;
    let mut conn = state.platform.db.acquire().await?;
    let kept = db::find(&mut conn, seq).await?;
    let kept = kept.ok_or(Error::NoticeNotFound)?;
    if !kept.outcome.is_final() {
        db::replayed(&mut conn, seq, admin.id.as_str()).await?;
        drop(conn);
        try_again(&state, &kept).await?;
        conn = state.platform.db.acquire().await?;
    }
    let kept = db::find(&mut conn, seq).await?;
    kept.map(|kept| Json(kept.into()))
        .ok_or(Error::NoticeNotFound)
}

/// Tries again what waits for an order or a payment that may have come meanwhile.
pub async fn retry_due(state: &Billing, cancelled: &CancellationToken) -> anyhow::Result<()> {
    loop {
        let mut conn = state.platform.db.acquire().await?;
        let now = state.platform.clock.shared(&mut conn).await?;
        let due = db::take_due(&mut conn, now, BATCH).await?;
        drop(conn);
        for kept in &due {
            if cancelled.is_cancelled() {
                return Ok(());
            }
            // One that fails is due again later; it holds up no other.
            if let Err(error) = try_again(state, kept).await {
                let id = &kept.event_id;
                warn!(
                    webhook.id = id,
                    "notice {id} of {} could not be tried again: {error}", kept.provider
                );
            }
        }
        if due.is_empty() {
            return Ok(());
        }
    }
}

/// Its signature was checked when it came; the keys of then need not be those of now.
async fn try_again(state: &Billing, kept: &Kept) -> Result<()> {
    let said = kept.said(state);
    let delivery = Delivery {
        provider: &kept.provider,
        event_id: &kept.event_id,
        signed: kept.signed,
        headers: kept.headers.as_ref(),
        raw: &kept.raw,
        again: true,
    };
    let settled = settle(state, delivery, said.as_ref()).await?;
    count(&settled);
    let (id, name) = (&kept.event_id, settled.outcome.name());
    info!(
        webhook.id = id,
        "notice {id} of {}, tried again, was {name}", kept.provider
    );
    Ok(())
}

impl Kept {
    /// What it says: as it was read then, or as the settings of today let it be read.
    fn said(&self, state: &Billing) -> Option<Said> {
        match &self.told {
            Some(Jsonb(Said::Foreign { .. })) | None => {}
            Some(Jsonb(said)) => return Some(said.clone()),
        }
        let (keys, raw) = (&state.config.webhooks, &self.raw);
        let message = match &*self.provider {
            "stripe" => stripe::read(keys.stripe.as_ref()?, raw),
            "alipay" => alipay::read(keys.alipay.as_ref()?, raw),
            "wechatpay" => wechatpay::read(keys.wechatpay.as_ref()?, raw),
            // Kept before what was read was kept too.
            _ => return super::notice::said_before(raw),
        };
        message.map(|message| message.said)
    }
}
