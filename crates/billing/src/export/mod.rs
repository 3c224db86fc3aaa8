//! Lists as CSV.

pub mod api;
mod tables;

use serde::Deserialize;

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
