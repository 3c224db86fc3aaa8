//! Invoices, numbered without gaps.
//!
//! A generated one states what was consumed in a span of time that is over. What has left the balance or was paid at a
//! provider is settled: owed are the debts alone, usage that the balance did not cover. It is paid once they are, by its
//! user or by the cron that collects them. Those that admins write by hand are paid in full.

pub mod api;
pub mod db;
pub mod pay;
pub mod pdf;

use chrono::TimeDelta;
use contracts::{Money, Timestamp, UserId};
use garde::Validate;
use serde::{Deserialize, Serialize};
use sqlx::types::Json;

use crate::rules;

/// How long an invoice can be paid before it is overdue.
pub const DUE_AFTER: TimeDelta = TimeDelta::days(15);
/// For how long a span must be over: longer than a request that moves money takes.
pub const CLOSED_FOR: TimeDelta = TimeDelta::seconds(10);
/// The longest span that one invoice is about.
pub const LONGEST: TimeDelta = TimeDelta::days(366);

/// What an invoice is for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
#[schema(as = InvoiceType)]
pub enum Kind {
    Monthly,
    Recharge,
    Adjustment,
    Refund,
}

/// Where an invoice stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
#[schema(as = InvoiceStatus)]
pub enum Status {
    Unpaid,
    Paid,
    Cancelled,
    Refunding,
    Refunded,
}

/// A line of an invoice.
#[derive(Clone, Debug, Serialize, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = InvoiceItem)]
pub struct Item {
    /// The number of the line, from 1.
    #[serde(default)]
    #[garde(skip)]
    pub id: String,
    #[garde(custom(rules::required_text))]
    pub description: String,
    #[garde(range(min = 1, max = 1_000_000))]
    pub quantity: i64,
    #[garde(custom(rules::price))]
    pub unit_price: Money,
    /// `quantity` times `unitPrice`; not read from a request.
    #[serde(default)]
    #[garde(skip)]
    pub amount: Money,
}

/// An invoice, as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Invoice {
    pub id: String,
    pub invoice_number: String,
    pub user_id: UserId,
    #[sqlx(rename = "type")]
    pub kind: Kind,
    pub status: Status,
    pub items: Json<Vec<Item>>,
    pub subtotal: Money,
    pub tax: Money,
    pub discount: Money,
    pub total: Money,
    pub currency: String,
    pub generated: bool,
    pub paid_amount: Option<Money>,
    pub period_start: Timestamp,
    pub period_end: Timestamp,
    pub due_date: Timestamp,
    pub published_at: Option<Timestamp>,
    pub paid_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// An invoice, as clients read it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Invoice)]
pub struct InvoiceReply {
    pub id: String,
    pub invoice_number: String,
    /// The same as `invoiceNumber`.
    pub invoice_no: String,
    /// The same as `invoiceNumber`.
    pub bill_no: String,
    pub user_id: UserId,
    #[serde(rename = "type")]
    pub kind: Kind,
    pub status: Status,
    /// Unpaid, and past its due date.
    pub overdue: bool,
    pub items: Vec<Item>,
    pub subtotal: Money,
    pub tax: Money,
    pub discount: Money,
    pub total: Money,
    /// The same as `total`.
    pub total_amount: Money,
    /// The same as `total`.
    pub amount: Money,
    /// The same as `total`.
    pub final_amount: Money,
    /// How much of `total` is settled.
    pub paid_amount: Money,
    /// What is still owed: what paying it debits.
    pub amount_due: Money,
    pub currency: String,
    pub start_date: Timestamp,
    pub end_date: Timestamp,
    /// The same as `startDate`.
    pub period_start: Timestamp,
    /// The same as `endDate`.
    pub period_end: Timestamp,
    pub due_date: Timestamp,
    /// Since when its user sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paid_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Invoice {
    /// An unpaid invoice over these lines, without its number.
    pub fn over(
        user: UserId,
        kind: Kind,
        items: Vec<Item>,
        period: (Timestamp, Timestamp),
        now: Timestamp,
    ) -> Self {
        let subtotal = items.iter().map(|item| item.amount).sum();
        Self {
            id: contracts::TransactionId::new().to_string(),
            invoice_number: String::new(),
            user_id: user,
            kind,
            status: Status::Unpaid,
            items: Json(items),
            subtotal,
            tax: Money::ZERO,
            discount: Money::ZERO,
            total: subtotal,
            currency: "CNY".to_owned(),
            generated: false,
            paid_amount: None,
            period_start: period.0,
            period_end: period.1,
            due_date: now + DUE_AFTER,
            published_at: None,
            paid_at: None,
            created_at: now,
            updated_at: now,
        }
    }

    /// Generated, over these lines, of which an amount is owed: paid where it is none.
    pub fn stating(mut self, items: Vec<Item>, owed: Money) -> Self {
        self.total = items.iter().map(|item| item.amount).sum();
        self.subtotal = self.total;
        self.items = Json(items);
        self.generated = true;
        self.published_at = Some(self.created_at);
        self.paid_amount = Some(self.total - owed);
        if owed == Money::ZERO {
            self.status = Status::Paid;
            self.paid_at = Some(self.created_at);
        }
        self
    }

    /// How much of it is settled, and how much is owed.
    pub fn settled(&self) -> (Money, Money) {
        let paid = match self.status {
            Status::Unpaid | Status::Cancelled => self.paid_amount.unwrap_or_default(),
            Status::Paid | Status::Refunding | Status::Refunded => self.total,
        };
        match self.status {
            Status::Unpaid => (paid, self.total - paid),
            Status::Paid | Status::Cancelled | Status::Refunding | Status::Refunded => {
                (paid, Money::ZERO)
            }
        }
    }

    /// The invoice as clients read it at a moment.
    pub fn reply(self, now: Timestamp) -> InvoiceReply {
        let (paid_amount, amount_due) = self.settled();
        InvoiceReply {
            id: self.id,
            invoice_no: self.invoice_number.clone(),
            bill_no: self.invoice_number.clone(),
            invoice_number: self.invoice_number,
            user_id: self.user_id,
            kind: self.kind,
            status: self.status,
            overdue: self.status == Status::Unpaid && self.due_date < now,
            items: self.items.0,
            subtotal: self.subtotal,
            tax: self.tax,
            discount: self.discount,
            total: self.total,
            total_amount: self.total,
            amount: self.total,
            final_amount: self.total,
            paid_amount,
            amount_due,
            currency: self.currency,
            start_date: self.period_start,
            end_date: self.period_end,
            period_start: self.period_start,
            period_end: self.period_end,
            due_date: self.due_date,
            published_at: self.published_at,
            paid_at: self.paid_at,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

impl Status {
    /// The name in the store and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unpaid => "unpaid",
            Self::Paid => "paid",
            Self::Cancelled => "cancelled",
            Self::Refunding => "refunding",
            Self::Refunded => "refunded",
        }
    }
}
