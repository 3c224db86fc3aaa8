//! Balances: what a user can spend and what is frozen, and the movements between.

pub mod api;
pub mod db;
pub mod history;
pub mod statistics;

use contracts::{Event, EventBody, Money, OrderId, Timestamp, TransactionId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;

use crate::ledger::{self, Account, Details, Entry};
use crate::{Error, Result};

/// A user's balance, as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Balance {
    pub id: String,
    pub user_id: UserId,
    pub available: Money,
    pub frozen: Money,
    pub total_recharge: Money,
    pub total_consume: Money,
    pub currency: String,
    pub low_balance_threshold: Money,
    pub alert_enabled: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Balance {
    /// Whether a movement took it to its threshold or below, and its user wants to know.
    fn fell_low_from(&self, before: Money) -> bool {
        self.alert_enabled
            && before > self.low_balance_threshold
            && self.available <= self.low_balance_threshold
    }
}

/// A user's balance, as clients read it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Balance)]
pub struct BalanceReply {
    pub id: String,
    pub user_id: UserId,
    /// What can be spent.
    pub balance: Money,
    /// The same as `balance`.
    pub available_balance: Money,
    pub frozen_balance: Money,
    /// The same as `frozenBalance`.
    pub frozen_amount: Money,
    /// Available and frozen.
    pub total_balance: Money,
    pub total_recharge: Money,
    pub total_consume: Money,
    /// The same as `totalConsume`.
    pub total_consumption: Money,
    pub currency: String,
    /// normal, low, insufficient or frozen.
    pub status: &'static str,
    pub low_balance_threshold: Money,
    pub alert_enabled: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// The kinds of movement that a user sees.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum TransactionType {
    Recharge,
    Consume,
    Refund,
    Freeze,
    Unfreeze,
    Adjust,
}

/// A movement on a user's balance.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Transaction {
    pub id: TransactionId,
    pub user_id: UserId,
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub kind: TransactionType,
    /// Above zero; signed only where a balance was adjusted.
    pub amount: Money,
    /// The available balance before.
    pub balance_before: Money,
    /// The available balance after.
    pub balance_after: Money,
    /// Always success.
    pub status: String,
    pub description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_id: Option<OrderId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
    pub created_at: Timestamp,
}

/// A movement and what it left.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Moved {
    pub balance: BalanceReply,
    pub transaction: Transaction,
}

/// How money moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Movement {
    /// From outside to the user.
    Recharge,
    /// From the user to our revenue.
    Consume,
    /// Of a paid order, back to the user.
    Refund,
    /// A payment that its order could not take, to the user.
    GiveBack,
    /// From available to frozen.
    Freeze,
    /// From frozen to available.
    Unfreeze,
    /// By an admin, either way.
    Adjust,
}

/// What a movement does to a user's balance, and between which accounts it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shift {
    pub kind: TransactionType,
    pub available: Money,
    pub frozen: Money,
    pub recharged: Money,
    pub consumed: Money,
    pub from: Account,
    pub to: Account,
    /// What is taken and given: above zero.
    pub value: Money,
}

impl Movement {
    /// What moving an amount does. The amount is above zero, save where a balance is adjusted.
    pub fn shift(self, user: &UserId, amount: Money) -> Shift {
        let available = || Account::Available(user.clone());
        let frozen = || Account::Frozen(user.clone());
        let none = Money::ZERO;
        let (kind, change, from, to) = match self {
            Self::Recharge => (
                TransactionType::Recharge,
                (amount, none),
                Account::CashIn,
                available(),
            ),
            Self::Consume => (
                TransactionType::Consume,
                (-amount, none),
                available(),
                Account::Revenue,
            ),
            Self::Refund => (
                TransactionType::Refund,
                (amount, none),
                Account::Refunds,
                available(),
            ),
            Self::GiveBack => (
                TransactionType::Refund,
                (amount, none),
                Account::CashIn,
                available(),
            ),
            Self::Freeze => (
                TransactionType::Freeze,
                (-amount, amount),
                available(),
                frozen(),
            ),
            Self::Unfreeze => (
                TransactionType::Unfreeze,
                (amount, -amount),
                frozen(),
                available(),
            ),
            Self::Adjust if amount < none => (
                TransactionType::Adjust,
                (amount, none),
                available(),
                Account::Adjustments,
            ),
            Self::Adjust => (
                TransactionType::Adjust,
                (amount, none),
                Account::Adjustments,
                available(),
            ),
        };
        Shift {
            kind,
            available: change.0,
            frozen: change.1,
            recharged: if self == Self::Recharge { amount } else { none },
            consumed: if self == Self::Consume { amount } else { none },
            from,
            to,
            value: Money(amount.fen().abs()),
        }
    }
}

