//! Begins a payment at its provider, between two transactions: the row is there before the first call, under the number
//! that the provider knows it by, so that no money can come that we know nothing of.

use contracts::Timestamp;

use super::{Payment, PaymentStatus, db};
use crate::provider::{Failure, Provider};
use crate::{Billing, Error, Result};

/// Whether the payer has not been told yet where to go on: the attempt to begin it was cut off.
pub fn is_due(payment: &Payment, now: Timestamp) -> bool {
    payment.provider_open
        && payment.status == PaymentStatus::Pending
        && payment.payment_url.is_none()
        && payment.qr_code.is_none()
        && now < payment.expires_at
}

/// Begins it, or finds it begun.
///
/// # Errors
/// 502 where the provider refuses it, which ends the payment; 504 where it does not answer, after which the same
/// request with the same key goes on.
pub async fn begin(state: &Billing, provider: &dyn Provider, payment: &Payment) -> Result<Payment> {
    let begun = provider.begin(payment).await;
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let provider = provider.name();
    match begun {
        Ok(begun) => {
            let payment = db::begun(&mut tx, &payment.id, &begun).await?;
            tx.commit().await?;
            Ok(payment)
        }
        Err(Failure::Refused(reason)) => {
            let told = "the provider refused it";
            db::end(&mut tx, &payment.id, PaymentStatus::Failed, told, now).await?;
            db::answered(&mut tx, &payment.id, &reason).await?;
            // It is asked about all the same: an attempt before this one may have begun it.
            tx.commit().await?;
            tracing::warn!(
                payment.no = payment.payment_no,
                "{provider} refused {}: {reason}",
                payment.payment_no
            );
            Err(Error::ProviderRefused { provider })
        }
        Err(Failure::Unclear(reason)) => {
            db::answered(&mut tx, &payment.id, &reason).await?;
            tx.commit().await?;
            tracing::warn!(
                payment.no = payment.payment_no,
                "{provider} did not begin {}: {reason}",
                payment.payment_no
            );
            Err(Error::ProviderSilent { provider })
        }
    }
}
