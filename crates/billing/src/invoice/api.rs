//! The routes of invoices.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::{Money, Timestamp, TransactionId, UserId};
use garde::Validate;
use http::{HeaderValue, StatusCode, header};
use platform::http::{Dual, Json, Page, PageQuery, Path, Query};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{Admin, CurrentUser, Problem};
use serde::{Deserialize, Serialize};

use super::db::{self, Wanted};
use super::{CLOSED_FOR, Invoice, InvoiceReply, Item, Kind, LONGEST, Status, pdf};
use crate::times::Bound;
use crate::usage::debt;
use crate::{Billing, Error, Result, callers, rules};

/// The span of time whose consumption is stated.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GenerateInvoice {
    /// Whose; the caller's where it is left out.
    #[garde(skip)]
    pub user_id: Option<UserId>,
    /// A day or a moment.
    #[schema(value_type = String)]
    #[garde(skip)]
    pub start_date: Bound,
    /// A day or a moment, with which the span ends; later, by 366 days at most, and over.
    #[schema(value_type = String)]
    #[garde(skip)]
    pub end_date: Bound,
}

/// An invoice written by hand; its user sees it once it is published.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateInvoice {
    #[garde(skip)]
    pub user_id: UserId,
    /// Default adjustment.
    #[serde(rename = "type")]
    #[garde(skip)]
    pub kind: Option<Kind>,
    /// 1 to 100 lines.
    #[garde(length(min = 1, max = 100), dive)]
    pub items: Vec<Item>,
    #[garde(custom(rules::optional_amount))]
    pub tax: Option<Money>,
    /// At most the sum of the lines and the tax.
    #[garde(custom(rules::optional_amount))]
    pub discount: Option<Money>,
    #[schema(value_type = String)]
    #[garde(skip)]
    pub start_date: Bound,
    #[schema(value_type = String)]
    #[garde(skip)]
    pub end_date: Bound,
    /// 15 days from now where it is left out.
    #[schema(value_type = Option<String>)]
    #[garde(skip)]
    pub due_date: Option<Bound>,
}

/// Why an invoice is cancelled.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct CancelInvoice {
    #[garde(custom(rules::text))]
    pub reason: Option<String>,
}

/// Which invoices are wanted.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct InvoiceQuery {
    #[param(inline)]
    #[garde(skip)]
    pub status: Option<Status>,
    #[serde(rename = "type")]
    #[param(inline)]
    #[garde(skip)]
    pub kind: Option<Kind>,
    /// Of periods that end on this day or later.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub start_date: Option<Bound>,
    /// Of periods that begin on this day or earlier.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub end_date: Option<Bound>,
}

/// What a user's invoices come to.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InvoiceStatistics {
    /// How many.
    pub total: i64,
    pub total_amount: Money,
    pub paid_amount: Money,
    pub unpaid_amount: Money,
    pub overdue_amount: Money,
    pub refunded_amount: Money,
    /// The same as `total`.
    pub total_count: i64,
    pub paid_count: i64,
    pub unpaid_count: i64,
    /// The same as `paidAmount`.
    pub total_paid: Money,
    /// The same as `unpaidAmount`.
    pub total_unpaid: Money,
}

impl InvoiceQuery {
    fn wanted<'a>(&self, user: Option<&'a UserId>, published: bool) -> Wanted<'a> {
        Wanted {
            user,
            status: self.status,
            kind: self.kind,
            from: self.start_date.map(Bound::start),
            to: self.end_date.map(Bound::end),
            published,
        }
    }
}

/// Whether a caller sees an invoice: its user once it is published, an admin always.
pub fn visible(invoice: &Invoice, user: &CurrentUser) -> bool {
    user.is_admin || (invoice.published_at.is_some() && user.may_see(&invoice.user_id))
}

fn period(start: Bound, end: Bound) -> Result<(Timestamp, Timestamp)> {
    let (start, end) = (start.start(), end.end());
    if end <= start || start + LONGEST < end {
        let fault = "must be later than startDate, by 366 days at most";
        return Err(Problem::invalid_field("endDate", fault).into());
    }
    Ok((start, end))
}

/// States what a user consumed in a span that is over, once: asked again, it shows the invoice there is.
///
/// What has left the balance or was paid at a provider is settled; `amountDue` is what the balance did not cover. What
/// stands on another invoice that is not cancelled is not stated again.
#[utoipa::path(post, path = "/invoices/generate", tag = "invoices", request_body = GenerateInvoice,
    responses((status = 201, body = InvoiceReply), (status = 200, body = InvoiceReply, description = "Generated before"), (status = 400, body = ProblemBody, description = "Among others where the span is not over"), (status = 403, body = ProblemBody), (status = 429, body = ProblemBody)))]
