//! Payments as admins see them.

use axum::extract::State;
use contracts::{Money, OrderId, UserId};
use garde::Validate;
use platform::Admin;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};

use super::{Method, Payment, PaymentStatus, ask, db};
use crate::refund::{self, Refund};
use crate::times::Bound;
use crate::{Billing, Error, Result};

/// Which payments are listed.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", default)]
pub struct PaymentQuery {
    #[garde(skip)]
    pub status: Option<PaymentStatus>,
    #[garde(skip)]
    pub method: Option<Method>,
    #[garde(skip)]
    pub user_id: Option<UserId>,
    #[garde(skip)]
    pub order_id: Option<OrderId>,
    /// Created then or later.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub start_date: Option<Bound>,
    /// Created then or before.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub end_date: Option<Bound>,
}

/// A payment with what only admins see of it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdminPayment {
    #[serde(flatten)]
    pub payment: Payment,
    /// At whose interface it was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The provider's name of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_reference: Option<String>,
    /// Whether money may still come by it.
    pub provider_open: bool,
    /// What the provider said when it was last asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_answer: Option<String>,
    pub refunds: Vec<Refund>,
}

/// Sums of payments.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentStatistics {
    pub total_payments: i64,
    /// What came in.
    pub total_amount: Money,
    /// What came in and was not given back.
    pub net_amount: Money,
    /// What was given back; what is on its way back is not.
    pub refunded_amount: Money,
    /// Whose provider may still bring money.
    pub in_flight: i64,
    pub refunds_in_flight: i64,
    pub by_status: Vec<PaymentSum>,
    pub by_method: Vec<PaymentSum>,
}

/// A sum of payments that have something in common.
#[derive(Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentSum {
    /// The status or the method.
    pub name: String,
    pub count: i64,
    pub amount: Money,
}

/// How a method is carried out.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProviderShown {
    pub method: Method,
    /// Who carries it out; left out where somebody else does and tells us at `/webhooks/payment`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Settings, secrets masked.
    pub settings: std::collections::BTreeMap<String, String>,
}

/// Lists payments.
#[utoipa::path(get, path = "/admin/payments", tag = "payments", params(PageQuery, PaymentQuery),
    responses((status = 200, body = Page<Payment>), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_all_payments(
    State(state): State<Billing>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(query): Query<PaymentQuery>,
) -> Result<Json<Page<Payment>>> {
    let mut conn = state.platform.db.acquire().await?;
    let payments = db::search(&mut conn, &query, page.slice()).await?;
    let total = db::count_found(&mut conn, &query).await?;
    Ok(Json(Page::new(payments, total, page)))
}

/// Shows a payment with its refunds and what its provider said last.
#[utoipa::path(get, path = "/admin/payments/{id}", tag = "payments", params(("id" = String, Path)),
    responses((status = 200, body = AdminPayment), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_any_payment(
    State(state): State<Billing>,
    _: Admin,
    Path(id): Path<OrderId>,
) -> Result<Json<AdminPayment>> {
    Ok(Json(load(&state, id.as_str()).await?))
}

/// Asks the provider how a payment stands, and carries out what it says.
#[utoipa::path(post, path = "/admin/payments/{id}/sync", tag = "payments", params(("id" = String, Path)),
    responses((status = 200, body = AdminPayment), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn sync_payment(
    State(state): State<Billing>,
    _: Admin,
    Path(id): Path<OrderId>,
) -> Result<Json<AdminPayment>> {
    let mut conn = state.platform.db.acquire().await?;
    let payment = db::find(&mut conn, id.as_str()).await?;
    drop(conn);
    let payment = payment.ok_or(Error::PaymentNotFound)?;
    if payment.provider.is_some() {
        ask::ask(&state, &payment).await?;
    }
    Ok(Json(load(&state, id.as_str()).await?))
}

async fn load(state: &Billing, id: &str) -> Result<AdminPayment> {
    let mut conn = state.platform.db.acquire().await?;
    let payment = db::find(&mut conn, id).await?;
    let payment = payment.ok_or(Error::PaymentNotFound)?;
    Ok(AdminPayment {
        provider: payment.provider.clone(),
        provider_reference: payment.provider_reference.clone(),
        provider_open: payment.provider_open,
        last_answer: db::last_answer(&mut conn, id).await?,
        refunds: refund::db::of_payment(&mut conn, id).await?,
        payment,
    })
}

/// Adds payments up.
#[utoipa::path(get, path = "/admin/payments/statistics", tag = "payments", params(PaymentQuery),
    responses((status = 200, body = PaymentStatistics), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn payment_statistics(
    State(state): State<Billing>,
    _: Admin,
    Query(query): Query<PaymentQuery>,
) -> Result<Json<PaymentStatistics>> {
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(db::statistics(&mut conn, &query).await?))
}

/// Shows who carries out which method; secrets are masked.
#[utoipa::path(get, path = "/admin/payments/providers/config", tag = "payments",
    responses((status = 200, body = Vec<ProviderShown>), (status = 403, body = ProblemBody)))]
pub async fn show_providers(State(state): State<Billing>, _: Admin) -> Json<Vec<ProviderShown>> {
    let shown = |method| {
        let provider = state.providers.of(method);
        let settings = provider.map_or_else(Vec::new, |provider| provider.shown());
        ProviderShown {
            method,
            provider: provider.map(|provider| provider.name().to_owned()),
            settings: settings
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    };
    Json(Method::OUTSIDE.into_iter().map(shown).collect())
}
