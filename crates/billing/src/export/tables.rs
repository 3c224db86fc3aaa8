//! What stands in each export. Times are UTC, amounts yuan with two decimals.

use contracts::{Timestamp, UserId};
use platform::export::{Column, literal};

use super::Table;

/// Which rows are wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose; everybody's where nobody is named.
    pub user: Option<UserId>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

/// The rows of a table, oldest first.
pub fn select(table: Table, wanted: &Wanted) -> String {
    let (columns, source, time) = match table {
        Table::Transactions => (
            TRANSACTIONS,
            "billing.transactions t where balance_after is not null",
            "created_at",
        ),
        Table::Orders => (ORDERS, "billing.orders t where true", "created_at"),
        Table::Payments => (PAYMENTS, "billing.payments t where true", "created_at"),
        Table::Invoices => (INVOICES, "billing.invoices t where true", "created_at"),
        Table::Usage => (USAGE, "billing.usage t where true", "began_at"),
    };
    let mut select = format!("select {} from {source}", Column::list(columns));
    if let Some(user) = &wanted.user {
        select.push_str(&format!(" and user_id = {}", literal(user)));
    }
    if let Some(from) = wanted.from {
        select.push_str(&format!(" and t.{time} >= {}", literal(from)));
    }
    if let Some(to) = wanted.to {
        select.push_str(&format!(" and t.{time} <= {}", literal(to)));
    }
    // By the column and not by the text that the list makes of it: an index gives that order, and the first row at once.
    format!("{select} order by t.{time}, t.seq")
}

use Column::{Money, Plain, Text, Time};

const TRANSACTIONS: &[Column] = &[
    Text("id"),
    Time("created_at"),
    Text("user_id"),
    Plain("type"),
    Money("amount"),
    Money("balance_before"),
    Money("balance_after"),
    Text("description"),
    Text("order_id"),
    Text("payment_id"),
    Text("device_id"),
];
const ORDERS: &[Column] = &[
    Text("id"),
    Plain("order_no"),
    Time("created_at"),
    Text("user_id"),
    Text("plan_id"),
    Text("plan_name"),
    Plain("state"),
    Money("amount"),
    Money("discount_amount"),
    Money("final_amount"),
    Money("refund_amount"),
    Plain("currency"),
    Text("payment_method"),
    Text("transaction_id"),
    Time("paid_at"),
];
const PAYMENTS: &[Column] = &[
    Text("id"),
    Plain("payment_no"),
    Time("created_at"),
    Text("order_id"),
    Text("user_id"),
    Plain("method"),
    Plain("status"),
    Money("amount"),
    Money("refund_amount"),
    Plain("currency"),
    Text("transaction_id"),
    Time("paid_at"),
];
const INVOICES: &[Column] = &[
    Text("id"),
    Plain("invoice_number"),
    Time("created_at"),
    Text("user_id"),
    Plain("type"),
    Plain("status"),
    Money("subtotal"),
    Money("tax"),
    Money("discount"),
    Money("total"),
    Plain("currency"),
    Time("period_start"),
    Time("period_end"),
    Time("due_date"),
    Time("paid_at"),
];
const USAGE: &[Column] = &[
    Text("id"),
    Time("began_at"),
    Time("ended_at"),
    Text("user_id"),
    Text("device_id"),
    Plain("resource_type"),
    Plain("quantity"),
    Plain("unit_price"),
    Money("total_cost"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_the_order_of_the_stored_time() {
        let wanted = Wanted {
            user: None,
            from: None,
            to: None,
        };
        for (table, order) in [
            (
                Table::Orders,
                "billing.orders t where true order by t.created_at, t.seq",
            ),
            (
                Table::Usage,
                "billing.usage t where true order by t.began_at, t.seq",
            ),
        ] {
            assert!(select(table, &wanted).ends_with(order));
        }
    }
}