pub async fn generate_invoice(
    State(state): State<Billing>,
    user: CurrentUser,
    Json(body): Json<GenerateInvoice>,
) -> Result<(StatusCode, Json<InvoiceReply>)> {
    let owner = user.acting_for(body.user_id)?;
    let period = period(body.start_date, body.end_date)?;
    callers::limit(&state, &user, "invoices").await?;
    let mut tx = state.platform.db.begin().await?;
    db::lock_generation(&mut tx, &owner).await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    if let Some(there) = db::find_generated(&mut tx, &owner, period).await? {
        return Ok((StatusCode::OK, Json(there.reply(now))));
    }
    if period.1 + CLOSED_FOR > now {
        let fault = "must have passed 10 seconds ago: an invoice states a span that is over";
        return Err(Problem::invalid_field("endDate", fault).into());
    }
    let invoice = Invoice::over(owner.clone(), Kind::Monthly, Vec::new(), period, now);
    let (items, owed) = db::claim(&mut tx, &invoice.id, &owner, period).await?;
    let invoice = invoice.stating(items, owed);
    if let Some(written) = db::insert(&mut tx, &invoice).await? {
        tx.commit().await?;
        return Ok((StatusCode::CREATED, Json(written.reply(now))));
    }
    // A replica from before the lock was first. Its number stays, ours is given back.
    tx.rollback().await?;
    let mut conn = state.platform.db.acquire().await?;
    let there = db::find_generated(&mut conn, &owner, period).await?;
    let there = there.ok_or(Error::InvoiceNotFound)?;
    Ok((StatusCode::OK, Json(there.reply(now))))
}

/// Writes an invoice by hand.
#[utoipa::path(post, path = "/invoices", tag = "invoices", request_body = CreateInvoice, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = InvoiceReply), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn create_invoice(
    State(state): State<Billing>,
    Admin(admin): Admin,
    Idempotent { body, key }: Idempotent<CreateInvoice>,
) -> Result<Response> {
    let period = period(body.start_date, body.end_date)?;
    let mut items = body.items;
    for (place, item) in items.iter_mut().enumerate() {
        item.id = (place + 1).to_string();
        item.amount = Money(item.unit_price.fen() * item.quantity);
    }
    let (tax, discount) = (
        body.tax.unwrap_or_default(),
        body.discount.unwrap_or_default(),
    );
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &format!("user:{}", admin.id)).await? {
        Turn::First(turn) => turn,
        Turn::Replay(response) => return Ok(response),
    };
    let now = state.platform.clock.shared(&mut tx).await?;
    let kind = body.kind.unwrap_or(Kind::Adjustment);
    let mut invoice = Invoice::over(body.user_id, kind, items, period, now);
    invoice.tax = tax;
    invoice.discount = discount;
    invoice.total = invoice.subtotal + tax - discount;
    invoice.due_date = body.due_date.map_or(invoice.due_date, Bound::end);
    if !(Money::ZERO..=Money::MAX_INPUT).contains(&invoice.total) {
        let fault = "the invoice must come to 0 to 1000000";
        return Err(Problem::invalid_field("items", fault).into());
    }
    let written = db::insert(&mut tx, &invoice).await?;
    let reply = written.ok_or(sqlx::Error::RowNotFound)?.reply(now);
    let response = turn.reply(&mut tx, StatusCode::CREATED, &reply).await?;
    tx.commit().await?;
    Ok(response)
}

/// Lists all invoices.
#[utoipa::path(get, path = "/invoices", tag = "invoices", params(PageQuery, InvoiceQuery),
    responses((status = 200, body = Page<InvoiceReply>), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_invoices(
    State(state): State<Billing>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(query): Query<InvoiceQuery>,
) -> Result<Json<Page<InvoiceReply>>> {
    let wanted = query.wanted(None, false);
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let found = db::list(&mut conn, wanted, page.slice()).await?;
    let total = db::count(&mut conn, wanted).await?;
    let found = found.into_iter().map(|invoice| invoice.reply(now));
    Ok(Json(Page::new(found.collect(), total, page)))
}

/// Lists a user's invoices.
#[utoipa::path(get, path = "/invoices/user/{userId}", tag = "invoices", params(("userId" = UserId, Path), PageQuery, InvoiceQuery),
    responses((status = 200, body = Vec<InvoiceReply>, description = "An array, or a page where `page` or `pageSize` is given"), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_user_invoices(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
    Query(page): Query<PageQuery>,
    Query(query): Query<InvoiceQuery>,
) -> Result<Dual<InvoiceReply>> {
    let owner = user.acting_for(Some(owner))?;
    let wanted = query.wanted(Some(&owner), !user.is_admin);
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let found = db::list(&mut conn, wanted, page.dual_slice()).await?;
    let total = match page.wants_page() {
        true => db::count(&mut conn, wanted).await?,
        false => 0,
    };
    let found = found.into_iter().map(|invoice| invoice.reply(now));
    Ok(Dual::new(found.collect(), total, page))
}

/// Adds up a user's invoices.
#[utoipa::path(get, path = "/invoices/statistics/{userId}", tag = "invoices", params(("userId" = UserId, Path)),
    responses((status = 200, body = InvoiceStatistics), (status = 403, body = ProblemBody)))]
