//! The provider of the sandbox: it takes every method, and nobody's money. Whoever opens its page says how the payment
//! ends; then it calls our webhook as a real provider does on a bad day: signed, some of it twice, late, in the wrong
//! order, and again where nobody answered.

pub mod api;
mod db;
mod notices;

use std::net::{Ipv4Addr, SocketAddr};

use chrono::TimeDelta;
use contracts::Service;
use futures::FutureExt;
use futures::future::BoxFuture;
use platform::Platform;

use super::{Begun, Failure, Provider, RefundStanding, Standing};
use crate::payment::Payment;
use crate::refund::Refund;

pub use notices::deliver_due;

/// How long a refund is on its way.
const REFUND_TAKES: TimeDelta = TimeDelta::seconds(1);

pub struct Sandbox(Platform);

impl Sandbox {
    pub fn new(platform: &Platform) -> Self {
        Self(platform.clone())
    }
}

/// Where this machine reaches a service: all its replicas share the address.
fn here(platform: &Platform, service: Service) -> SocketAddr {
    let mut address = platform.settings.address(service);
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}

/// A store that fails is a provider that does not answer.
fn unclear(error: sqlx::Error) -> Failure {
    Failure::Unclear(error.to_string())
}

impl Provider for Sandbox {
    fn name(&self) -> &'static str {
        "sandbox"
    }

    fn begin<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<Begun, Failure>> {
        async move {
            let mut conn = self.0.db.acquire().await.map_err(unclear)?;
            db::open(&mut conn, payment).await.map_err(unclear)?;
            let gateway = here(&self.0, Service::Gateway);
            let number = &payment.payment_no;
            let page = format!("http://{gateway}/api/payments/sandbox/{number}");
            Ok(Begun {
                reference: None,
                qr_code: Some(page.clone()),
                payment_url: Some(page),
            })
        }
        .boxed()
    }

    fn ask<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<Standing, Failure>> {
        async move {
            let mut conn = self.0.db.acquire().await.map_err(unclear)?;
            let found = db::find(&mut conn, &payment.payment_no).await;
            Ok(match found.map_err(unclear)? {
                None => Standing::Missing,
                Some(found) => found.standing(),
            })
        }
        .boxed()
    }

    fn close<'a>(&'a self, payment: &'a Payment) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let mut conn = self.0.db.acquire().await.map_err(unclear)?;
            let closed = db::end(&mut conn, &payment.payment_no, "closed").await;
            closed.map_err(unclear)?;
            match self.ask(payment).await? {
                Standing::Paid { .. } => Err(Failure::Refused("it was paid".to_owned())),
                _ => Ok(()),
            }
        }
        .boxed()
    }

    fn refund<'a>(
        &'a self,
        refund: &'a Refund,
        of: &'a Payment,
    ) -> BoxFuture<'a, Result<RefundStanding, Failure>> {
        async move {
            let mut conn = self.0.db.acquire().await.map_err(unclear)?;
            let made = db::refund(&mut conn, refund, of, REFUND_TAKES).await;
            if made.map_err(unclear)? {
                return self.ask_refund(refund, of).await;
            }
            Err(Failure::Refused("more than was paid".to_owned()))
        }
        .boxed()
    }

    fn ask_refund<'a>(
        &'a self,
        refund: &'a Refund,
        _: &'a Payment,
    ) -> BoxFuture<'a, Result<RefundStanding, Failure>> {
        async move {
            let mut conn = self.0.db.acquire().await.map_err(unclear)?;
            let done = db::is_refunded(&mut conn, refund.number()).await;
            let reference = Some(format!("sandbox-{}", refund.number()));
            Ok(match done.map_err(unclear)? {
                None => RefundStanding::Missing,
                Some(false) => RefundStanding::Processing { reference },
                Some(true) => RefundStanding::Succeeded { reference },
            })
        }
        .boxed()
    }

    fn shown(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}