/// Moves money: the balance, the ledger and the event, in the caller's transaction.
///
/// # Errors
/// 402 or 400 where there is too little to move: roll back.
pub async fn move_money(
    conn: &mut PgConnection,
    user: &UserId,
    movement: Movement,
    amount: Money,
    details: Details,
    now: Timestamp,
) -> Result<Moved> {
    let shift = movement.shift(user, amount);
    db::ensure(conn, user, now).await?;
    let Some(balance) = db::shift(conn, user, &shift, now).await? else {
        let balance = db::find(conn, user)
            .await?
            .ok_or(sqlx::Error::RowNotFound)?;
        return Err(if shift.frozen < Money::ZERO {
            Error::NotEnoughFrozen {
                frozen: balance.frozen,
            }
        } else {
            Error::InsufficientBalance {
                available: balance.available,
                needed: shift.value,
            }
        });
    };
    let transaction = Transaction {
        id: TransactionId::new(),
        user_id: user.clone(),
        kind: shift.kind,
        amount,
        balance_before: balance.available - shift.available,
        balance_after: balance.available,
        status: "success".to_owned(),
        description: details.description.clone(),
        order_id: details.order_id.clone(),
        payment_id: details.payment_id.clone(),
        device_id: details.device_id.clone(),
        operator_id: details.operator_id.clone(),
        metadata: details.metadata.clone(),
        created_at: now,
    };
    let entry = Entry {
        id: transaction.id.clone(),
        user_id: user.clone(),
        kind: shift.kind.name(),
        amount,
        balances: Some((transaction.balance_before, transaction.balance_after)),
        from: shift.from,
        to: shift.to,
        value: shift.value,
        details,
        created_at: now,
    };
    ledger::db::post(conn, &entry).await?;
    let body = EventBody::BalanceChanged {
        transaction_id: transaction.id.clone(),
        balance: balance.available,
    };
    platform::events::emit(conn, &Event::new(user.clone(), now, body)).await?;
    if balance.fell_low_from(transaction.balance_before) {
        db::insert_alert(conn, &balance, now).await?;
        let body = EventBody::BalanceLow {
            balance: balance.available,
            threshold: balance.low_balance_threshold,
        };
        platform::events::emit(conn, &Event::new(user.clone(), now, body)).await?;
    }
    Ok(Moved {
        balance: balance.into(),
        transaction,
    })
}

impl TransactionType {
    /// The name in the store and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Recharge => "recharge",
            Self::Consume => "consume",
            Self::Refund => "refund",
            Self::Freeze => "freeze",
            Self::Unfreeze => "unfreeze",
            Self::Adjust => "adjust",
        }
    }
}

impl From<Balance> for BalanceReply {
    fn from(balance: Balance) -> Self {
        let status = if balance.available <= Money::ZERO {
            "insufficient"
        } else if balance.available <= balance.low_balance_threshold {
            "low"
        } else {
            "normal"
        };
        Self {
            id: balance.id,
            user_id: balance.user_id,
            balance: balance.available,
            available_balance: balance.available,
            frozen_balance: balance.frozen,
            frozen_amount: balance.frozen,
            total_balance: balance.available + balance.frozen,
            total_recharge: balance.total_recharge,
            total_consume: balance.total_consume,
            total_consumption: balance.total_consume,
            currency: balance.currency,
            status,
            low_balance_threshold: balance.low_balance_threshold,
            alert_enabled: balance.alert_enabled,
            created_at: balance.created_at,
            updated_at: balance.updated_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_balance_changes_by_what_the_users_accounts_gain() {
        let user: UserId = "u".parse().unwrap();
        let cases = [
            (Movement::Recharge, Money(500)),
            (Movement::Consume, Money(500)),
            (Movement::Refund, Money(500)),
            (Movement::GiveBack, Money(500)),
            (Movement::Freeze, Money(500)),
            (Movement::Unfreeze, Money(500)),
            (Movement::Adjust, Money(500)),
            (Movement::Adjust, Money(-500)),
        ];
        for (movement, amount) in cases {
            let shift = movement.shift(&user, amount);

            let gain = |account: Account| {
                let given = if shift.to == account {
                    shift.value
                } else {
                    Money::ZERO
                };
                let taken = if shift.from == account {
                    shift.value
                } else {
                    Money::ZERO
                };
                given - taken
            };
            assert!(
                shift.value > Money::ZERO && shift.from != shift.to,
                "{movement:?}"
            );
            assert_eq!(
                shift.available,
                gain(Account::Available(user.clone())),
                "{movement:?}"
            );
            assert_eq!(
                shift.frozen,
                gain(Account::Frozen(user.clone())),
                "{movement:?}"
            );
        }
    }
}
