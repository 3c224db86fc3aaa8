//! Notices of payments: read, believed only when signed, and each with one defined outcome.

pub mod alipay;
pub mod api;
pub mod db;
pub mod kept;
pub mod message;
pub mod notice;
pub mod providers;
pub mod refund_told;
pub mod settings;
pub mod settle;
pub mod signature;
mod stripe;
pub mod wechatpay;

use contracts::Timestamp;

use crate::order::Order;
use crate::payment::{Method, Payment, PaymentStatus};
use notice::{Names, Notice, Told};
use serde::{Deserialize, Serialize};
pub use settings::Settings;

/// What became of a notice.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Outcome {
    /// Stored, not yet worked on; never seen outside its transaction.
    Received,
    /// It paid its order.
    Paid,
    /// What it says was known.
    Duplicate,
    /// Its order could not take the money, which went to the user's balance.
    Refunded,
    /// An attempt failed or was given up.
    Failed,
    /// It tells of an attempt that no longer matters.
    Ignored,
    /// It told how a refund stands, and that was booked or was known.
    RefundSettled,
    /// Its amount is not the order's, or more than is left of it. Kept, and tried again when it is delivered again.
    AmountMismatch,
    /// It is about another currency. Kept.
    CurrencyMismatch,
    /// It is about another merchant, application or mode. Kept.
    MerchantMismatch,
    /// No order of ours. Kept, and tried again when it is delivered again, and by the cron.
    UnknownOrder,
    /// A refund of a payment that we have not heard of yet, or that is at odds with what was booked. Kept, and tried
    /// again by the cron.
    Held,
    /// It is signed, and cannot be read. Kept.
    Unreadable,
}

impl Outcome {
    /// The name in the store and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Paid => "paid",
            Self::Duplicate => "duplicate",
            Self::Refunded => "refunded",
            Self::Failed => "failed",
            Self::Ignored => "ignored",
            Self::RefundSettled => "refund_settled",
            Self::AmountMismatch => "amount_mismatch",
            Self::CurrencyMismatch => "currency_mismatch",
            Self::MerchantMismatch => "merchant_mismatch",
            Self::UnknownOrder => "unknown_order",
            Self::Held => "held",
            Self::Unreadable => "unreadable",
        }
    }

    /// Whether the notice was dealt with for good.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Paid
            | Self::Duplicate
            | Self::Refunded
            | Self::Failed
            | Self::Ignored
            | Self::RefundSettled => true,
            Self::Received
            | Self::AmountMismatch
            | Self::CurrencyMismatch
            | Self::MerchantMismatch
            | Self::UnknownOrder
            | Self::Held
            | Self::Unreadable => false,
        }
    }
}

/// What is known about the order of a notice, read while the order is locked.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The order.
    pub order: Order,
    /// The payment that paid it.
    pub applied: Option<Payment>,
    /// The payment that the notice names.
    pub named: Option<Payment>,
    /// What earlier notices about this order told of, and were dealt with.
    pub earlier: Vec<(Told, Names)>,
}

/// What is to be done about a notice.
pub fn decide(notice: &Notice, facts: &Facts, now: Timestamp) -> Outcome {
    let known = facts
        .earlier
        .iter()
        .any(|(told, names)| *told == notice.told() && names.may_be(&notice.names()));
    if known {
        return Outcome::Duplicate;
    }
    let payable = facts.order.payable(now).is_ok();
    match notice.told() {
        Told::Failed | Told::Cancelled if payable => Outcome::Failed,
        Told::Failed | Told::Cancelled => Outcome::Ignored,
        // What was asked for when it was begun, of an order whose price has changed since.
        Told::Paid if is_its_own_amount(notice, facts) => Outcome::Refunded,
        Told::Paid if facts.order.agrees(notice.amount).is_err() => Outcome::AmountMismatch,
        Told::Paid if is_told_already(notice, facts) => Outcome::Duplicate,
        Told::Paid if payable => Outcome::Paid,
        Told::Paid => Outcome::Refunded,
    }
}

/// Whether the amount is no longer the order's, but that of the open payment which the notice names; so it is where the
/// notice tells none.
fn is_its_own_amount(notice: &Notice, facts: &Facts) -> bool {
    facts.named.as_ref().is_some_and(|named| {
        named.status.is_open_or_failed()
            && named.amount != facts.order.final_amount
            && notice.amount.is_none_or(|amount| amount == named.amount)
    })
}

