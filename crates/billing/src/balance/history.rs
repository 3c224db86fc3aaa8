//! The routes that list movements.

use axum::extract::State;
use contracts::UserId;
use garde::Validate;
use platform::CurrentUser;
use platform::http::{Json, Path, Query, SliceQuery};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};

use super::db::{self, Wanted};
use super::{Transaction, TransactionType};
use crate::times::Bound;
use crate::{Billing, Result};

/// Which movements are wanted.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct TransactionQuery {
    /// How many, 1 to 500; default 100.
    #[garde(range(min = 1))]
    pub limit: Option<i64>,
    /// How many to leave out first; default 0.
    #[garde(range(min = 0))]
    pub offset: Option<i64>,
    #[serde(rename = "type")]
    #[param(inline)]
    #[garde(skip)]
    pub kind: Option<TransactionType>,
    /// Only `success`: what stands in the ledger has succeeded.
    #[param(inline)]
    #[garde(skip)]
    #[expect(
        dead_code,
        reason = "there is one status; reading it refuses every other"
    )]
    pub status: Option<TransactionStatus>,
    /// A day or a moment.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub start_date: Option<Bound>,
    /// A day or a moment, with which the span ends.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub end_date: Option<Bound>,
}

/// The states of a movement.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TransactionStatus {
    Success,
}

/// A piece of a user's movements.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct TransactionSlice {
    pub data: Vec<Transaction>,
    pub total: i64,
    pub limit: i64,
    pub offset: i64,
}

impl TransactionQuery {
    fn wanted(&self) -> Wanted {
        let slice = SliceQuery {
            limit: self.limit,
            offset: self.offset,
        };
        Wanted {
            kind: self.kind,
            from: self.start_date,
            to: self.end_date,
            slice: slice.slice(),
        }
    }
}

/// Lists a user's movements.
#[utoipa::path(get, path = "/transactions/user/{userId}", tag = "balance", params(("userId" = UserId, Path), TransactionQuery),
    responses((status = 200, body = Vec<Transaction>), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_transactions(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
    Query(query): Query<TransactionQuery>,
) -> Result<Json<Vec<Transaction>>> {
    let owner = user.acting_for(Some(owner))?;
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(db::list(&mut conn, &owner, query.wanted()).await?))
}

/// Lists a user's movements with their number.
#[utoipa::path(get, path = "/balance/transactions/{userId}", tag = "balance", params(("userId" = UserId, Path), TransactionQuery),
    responses((status = 200, body = TransactionSlice), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_balance_transactions(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
    Query(query): Query<TransactionQuery>,
) -> Result<Json<TransactionSlice>> {
    let owner = user.acting_for(Some(owner))?;
    let wanted = query.wanted();
    let mut conn = state.platform.db.acquire().await?;
    let data = db::list(&mut conn, &owner, wanted).await?;
    let total = db::count(&mut conn, &owner, wanted).await?;
    Ok(Json(TransactionSlice {
        data,
        total,
        limit: wanted.slice.limit,
        offset: wanted.slice.offset,
    }))
}
