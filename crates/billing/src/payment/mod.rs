//! Payments: attempts to pay an order, and the one that did.

pub mod admin;
pub mod api;
pub mod ask;
pub mod begin;
pub mod db;

use chrono::TimeDelta;
use contracts::{Event, EventBody, Money, OrderId, Timestamp, TransactionId, UserId};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::balance::{self, Movement};
use crate::ledger::{self, Account, Details, Entry};
use crate::order::{self, Order, OrderState};
use crate::{Error, Result, metrics};

/// How long a payment may be carried out at its provider.
const LIFETIME: TimeDelta = TimeDelta::minutes(15);

/// How an order is paid.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Method {
    Wechat,
    Alipay,
    Stripe,
    Paypal,
    Paddle,
    /// From the user's balance.
    Balance,
    /// By a way that nobody named.
    #[serde(skip_deserializing)]
    Other,
}

impl Method {
    /// The methods that a provider carries out.
    pub const OUTSIDE: [Self; 5] = [
        Self::Wechat,
        Self::Alipay,
        Self::Stripe,
        Self::Paypal,
        Self::Paddle,
    ];

    /// The name in the store and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wechat => "wechat",
            Self::Alipay => "alipay",
            Self::Stripe => "stripe",
            Self::Paypal => "paypal",
            Self::Paddle => "paddle",
            Self::Balance => "balance",
            Self::Other => "other",
        }
    }

    /// The method of a name, unless it pays from the balance.
    pub fn from_outside(name: &str) -> Option<Self> {
        let mut methods = Self::OUTSIDE.into_iter();
        methods.find(|method| method.name() == name)
    }

    /// By which way from outside an order was to be paid.
    pub fn of_order(order: &Order) -> Self {
        let wanted = order.payment_method.as_deref();
        wanted.and_then(Self::from_outside).unwrap_or(Self::Other)
    }
}

/// The states of a payment.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum PaymentStatus {
    Pending,
    Processing,
    Success,
    Failed,
    Refunding,
    Refunded,
    Cancelled,
}

impl PaymentStatus {
    /// Whether no money has come by it.
    pub const fn is_open_or_failed(self) -> bool {
        match self {
            Self::Pending | Self::Processing | Self::Failed | Self::Cancelled => true,
            Self::Success | Self::Refunding | Self::Refunded => false,
        }
    }
}

/// A payment.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Payment {
    pub id: String,
    /// `PAY` and 20 digits.
    pub payment_no: String,
    pub order_id: OrderId,
    pub user_id: UserId,
    pub amount: Money,
    pub currency: String,
    pub method: Method,
    pub status: PaymentStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<String>,
    /// A page at the provider, on which it is carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_url: Option<String>,
    /// What a QR code has to say for the provider's app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qr_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refund_amount: Option<Money>,
    pub expires_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paid_at: Option<Timestamp>,
    pub created_at: Timestamp,
    /// At whose interface it was begun; nobody's where somebody else calls the provider.
    #[serde(skip)]
    pub provider: Option<String>,
    /// The provider's name of it, where its interface needs that.
    #[serde(skip)]
    pub provider_reference: Option<String>,
    /// Whether money may still come by it.
    #[serde(skip)]
    pub provider_open: bool,
}

impl Payment {
    /// A payment of an order that waits to be carried out.
    pub fn of(order: &Order, method: Method, now: Timestamp) -> Self {
        Self {
            id: TransactionId::new().to_string(),
            payment_no: String::new(),
            order_id: order.id.clone(),
            user_id: order.user_id.clone(),
            amount: order.final_amount,
            currency: order.currency.clone(),
            method,
            status: PaymentStatus::Pending,
            transaction_id: None,
            payment_url: None,
            qr_code: None,
            failure_reason: None,
            refund_amount: None,
            expires_at: now + LIFETIME,
            paid_at: None,
            created_at: now,
            provider: None,
            provider_reference: None,
            provider_open: false,
        }
    }
}

/// Where the money of a payment comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Funding {
    /// From outside, by a provider.
    Outside,
    /// From the user's balance.
    Balance,
}

