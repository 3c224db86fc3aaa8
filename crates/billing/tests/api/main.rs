//! Billing from outside: the real router on a database of the test's own.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod app;
mod balance;
mod charges;
mod coupons;
mod exports;
mod figures;
mod invoices;
mod jobs;
mod ledger;
mod notices;
mod orders;
mod payments;
mod plans;
mod properties;
mod providers;
mod refunds_told;
mod sandbox;
mod signed;
mod terms;
mod usage;
mod webhooks;