pub async fn invoice_statistics(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
) -> Result<Json<InvoiceStatistics>> {
    let owner = user.acting_for(Some(owner))?;
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let sums = db::sums(&mut conn, &owner, now).await?;
    Ok(Json(InvoiceStatistics {
        total: sums.count,
        total_amount: sums.total,
        paid_amount: sums.paid,
        unpaid_amount: sums.unpaid,
        overdue_amount: sums.overdue,
        refunded_amount: sums.refunded,
        total_count: sums.count,
        paid_count: sums.paid_count,
        unpaid_count: sums.unpaid_count,
        total_paid: sums.paid,
        total_unpaid: sums.unpaid,
    }))
}

/// Shows an invoice.
#[utoipa::path(get, path = "/invoices/{id}", tag = "invoices", params(("id" = String, Path)),
    responses((status = 200, body = InvoiceReply), (status = 404, body = ProblemBody)))]
pub async fn find_invoice(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(id): Path<TransactionId>,
) -> Result<Json<InvoiceReply>> {
    let (invoice, now) = find(&state, &user, &id).await?;
    Ok(Json(invoice.reply(now)))
}

/// Shows an invoice as a PDF.
#[utoipa::path(get, path = "/invoices/{id}/pdf", tag = "invoices", params(("id" = String, Path)),
    responses((status = 200, content_type = "application/pdf", body = Vec<u8>), (status = 404, body = ProblemBody)))]
pub async fn print_invoice(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(id): Path<TransactionId>,
) -> Result<Response> {
    let (invoice, _) = find(&state, &user, &id).await?;
    let name = format!("inline; filename=\"{}.pdf\"", invoice.invoice_number);
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/pdf"),
        ),
        (
            header::CONTENT_DISPOSITION,
            HeaderValue::try_from(name).map_err(|_| Problem::internal())?,
        ),
    ];
    Ok((headers, pdf::print(&invoice)).into_response())
}

async fn find(
    state: &Billing,
    user: &CurrentUser,
    id: &TransactionId,
) -> Result<(Invoice, Timestamp)> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let invoice = db::find(&mut conn, id.as_str()).await?;
    let invoice = invoice.filter(|invoice| visible(invoice, user));
    Ok((invoice.ok_or(Error::InvoiceNotFound)?, now))
}

/// Shows an invoice to its user.
#[utoipa::path(put, path = "/invoices/{id}/publish", tag = "invoices", params(("id" = String, Path)),
    responses((status = 200, body = InvoiceReply), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn publish_invoice(
    State(state): State<Billing>,
    _: Admin,
    Path(id): Path<TransactionId>,
) -> Result<Json<InvoiceReply>> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let published = db::publish(&mut conn, id.as_str(), now).await?;
    let refusal = || Error::InvoiceState {
        status: "published or no longer unpaid",
        wanted: "published",
    };
    changed(&mut conn, &id, published, refusal).await
}

/// Cancels an unpaid invoice; its number stays taken, what it stated is free for another one, and debts on it stay owed.
#[utoipa::path(put, path = "/invoices/{id}/cancel", tag = "invoices", params(("id" = String, Path)), request_body = CancelInvoice,
    responses((status = 200, body = InvoiceReply), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn cancel_invoice(
    State(state): State<Billing>,
    _: Admin,
    Path(id): Path<TransactionId>,
    Json(body): Json<CancelInvoice>,
) -> Result<Json<InvoiceReply>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    debt::lock_on_invoice(&mut tx, id.as_str()).await?;
    let cancelled = db::cancel(&mut tx, id.as_str(), body.reason.as_deref(), now).await?;
    let refusal = || Error::InvoiceState {
        status: "no longer unpaid",
        wanted: "cancelled",
    };
    let reply = changed(&mut tx, &id, cancelled, refusal).await?;
    tx.commit().await?;
    Ok(reply)
}

async fn changed(
    conn: &mut sqlx::PgConnection,
    id: &TransactionId,
    changed: Option<Invoice>,
    refusal: impl FnOnce() -> Error,
) -> Result<Json<InvoiceReply>> {
    match changed {
        Some(invoice) => {
            let now = invoice.updated_at;
            Ok(Json(invoice.reply(now)))
        }
        None if db::find(conn, id.as_str()).await?.is_some() => Err(refusal()),
        None => Err(Error::InvoiceNotFound),
    }
}
