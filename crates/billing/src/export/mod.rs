//! Lists as CSV: written by PostgreSQL row by row and passed on as they come, however long they are.

pub mod api;
mod copy;
mod tables;

use serde::Deserialize;

/// How many exports a replica carries at a time: each keeps a connection of the pool for as long as its client reads.
pub const AT_ONCE: usize = 2;

/// What can be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// Movements on balances.
    Transactions,
    Orders,
    Payments,
    Invoices,
    /// What devices used, and what was recorded.
    Usage,
}

impl Table {
    /// The name in paths and of files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transactions => "transactions",
            Self::Orders => "orders",
            Self::Payments => "payments",
            Self::Invoices => "invoices",
            Self::Usage => "usage",
        }
    }
}
