//! Statistics and reports for admins, from the ledger and from what other services tell.

pub mod api;
pub mod census;
pub mod reports;