/// Whether the payment of the notice is one that we know of by another way: paid or given back under its number, or
/// confirmed by an admin. In doubt it is, for an order is seldom paid twice, and the notice is kept.
fn is_told_already(notice: &Notice, facts: &Facts) -> bool {
    let given_back = |payment: &Payment| payment.status == PaymentStatus::Refunded;
    if facts.named.as_ref().is_some_and(given_back) {
        return true;
    }
    let Some(applied) = &facts.applied else {
        return false;
    };
    if let (Some(ours), Some(theirs)) = (&applied.transaction_id, &notice.transaction_id) {
        return ours == theirs;
    }
    if facts
        .named
        .as_ref()
        .is_some_and(|named| named.id == applied.id)
    {
        return true;
    }
    let is_anonymous = notice.transaction_id.is_none() && notice.payment_no.is_none();
    // What paid from the balance cannot be what a provider tells of.
    applied.method != Method::Balance || is_anonymous
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use contracts::Money;
    use platform::Clock;

    use super::*;
    use crate::order::OrderState;
    use crate::order::tests::order;

    fn notice(body: &str) -> Notice {
        notice::read(&http::HeaderMap::new(), body.as_bytes()).unwrap()
    }

    fn facts(state: OrderState) -> (Facts, Timestamp) {
        let now = Clock::system().now();
        let facts = Facts {
            order: order(state, now),
            applied: None,
            named: None,
            earlier: Vec::new(),
        };
        (facts, now)
    }

    fn applied(facts: &mut Facts, method: Method, transaction: Option<&str>, now: Timestamp) {
        let mut payment = Payment::of(&facts.order, method, now);
        payment.status = PaymentStatus::Success;
        payment.transaction_id = transaction.map(str::to_owned);
        facts.applied = Some(payment);
    }

    #[test]
    fn each_state_has_one_outcome() {
        let paid = notice(r#"{"orderId":"o","status":"paid","transactionId":"t"}"#);
        let failed = notice(r#"{"orderId":"o","status":"failed"}"#);
        for state in OrderState::ALL {
            let (facts, now) = facts(state);
            let late = facts.order.expires_at + TimeDelta::milliseconds(1);
            let pending = state == OrderState::Pending;

            let expected = if pending {
                Outcome::Paid
            } else {
                Outcome::Refunded
            };
            assert_eq!(decide(&paid, &facts, now), expected, "{state:?}");
            assert_eq!(decide(&paid, &facts, late), Outcome::Refunded, "{state:?}");
            let expected = if pending {
                Outcome::Failed
            } else {
                Outcome::Ignored
            };
            assert_eq!(decide(&failed, &facts, now), expected, "{state:?}");
        }
    }

    #[test]
    fn the_amount_must_be_the_one_due() {
        let (facts, now) = facts(OrderState::Pending);
        let right = notice(r#"{"orderId":"o","status":"paid","amount":99}"#);
        let wrong = notice(r#"{"orderId":"o","status":"paid","amount":98.99}"#);

        assert_eq!(facts.order.final_amount, Money::yuan(99));
        assert_eq!(decide(&right, &facts, now), Outcome::Paid);
        assert_eq!(decide(&wrong, &facts, now), Outcome::AmountMismatch);
    }

    #[test]
    fn what_was_begun_at_the_price_of_then_is_given_back_and_not_lost() {
        let (mut facts, now) = facts(OrderState::Pending);
        let named = Payment::of(&facts.order, Method::Stripe, now);
        facts.order.final_amount = Money::yuan(89);
        facts.named = Some(named);
        let then = notice(r#"{"paymentNo":"p","status":"paid","amount":99}"#);
        let other = notice(r#"{"paymentNo":"p","status":"paid","amount":98}"#);

        let silent = notice(r#"{"paymentNo":"p","status":"paid"}"#);

        assert_eq!(decide(&then, &facts, now), Outcome::Refunded);
        assert_eq!(decide(&silent, &facts, now), Outcome::Refunded);
        assert_eq!(decide(&other, &facts, now), Outcome::AmountMismatch);
    }

    #[test]
    fn only_a_payment_that_is_surely_another_one_is_given_back() {
        let by_transaction = notice(r#"{"orderId":"o","status":"paid","transactionId":"t2"}"#);
        let same = notice(r#"{"orderId":"o","status":"paid","transactionId":"t1"}"#);
        let bare = notice(r#"{"orderId":"o","status":"paid"}"#);
        for (method, ours, notice, expected) in [
            (
                Method::Wechat,
                Some("t1"),
                &by_transaction,
                Outcome::Refunded,
            ),
            (Method::Wechat, Some("t1"), &same, Outcome::Duplicate),
            (Method::Wechat, Some("t1"), &bare, Outcome::Duplicate),
            (Method::Other, None, &by_transaction, Outcome::Duplicate),
            (Method::Balance, None, &by_transaction, Outcome::Refunded),
            (Method::Balance, None, &bare, Outcome::Duplicate),
        ] {
            let (mut facts, now) = facts(OrderState::Paid);
            applied(&mut facts, method, ours, now);

            assert_eq!(
                decide(notice, &facts, now),
                expected,
                "{method:?} {ours:?} {notice:?}"
            );
        }
    }

    #[test]
    fn what_an_earlier_notice_told_is_a_duplicate() {
        let (mut facts, now) = facts(OrderState::Cancelled);
        let first = notice(r#"{"orderId":"o","status":"paid","transactionId":"t"}"#);
        facts.earlier.push((first.told(), first.names()));

        for (body, expected) in [
            (
                r#"{"orderId":"o","status":"success","transactionId":"t"}"#,
                Outcome::Duplicate,
            ),
            (r#"{"orderId":"o","status":"paid"}"#, Outcome::Duplicate),
            (
                r#"{"orderId":"o","status":"paid","transactionId":"t2"}"#,
                Outcome::Refunded,
            ),
            (
                r#"{"orderId":"o","status":"failed","transactionId":"t"}"#,
                Outcome::Ignored,
            ),
        ] {
            assert_eq!(decide(&notice(body), &facts, now), expected, "{body}");
        }
    }
}
