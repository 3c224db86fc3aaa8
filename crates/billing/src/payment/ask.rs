//! Asks providers about payments by which money may still come: a notice that was lost is made up for, and what can no
//! longer be used is closed there.

use chrono::TimeDelta;
use contracts::Timestamp;
use futures::{StreamExt, future, stream};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Payment, PaymentStatus, db};
use crate::provider::{Failure, Provider, Standing};
use crate::webhook::db::Delivery;
use crate::webhook::message::Said;
use crate::webhook::notice::{Notice, Status};
use crate::webhook::settle::settle;
use crate::{Billing, Result, metrics, refund, webhook};

/// How many one run of the cron asks about.
const BATCH: i64 = 100;
/// How many are asked about at once.
pub const AT_ONCE: usize = 8;
/// How long after its time a payment may still be carried out at its provider.
const GRACE: TimeDelta = TimeDelta::minutes(1);
/// How long after its time a payment is asked about, where no answer ends it.
const ASKED_FOR: TimeDelta = TimeDelta::days(7);

/// The cron: payments, and refunds beside them.
pub async fn run(state: &Billing, cancelled: &CancellationToken) -> anyhow::Result<()> {
    let refunds = refund::carry_out::carry_on(state, cancelled);
    future::try_join(ask_due(state, cancelled), refunds).await?;
    Ok(())
}

/// Asks about every payment whose time has come.
async fn ask_due(state: &Billing, cancelled: &CancellationToken) -> anyhow::Result<()> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let due = db::take_open(&mut conn, now, BATCH).await?;
    drop(conn);
    let asking = stream::iter(due)
        .for_each_concurrent(AT_ONCE, |payment| ask_or_later(state.clone(), payment));
    cancelled.run_until_cancelled(asking).await;
    Ok(())
}

/// One that fails, or whose provider is silent, is due again later; it holds up no other.
async fn ask_or_later(state: Billing, payment: Payment) {
    if let Err(error) = ask(&state, &payment).await {
        let number = &payment.payment_no;
        warn!(
            payment.no = number,
            "payment {number} could not be asked about: {error}"
        );
    }
}

/// Asks about one payment and carries out what its provider says, as if it had told it by itself. One that nobody has
/// answered for, seven days after its time, is given up.
///
/// # Errors
/// Where the store does not answer. A provider that does not is asked again by the cron.
pub async fn ask(state: &Billing, payment: &Payment) -> Result<()> {
    let name = payment.provider.as_deref().unwrap_or_default();
    let answer = match state.providers.named(name) {
        Some(provider) => match provider.ask(payment).await {
            Ok(standing) => carry_out(state, provider, payment, standing).await?,
            Err(failure) => failure.to_string(),
        },
        None => {
            let (number, reason) = (&payment.payment_no, "its provider is not configured here");
            warn!(payment.no = number, "payment {number}: {reason}");
            reason.to_owned()
        }
    };
    let mut conn = state.platform.db.acquire().await?;
    db::answered(&mut conn, &payment.id, &answer).await?;
    if state.platform.clock.now() <= payment.expires_at + ASKED_FOR {
        return Ok(());
    }
    let is_open = db::is_open(&mut conn, &payment.id).await?;
    drop(conn);
    match is_open {
        true => give_up(state, name, payment, &answer).await,
        false => Ok(()),
    }
}

/// Ends a payment of which nobody can say how it ended. Money that comes by it all the same goes to the balance.
async fn give_up(state: &Billing, name: &str, payment: &Payment, answer: &str) -> Result<()> {
    end(state, name, payment, Status::Cancelled, "given up").await?;
    let number = &payment.payment_no;
    error!(
        payment.no = number,
        "payment {number} is given up, seven days after its time: {answer}"
    );
    metrics::payment_given_up();
    let mut conn = state.platform.db.acquire().await?;
    let answer = format!("given up after seven days: {answer}");
    Ok(db::answered(&mut conn, &payment.id, &answer).await?)
}

/// What was made of an answer, in words.
async fn carry_out(
    state: &Billing,
    provider: &dyn Provider,
    payment: &Payment,
    standing: Standing,
) -> Result<String> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    drop(conn);
    match standing {
        Standing::Open | Standing::Missing if is_over(payment, now) => {
            match provider.close(payment).await {
                Ok(()) => end(state, provider.name(), payment, Status::Cancelled, "closed").await,
                // Most likely it was paid at this moment: the next time tells.
                Err(Failure::Refused(reason) | Failure::Unclear(reason)) => {
                    Ok(format!("not closed: {reason}"))
                }
            }
        }
        Standing::Open => Ok("waits for its payer".to_owned()),
        Standing::Missing => Ok("nobody has begun to pay".to_owned()),
        Standing::Failed(reason) => {
            let said = end(state, provider.name(), payment, Status::Failed, "failed").await?;
            Ok(format!("{said}: {reason}"))
        }
        Standing::Closed => end(state, provider.name(), payment, Status::Cancelled, "closed").await,
        Standing::Paid {
            transaction_id,
            amount,
        } => {
            let notice = Notice {
                transaction_id: Some(transaction_id),
                amount: Some(amount),
                ..told(provider.name(), payment, Status::Paid)
            };
            deliver(state, &notice).await?;
            let mut conn = state.platform.db.acquire().await?;
            db::close(&mut conn, &payment.id).await?;
            Ok(format!("paid: {amount}"))
        }
    }
}

/// Nobody needs it any more, or its time is over. After an attempt that failed, with a card that was declined, its payer
/// may make another one on the same page.
fn is_over(payment: &Payment, now: Timestamp) -> bool {
    let may_go_on = matches!(
        payment.status,
        PaymentStatus::Pending | PaymentStatus::Processing | PaymentStatus::Failed
    );
    !may_go_on || now > payment.expires_at + GRACE
}

async fn end(
    state: &Billing,
    provider: &str,
    payment: &Payment,
    status: Status,
    word: &str,
) -> Result<String> {
    if matches!(
        payment.status,
        PaymentStatus::Pending | PaymentStatus::Processing
    ) {
        deliver(state, &told(provider, payment, status)).await?;
    }
    let mut conn = state.platform.db.acquire().await?;
    db::close(&mut conn, &payment.id).await?;
    Ok(word.to_owned())
}

fn told(provider: &str, payment: &Payment, status: Status) -> Notice {
    let word = match status {
        Status::Paid | Status::Success => "paid",
        Status::Failed => "failed",
        Status::Cancelled => "cancelled",
    };
    Notice {
        order_id: Some(payment.order_id.to_string()),
        payment_no: Some(payment.payment_no.clone()),
        status,
        transaction_id: payment.transaction_id.clone(),
        amount: None,
        event_id: Some(format!("asked-{}-{word}", payment.payment_no)),
        provider: Some(provider.to_owned()),
    }
}

/// Settles what was asked for in the way of a notice, with all its outcomes: a payment that came too late is given back.
async fn deliver(state: &Billing, notice: &Notice) -> Result<()> {
    let event_id = notice.event_key(None);
    let raw = serde_json::to_vec(notice).unwrap_or_default();
    let delivery = Delivery {
        provider: notice.provider(),
        event_id: &event_id,
        signed: true,
        headers: None,
        raw: &raw,
        again: false,
    };
    let said = Said::Payment {
        notice: notice.clone(),
    };
    let settled = settle(state, delivery, Some(&said)).await?;
    webhook::api::count(&settled);
    let number = notice.payment_no.as_deref().unwrap_or_default();
    info!(
        payment.no = number,
        "payment {number}, asked about, was {}",
        settled.outcome.name()
    );
    Ok(())
}
