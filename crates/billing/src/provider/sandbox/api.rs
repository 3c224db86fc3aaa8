//! The page of the sandbox's provider, on which a payment is carried out.

use axum::extract::State;
use axum::response::Html;
use contracts::Money;
use garde::Validate;
use http::StatusCode;
use platform::Problem;
use platform::http::{FormOrJson, Path};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};

use super::{db, notices};
use crate::callers::SandboxOpen;
use crate::{Billing, Error, Result};

/// How a payment ends in the sandbox.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct CarryOut {
    #[garde(skip)]
    pub outcome: SandboxOutcome,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxOutcome {
    Paid,
    Failed,
    Cancelled,
}

/// What the provider made of it. Our webhook hears of it in a moment.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CarriedOut {
    pub payment_no: String,
    pub outcome: SandboxOutcome,
    pub amount: Money,
    pub transaction_id: String,
}

/// Shows the page of a payment; sandbox only.
#[utoipa::path(get, path = "/payments/sandbox/{paymentNo}", tag = "payments", security(()), params(("paymentNo" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn show_sandbox_payment(
    State(state): State<Billing>,
    open: SandboxOpen,
    Path(number): Path<String>,
) -> Result<Html<String>> {
    admit(open)?;
    let mut conn = state.platform.db.acquire().await?;
    let known = db::find(&mut conn, &number).await?;
    let known = known.ok_or(Error::PaymentNotFound)?;
    let amount = known.amount;
    let standing = match known.standing() {
        super::Standing::Open => "waits to be paid",
        super::Standing::Paid { .. } => "is paid",
        super::Standing::Failed(_) => "has failed",
        super::Standing::Closed | super::Standing::Missing => "is closed",
    };
    // A number that was found is one of ours: letters and digits.
    Ok(Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Sandbox payment {number}</title>\
         <body style=\"font-family:sans-serif;max-width:32rem;margin:4rem auto\">\
         <h1>{amount} CNY</h1><p>Payment {number} {standing}. This is the sandbox: no money moves.</p>\
         <form method=post><button name=outcome value=paid>Pay</button> \
         <button name=outcome value=failed>Let it fail</button> \
         <button name=outcome value=cancelled>Give it up</button></form></body></html>"
    )))
}

/// Carries a payment out, once; sandbox only. The webhook is called as a real provider does on a bad day.
#[utoipa::path(post, path = "/payments/sandbox/{paymentNo}", tag = "payments", security(()), params(("paymentNo" = String, Path)),
    request_body(content((CarryOut = "application/json"), (CarryOut = "application/x-www-form-urlencoded"))),
    responses((status = 200, body = CarriedOut), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn carry_out_sandbox_payment(
    State(state): State<Billing>,
    open: SandboxOpen,
    Path(number): Path<String>,
    FormOrJson(body): FormOrJson<CarryOut>,
) -> Result<platform::http::Json<CarriedOut>> {
    admit(open)?;
    let (ends, word) = match body.outcome {
        SandboxOutcome::Paid => ("paid", "paid"),
        SandboxOutcome::Failed => ("failed", "failed"),
        SandboxOutcome::Cancelled => ("closed", "cancelled"),
    };
    let mut tx = state.platform.db.begin().await?;
    let Some(known) = db::end(&mut tx, &number, ends).await? else {
        return Err(match db::find(&mut tx, &number).await? {
            None => Error::PaymentNotFound,
            Some(_) => Problem::conflict("CONFLICT", "this payment was carried out before").into(),
        });
    };
    notices::schedule(&mut tx, &number, word, &known).await?;
    tx.commit().await?;
    Ok(platform::http::Json(CarriedOut {
        payment_no: number,
        outcome: body.outcome,
        amount: known.amount,
        transaction_id: known.transaction_id,
    }))
}

fn admit(SandboxOpen(open): SandboxOpen) -> Result<()> {
    if open {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "SANDBOX_ONLY",
        "payments are carried out here in the sandbox only, from this machine",
    )
    .into())
}
