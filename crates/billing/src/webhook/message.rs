//! What a provider told, whichever it is: one shape for three wires.

use contracts::Money;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Outcome;
use super::notice::Notice;
use crate::provider::RefundStanding;
use crate::rules::is_reference;

/// A believed notice of a provider.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub provider: &'static str,
    /// What names the event at its provider; the same for each delivery.
    pub event_id: String,
    pub said: Said,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Said {
    /// How a payment ended.
    Payment { notice: Notice },
    /// How a refund stands.
    Refund { refund: RefundTold },
    /// Something that changes nothing here.
    Other { event: String },
    /// A payment or refund of another merchant or application, or in another currency.
    Foreign { event: String, outcome: Outcome },
}

/// A refund as a provider tells of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefundTold {
    /// Our number of the payment.
    pub payment_no: Option<String>,
    /// The provider's name of the payment.
    pub transaction_id: Option<String>,
    /// Our number of the refund; absent, or a stranger's, where it was made in the provider's console.
    pub refund_no: Option<String>,
    /// The provider's name of the refund.
    pub reference: Option<String>,
    pub amount: Money,
    /// Whether the amount is that of all refunds of the payment so far.
    pub is_total: bool,
    pub stands: Stands,
}

/// How a refund stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stands {
    Processing,
    Succeeded,
    Failed,
}

impl Said {
    /// The word for it in the store.
    pub fn status(&self) -> &str {
        match self {
            Self::Payment { notice } => notice.told().name(),
            Self::Refund { .. } => "refund",
            Self::Other { .. } | Self::Foreign { .. } => "other",
        }
    }
}

impl RefundTold {
    /// The same as an answer of the provider to our question.
    pub fn standing(&self) -> RefundStanding {
        let reference = self.reference.clone();
        match self.stands {
            Stands::Processing => RefundStanding::Processing { reference },
            Stands::Succeeded => RefundStanding::Succeeded { reference },
            Stands::Failed => RefundStanding::Failed("the provider gave it up".to_owned()),
        }
    }
}

/// A name in a provider's JSON.
pub fn reference(value: &Value) -> Option<String> {
    let text = value.as_str().filter(|text| is_reference(text));
    text.map(str::to_owned)
}

/// An amount in a provider's JSON, in fen.
pub fn amount(fen: &Value) -> Option<Money> {
    let fen = Money(fen.as_i64()?);
    (Money(1)..=Money::MAX_INPUT).contains(&fen).then_some(fen)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Panics where the store could not take a message, or it moves money that nobody may name.
    pub fn check_bounds(message: &Message) {
        let text = |text: &str, most: usize| {
            assert!(
                !text.is_empty() && text.chars().count() <= most && !text.contains('\0'),
                "{message:?}"
            );
        };
        text(&message.event_id, 512);
        let names = match &message.said {
            Said::Payment { notice } => {
                assert!(
                    notice.order_id.is_some() || notice.payment_no.is_some(),
                    "{message:?}"
                );
                assert!(
                    notice.status != super::super::notice::Status::Paid || notice.amount.is_some(),
                    "{message:?}"
                );
                assert!(
                    notice.amount.is_none_or(|amount| amount >= Money::ZERO),
                    "{message:?}"
                );
                [
                    &notice.order_id,
                    &notice.payment_no,
                    &notice.transaction_id,
                    &notice.provider,
                ]
            }
            Said::Refund { refund } => {
                assert!(refund.amount > Money::ZERO, "{message:?}");
                assert!(
                    refund.payment_no.is_some() || refund.transaction_id.is_some(),
                    "{message:?}"
                );
                [
                    &refund.payment_no,
                    &refund.transaction_id,
                    &refund.refund_no,
                    &refund.reference,
                ]
            }
            Said::Other { .. } | Said::Foreign { .. } => [&None; 4],
        };
        for name in names.into_iter().flatten() {
            text(name, 128);
        }
        assert!(!message.said.status().contains('\0'));
    }
}