/// How an order is being paid.
#[derive(Clone, Debug)]
pub struct Paying {
    pub method: Method,
    /// The provider's name of it.
    pub transaction_id: Option<String>,
    /// The attempt that succeeded, where it was made through us.
    pub payment: Option<Payment>,
    /// The admin who says so.
    pub operator_id: Option<String>,
}

/// Pays a locked order: its state, the payment, the ledger and the event, in the caller's transaction.
///
/// # Errors
/// 409 where it is no longer pending, 402 where the balance is too small: roll back.
pub async fn pay(
    conn: &mut PgConnection,
    order: &Order,
    paying: Paying,
    funding: Funding,
    now: Timestamp,
) -> Result<(Order, Payment)> {
    let transaction_id = paying.transaction_id.as_deref();
    let paid = order::db::mark_paid(conn, &order.id, paying.method.name(), transaction_id, now);
    let paid = paid.await?.ok_or(Error::OrderState {
        state: order.state,
        wanted: "paid",
    })?;
    let payment = match paying.payment {
        Some(payment) => payment,
        None => db::insert(conn, &Payment::of(order, paying.method, now)).await?,
    };
    let payment = db::succeed(conn, &payment.id, transaction_id, now).await?;
    db::cancel_open(conn, &order.id, now).await?;
    // A free plan moves no money.
    if order.final_amount > Money::ZERO {
        let details = Details {
            description: format!("order {}: {}", order.order_no, order.plan_name),
            order_id: Some(order.id.clone()),
            payment_id: Some(payment.id.clone()),
            operator_id: paying.operator_id,
            ..Details::default()
        };
        collect(conn, order, funding, details, now).await?;
    }
    let body = EventBody::OrderPaid {
        order_id: paid.id.clone(),
        order_no: paid.order_no.clone(),
        plan_id: paid.plan_id.clone(),
        amount: paid.final_amount,
        payment_no: Some(payment.payment_no.clone()),
        plan: paid.terms.0.clone(),
    };
    platform::events::emit(conn, &Event::new(paid.user_id.clone(), now, body)).await?;
    Ok((paid, payment))
}

async fn collect(
    conn: &mut PgConnection,
    order: &Order,
    funding: Funding,
    details: Details,
    now: Timestamp,
) -> Result<()> {
    let (user, amount) = (&order.user_id, order.final_amount);
    match funding {
        Funding::Balance => {
            balance::move_money(conn, user, Movement::Consume, amount, details, now).await?;
        }
        Funding::Outside => {
            let entry = Entry {
                id: TransactionId::new(),
                user_id: user.clone(),
                kind: "payment",
                amount,
                balances: None,
                from: Account::CashIn,
                to: Account::Revenue,
                value: amount,
                details,
                created_at: now,
            };
            ledger::db::post(conn, &entry).await?;
        }
    }
    Ok(())
}

/// Keeps money that came for a locked order which cannot take it, and gives it to the user's balance: as much as was told to
/// have come, else what the payment is about.
///
/// # Errors
/// Where the store does not take it: roll back.
pub async fn give_back(
    conn: &mut PgConnection,
    order: &Order,
    paying: Paying,
    came: Option<Money>,
    now: Timestamp,
) -> Result<Payment> {
    let payment = match paying.payment {
        Some(payment) => payment,
        None => db::insert(conn, &Payment::of(order, paying.method, now)).await?,
    };
    let transaction_id = paying.transaction_id.as_deref();
    let payment = db::give_back(conn, &payment.id, transaction_id, came, now).await?;
    let details = Details {
        description: format!("order {} could not take this payment", order.order_no),
        order_id: Some(order.id.clone()),
        payment_id: Some(payment.id.clone()),
        operator_id: paying.operator_id,
        ..Details::default()
    };
    let (user, amount) = (&order.user_id, payment.amount);
    if amount > Money::ZERO {
        balance::move_money(conn, user, Movement::GiveBack, amount, details, now).await?;
    }
    let body = EventBody::PaymentRefunded {
        order_id: order.id.clone(),
        order_no: order.order_no.clone(),
        amount,
    };
    platform::events::emit(conn, &Event::new(user.clone(), now, body)).await?;
    Ok(payment)
}

/// Counts an order that was paid, after the commit.
pub fn count_paid() {
    metrics::orders_reached(OrderState::Paid, 1);
    metrics::payment_succeeded();
}
