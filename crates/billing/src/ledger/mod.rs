//! The double-entry ledger: every movement takes from one account what it gives to another.

pub mod api;
pub mod db;
pub mod verify;

use contracts::{Money, OrderId, Timestamp, TransactionId, UserId};
use serde_json::Value;

/// Where money can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// What a user can spend.
    Available(UserId),
    /// What a user has, and cannot spend until it is released.
    Frozen(UserId),
    /// The world outside: what came in from it stands here below zero.
    CashIn,
    /// What was earned.
    Revenue,
    /// What was given back of that.
    Refunds,
    /// What an admin corrected.
    Adjustments,
}

impl Account {
    /// The key of the account in the store.
    pub fn id(&self) -> String {
        match self {
            Self::Available(user) => format!("available:{user}"),
            Self::Frozen(user) => format!("frozen:{user}"),
            Self::CashIn => "cash_in".to_owned(),
            Self::Revenue => "revenue".to_owned(),
            Self::Refunds => "refunds".to_owned(),
            Self::Adjustments => "adjustments".to_owned(),
        }
    }
}

/// What a movement belongs to, and who caused it.
#[derive(Clone, Debug, Default)]
pub struct Details {
    pub description: String,
    pub order_id: Option<OrderId>,
    pub payment_id: Option<String>,
    pub device_id: Option<String>,
    pub operator_id: Option<String>,
    pub metadata: Option<Value>,
}

/// A movement about to be written.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: TransactionId,
    pub user_id: UserId,
    /// As in the contract, and `payment` for money that passes no balance.
    pub kind: &'static str,
    /// As clients see it.
    pub amount: Money,
    /// The available balance before and after, where it passes one.
    pub balances: Option<(Money, Money)>,
    pub from: Account,
    pub to: Account,
    /// What is taken and given: above zero.
    pub value: Money,
    pub details: Details,
    pub created_at: Timestamp,
}
