//! What can go wrong, and what the client is told of it.

use axum::response::{IntoResponse, Response};
use contracts::Money;
use http::StatusCode;
use platform::Problem;

use crate::order::OrderState;
use crate::webhook::Outcome;

/// The outcome of a handler.
pub type Result<T> = std::result::Result<T, Error>;

/// A refusal, or a store that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such plan, or one that is no longer sold.
    #[error("plan not found")]
    PlanNotFound,
    /// No such order, or somebody else's.
    #[error("order not found")]
    OrderNotFound,
    /// No such payment, or somebody else's.
    #[error("payment not found")]
    PaymentNotFound,
    /// No such refund.
    #[error("refund not found")]
    RefundNotFound,
    /// The payment's state forbids it.
    #[error("the payment cannot be {wanted}")]
    PaymentState {
        /// What was to be done with it, and why it cannot.
        wanted: &'static str,
    },
    /// The provider said no.
    #[error("{provider} refused the payment; choose another method, or try again later")]
    ProviderRefused {
        /// Its name. What it said is for admins, in the payment's last answer and the log.
        provider: &'static str,
    },
    /// The provider did not answer, or not clearly.
    #[error(
        "{provider} did not answer; send the request again with its Idempotency-Key, or ask for the payment later"
    )]
    ProviderSilent {
        /// Its name.
        provider: &'static str,
    },
    /// No such coupon or code, or somebody else's.
    #[error("coupon not found")]
    CouponNotFound,
    /// The coupon or its code cannot be used, and why.
    #[error("{0}")]
    CouponUnusable(&'static str),
    /// A plan of that code is there.
    #[error("a plan with this code exists")]
    PlanExists,
    /// Orders use the plan.
    #[error("orders use the plan; take it from sale instead")]
    PlanInUse,
    /// The device is in use by another user.
    #[error("the device is in use by another user")]
    DeviceInUse,
    /// No such record of usage.
    #[error("usage record not found")]
    UsageNotFound,
    /// No such invoice, or one that its user does not see.
    #[error("invoice not found")]
    InvoiceNotFound,
    /// The invoice's status forbids it.
    #[error("the invoice is {status} and cannot be {wanted}")]
    InvoiceState {
        /// The status it has.
        status: &'static str,
        /// What was to be done with it.
        wanted: &'static str,
    },
    /// The payment cannot pay this invoice, and why.
    #[error("{0}")]
    PaymentUnusable(&'static str),
    /// The order's state forbids it.
    #[error("the order is {} and cannot be {wanted}", state.five())]
    OrderState {
        /// The state it is in.
        state: OrderState,
        /// What was to be done with it.
        wanted: &'static str,
    },
    /// The order's time is over.
    #[error("the order was to be paid in time and can no longer be")]
    OrderTooLate,
    /// More was asked than is left of what was paid.
    #[error("only {left} of the order can still be refunded")]
    RefundTooLarge {
        /// What is left.
        left: Money,
    },
    /// The amount is not the order's.
    #[error("the amount {got} is not that of the order, {due}")]
    AmountMismatch {
        /// What was sent.
        got: Money,
        /// What is due.
        due: Money,
    },
    /// The available balance is too small.
    #[error("the available balance is {available}, less than {needed}")]
    InsufficientBalance {
        /// What is available.
        available: Money,
        /// What was asked for.
        needed: Money,
    },
    /// Less is frozen than was to be released.
    #[error("only {frozen} is frozen")]
    NotEnoughFrozen {
        /// What is frozen.
        frozen: Money,
    },
    /// The notice of a payment is not signed as it must be.
    #[error("{0}")]
    BadSignature(&'static str),
    /// The notice is believed and kept, but cannot be applied.
    #[error("the notice is kept and not applied: {}", outcome.name())]
    NoticeKept {
        /// What it was made of.
        outcome: Outcome,
    },
    /// No notice of that id is kept.
    #[error("notice not found")]
    NoticeNotFound,
    /// No keys of the provider are set.
    #[error("notices of {provider} are not taken here: its keys are not set")]
    ProviderNotConfigured {
        /// Its name.
        provider: &'static str,
    },
    /// PostgreSQL refused or did not answer.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The platform refused.
    #[error("refused with {}", .0.code())]
    Refused(Problem),
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl Error {
    fn problem(&self) -> Problem {
        let text = || self.to_string();
        match self {
            Self::PlanNotFound => Problem::not_found("plan"),
            Self::OrderNotFound => Problem::not_found("order"),
            Self::PaymentNotFound => Problem::not_found("payment"),
            Self::RefundNotFound => Problem::not_found("refund"),
            Self::PaymentState { .. } => Problem::conflict("CONFLICT", text()),
            Self::ProviderRefused { .. } => {
                Problem::new(StatusCode::BAD_GATEWAY, "UPSTREAM_DOWN", text())
            }
            Self::ProviderSilent { .. } => {
                Problem::new(StatusCode::GATEWAY_TIMEOUT, "UPSTREAM_TIMEOUT", text())
            }
            Self::CouponNotFound => Problem::not_found("coupon"),
            Self::InvoiceNotFound => Problem::not_found("invoice"),
            Self::UsageNotFound => Problem::not_found("usage record"),
            Self::PlanExists
            | Self::PlanInUse
            | Self::DeviceInUse
            | Self::CouponUnusable(_)
            | Self::InvoiceState { .. }
            | Self::PaymentUnusable(_) => Problem::conflict("CONFLICT", text()),
            Self::OrderState { .. } | Self::OrderTooLate | Self::RefundTooLarge { .. } => {
                Problem::conflict("ORDER_STATE", text())
            }
            Self::AmountMismatch { .. } => {
                Problem::new(StatusCode::BAD_REQUEST, "AMOUNT_MISMATCH", text())
            }
            Self::InsufficientBalance { .. } => {
                Problem::new(StatusCode::PAYMENT_REQUIRED, "INSUFFICIENT_BALANCE", text())
            }
            Self::NotEnoughFrozen { .. } => Problem::invalid_field("amount", text()),
            Self::BadSignature(_) => {
                Problem::new(StatusCode::UNAUTHORIZED, "BAD_SIGNATURE", text())
            }
            Self::NoticeKept { .. } => Problem::new(StatusCode::BAD_REQUEST, "NOT_APPLIED", text()),
            Self::NoticeNotFound => Problem::not_found("notice"),
            Self::ProviderNotConfigured { .. } => {
                Problem::new(StatusCode::NOT_FOUND, "NOT_FOUND", text())
            }
            Self::Database(error) => Problem::from_sqlx(error),
            Self::Refused(problem) => problem.clone(),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.problem().respond(&self)
    }
}
