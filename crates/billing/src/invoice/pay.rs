//! Paying what is owed of an invoice: from the balance, or one written by hand by a payment that was made.

use axum::extract::State;
use axum::response::Response;
use contracts::{Money, Timestamp, TransactionId};
use garde::Validate;
use http::StatusCode;
use platform::http::Path;
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::Deserialize;
use serde_json::json;
use sqlx::PgConnection;

use super::{Invoice, InvoiceReply, Status, db};
use crate::balance::{self, Movement};
use crate::ledger::Details;
use crate::payment::{self, Method, PaymentStatus};
use crate::usage::debt::{self, Debt};
use crate::{Billing, Error, Result, order, rules};

/// How an invoice is paid.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PayInvoice {
    /// Only `balance`, which is the default, unless a payment is named.
    #[garde(skip)]
    pub payment_method: Option<Method>,
    /// For an invoice written by hand: a successful payment of the same user and amount, of what the invoice is about,
    /// that has paid no invoice.
    #[garde(custom(rules::reference))]
    pub payment_id: Option<String>,
}

/// Pays an invoice: what is owed of it (`amountDue`), and no more.
#[utoipa::path(post, path = "/invoices/{id}/pay", tag = "invoices", params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)), request_body = PayInvoice,
    responses((status = 200, body = InvoiceReply), (status = 400, body = ProblemBody), (status = 402, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn pay_invoice(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(id): Path<TransactionId>,
    Idempotent { body, key }: Idempotent<PayInvoice>,
) -> Result<Response> {
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &format!("user:{}", user.id)).await? {
        Turn::First(turn) => turn,
        Turn::Replay(response) => return Ok(response),
    };
    // Under the order's lock nobody refunds the payment meanwhile; it comes before the invoice's, as in a refund.
    if let Some(payment) = &body.payment_id
        && let Some(payment) = payment::db::find(&mut tx, payment).await?
    {
        order::db::lock(&mut tx, &payment.order_id).await?;
    }
    // Debts are locked before their invoice, as where a cron collects them.
    let debts = debt::lock_on_invoice(&mut tx, id.as_str()).await?;
    let invoice = db::lock(&mut tx, id.as_str()).await?;
    let invoice = invoice
        .filter(|invoice| super::api::visible(invoice, &user))
        .ok_or(Error::InvoiceNotFound)?;
    if invoice.status != Status::Unpaid || invoice.published_at.is_none() {
        return Err(Error::InvoiceState {
            status: invoice.status.name(),
            wanted: "paid",
        });
    }
    let now = state.platform.clock.shared(&mut tx).await?;
    let paid = match (&body.payment_id, body.payment_method) {
        (Some(payment), _) => by_payment(&mut tx, &invoice, payment, now).await?,
        (None, None | Some(Method::Balance)) => {
            from_balance(&mut tx, &invoice, &debts, now).await?
        }
        (None, Some(_)) => {
            let fault = "must be balance, or name a paymentId";
            return Err(Problem::invalid_field("paymentMethod", fault).into());
        }
    };
    let reply = paid.reply(now);
    let response = turn.reply(&mut tx, StatusCode::OK, &reply).await?;
    tx.commit().await?;
    Ok(response)
}

/// Debits what is owed: the open debts, which that settles, or the whole of an invoice written by hand.
async fn from_balance(
    conn: &mut PgConnection,
    invoice: &Invoice,
    debts: &[Debt],
    now: Timestamp,
) -> Result<Invoice> {
    let owed = match invoice.generated {
        true => debts.iter().map(|debt| debt.amount).sum(),
        false => invoice.total,
    };
    if owed == Money::ZERO {
        return Ok(db::mark_paid(conn, &invoice.id, (None, None), now).await?);
    }
    let details = Details {
        description: format!("invoice {}", invoice.invoice_number),
        metadata: Some(json!({ "invoiceId": invoice.id })),
        ..Details::default()
    };
    let user = &invoice.user_id;
    let moved = balance::move_money(conn, user, Movement::Consume, owed, details, now).await?;
    let by = &moved.transaction.id;
    debt::settle(conn, debts, by, now).await?;
    Ok(db::mark_paid(conn, &invoice.id, (Some(by.as_str()), None), now).await?)
}

async fn by_payment(
    conn: &mut PgConnection,
    invoice: &Invoice,
    payment: &str,
    now: Timestamp,
) -> Result<Invoice> {
    let found = payment::db::find(conn, payment).await?;
    let found = found
        .filter(|payment| payment.user_id == invoice.user_id)
        .ok_or(Error::PaymentNotFound)?;
    if found.status != PaymentStatus::Success || found.refund_amount.is_some() {
        return Err(Error::PaymentUnusable("the payment is not successful"));
    }
    if invoice.generated {
        return Err(Error::PaymentUnusable(
            "what payments have paid for is settled on this invoice; what is owed is paid from the balance",
        ));
    }
    if found.amount != invoice.total {
        return Err(Error::AmountMismatch {
            got: found.amount,
            due: invoice.total,
        });
    }
    // Every payment has paid an order: it pays the invoice on which that stands, and no other.
    let span = (invoice.period_start, invoice.period_end);
    if !db::is_billed(conn, payment, span).await? {
        return Err(Error::PaymentUnusable(
            "the payment has paid for what is not on this invoice",
        ));
    }
    let paid = db::mark_paid(conn, &invoice.id, (None, Some(payment)), now).await;
    paid.map_err(|error| {
        let database = error.as_database_error();
        match database.and_then(|error| error.constraint()) {
            Some("invoices_payment_used_once") => {
                Error::PaymentUnusable("the payment has paid another invoice")
            }
            _ => error.into(),
        }
    })
}
