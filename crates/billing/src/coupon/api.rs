//! The routes of coupons.

use axum::extract::State;
use axum::response::Response;
use chrono::TimeDelta;
use contracts::{Money, OrderId, TransactionId, UserId};
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{Admin, CurrentUser, Problem};
use serde::{Deserialize, Serialize};

use super::campaign::{self, Campaign};
use super::db::{self, CouponStats, NewCoupon};
use super::{Coupon, Kind, Status, check_value, pay_nothing, refuse_second};
use crate::{Billing, Error, Result, callers, order, payment, rules};

/// A coupon for a user, or a code for many: `userId` or `maxUses`.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateCoupon {
    /// Who is given it.
    #[garde(skip)]
    pub user_id: Option<UserId>,
    #[garde(length(chars, min = 1, max = 100), custom(rules::plain))]
    pub name: String,
    #[serde(rename = "type")]
    #[garde(skip)]
    pub kind: Kind,
    /// Percent of a discount, yuan of an amount, days of a trial.
    #[garde(skip)]
    pub value: Money,
    /// The least price of an order that can use it.
    #[garde(custom(rules::optional_amount))]
    pub min_amount: Option<Money>,
    #[garde(range(min = 1, max = 3_660))]
    pub valid_days: i64,
    /// The code of a campaign: 4 to 64 letters, digits and `-`. One is made where it is left out.
    #[garde(inner(length(min = 4, max = 64), pattern(r"^[A-Za-z0-9-]+$")))]
    pub code: Option<String>,
    /// How many coupons the code gives.
    #[garde(range(min = 1, max = 1_000_000))]
    pub max_uses: Option<i32>,
    /// How many of them one user can have; default 1.
    #[garde(range(min = 1, max = 1_000))]
    pub per_user: Option<i32>,
}

/// What was made.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum CreatedCoupon {
    Coupon(Coupon),
    Campaign(Campaign),
}

/// A code to be claimed.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct ClaimCoupon {
    #[garde(length(min = 4, max = 64), pattern(r"^[A-Za-z0-9-]+$"))]
    pub code: String,
}

/// An order to be lowered.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UseCoupon {
    #[garde(skip)]
    pub order_id: OrderId,
}

/// Which coupons are wanted.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CouponQuery {
    #[param(inline)]
    #[garde(skip)]
    pub status: Option<Status>,
}

/// Gives a user a coupon, or makes a code by which many can have one.
#[utoipa::path(post, path = "/coupons", tag = "coupons", request_body = CreateCoupon, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = CreatedCoupon), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn create_coupon(
    State(state): State<Billing>,
    Admin(admin): Admin,
    Idempotent { body, key }: Idempotent<CreateCoupon>,
) -> Result<Response> {
    check_value(body.kind, body.value)?;
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &format!("user:{}", admin.id)).await? {
        Turn::First(turn) => turn,
        Turn::Replay(response) => return Ok(response),
    };
    let now = state.platform.clock.shared(&mut tx).await?;
    let end_time = now + TimeDelta::days(body.valid_days);
    let id = TransactionId::new().to_string();
    let created = match (&body.user_id, body.max_uses) {
        (Some(user), None) => {
            let coupon = NewCoupon {
                id: &id,
                campaign_id: None,
                user_id: user,
                name: &body.name,
                kind: body.kind,
                value: body.value,
                min_amount: body.min_amount,
                start_time: now,
                end_time,
                operator_id: Some(admin.id.as_str()),
                created_at: now,
            };
            db::insert(&mut tx, &coupon).await?;
            let coupon = db::find(&mut tx, &id, now).await?;
            CreatedCoupon::Coupon(coupon.ok_or(sqlx::Error::RowNotFound)?)
        }
        (None, Some(max_uses)) => {
            let code = body.code.unwrap_or_else(|| id.replace('-', ""));
            let campaign = Campaign {
                id,
                code: code.to_uppercase(),
                name: body.name,
                kind: body.kind,
                value: body.value,
                min_amount: body.min_amount,
                max_uses,
                per_user: body.per_user.unwrap_or(1),
                claimed: 0,
                start_time: now,
                end_time,
                created_at: now,
            };
            let campaign = campaign::insert(&mut tx, &campaign, &admin.id).await?;
            CreatedCoupon::Campaign(campaign.ok_or(Error::CouponUnusable("the code is taken"))?)
        }
        _ => {
            let fault = "name either a user, or how many uses a code has";
            return Err(Problem::invalid_field("userId", fault).into());
        }
    };
    let response = turn.reply(&mut tx, StatusCode::CREATED, &created).await?;
    tx.commit().await?;
    Ok(response)
}

/// Claims one of the coupons of a code.
#[utoipa::path(post, path = "/coupons/claim", tag = "coupons", request_body = ClaimCoupon, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = Coupon), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn claim_coupon(
    State(state): State<Billing>,
    user: CurrentUser,
    Idempotent { body, key }: Idempotent<ClaimCoupon>,
) -> Result<Response> {
    // Codes are not to be guessed.
    callers::limit(&state, &user, "coupons").await?;
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &format!("user:{}", user.id)).await? {
        Turn::First(turn) => turn,
        Turn::Replay(response) => return Ok(response),
    };
    let now = state.platform.clock.shared(&mut tx).await?;
    let id = campaign::claim(&mut tx, &body.code.to_uppercase(), &user.id, now).await?;
    let coupon = db::find(&mut tx, &id, now).await?;
    let coupon = coupon.ok_or(sqlx::Error::RowNotFound)?;
    let response = turn.reply(&mut tx, StatusCode::CREATED, &coupon).await?;
    tx.commit().await?;
    Ok(response)
}

/// Lists the caller's coupons.
#[utoipa::path(get, path = "/coupons/my", tag = "coupons", params(PageQuery, CouponQuery),
    responses((status = 200, body = Page<Coupon>), (status = 400, body = ProblemBody)))]
pub async fn list_my_coupons(
    State(state): State<Billing>,
    user: CurrentUser,
    Query(page): Query<PageQuery>,
    Query(query): Query<CouponQuery>,
) -> Result<Json<Page<Coupon>>> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let coupons = db::list(&mut conn, &user.id, query.status, page.slice(), now).await?;
    let stats = db::stats(&mut conn, &user.id, now).await?;
    let total = match query.status {
        None => stats.total,
        Some(Status::Unused) => stats.unused,
        Some(Status::Used) => stats.used,
        Some(Status::Expired) => stats.expired,
    };
    Ok(Json(Page::new(coupons, total, page)))
}

/// Counts the caller's coupons.
#[utoipa::path(get, path = "/coupons/my/stats", tag = "coupons", responses((status = 200, body = CouponStats)))]
pub async fn count_my_coupons(
    State(state): State<Billing>,
    user: CurrentUser,
) -> Result<Json<CouponStats>> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    Ok(Json(db::stats(&mut conn, &user.id, now).await?))
}

/// Shows a coupon.
#[utoipa::path(get, path = "/coupons/{id}", tag = "coupons", params(("id" = String, Path)),
    responses((status = 200, body = Coupon), (status = 404, body = ProblemBody)))]
pub async fn find_coupon(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(id): Path<TransactionId>,
) -> Result<Json<Coupon>> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let coupon = db::find(&mut conn, id.as_str(), now).await?;
    coupon
        .filter(|coupon| user.may_see(&coupon.user_id))
        .map(Json)
        .ok_or(Error::CouponNotFound)
}

/// Puts a coupon to its owner's pending order; one that costs nothing then is paid by it.
#[utoipa::path(post, path = "/coupons/{id}/use", tag = "coupons", params(("id" = String, Path)), request_body = UseCoupon,
    responses((status = 200, body = Coupon), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn use_coupon(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(id): Path<TransactionId>,
    Json(body): Json<UseCoupon>,
) -> Result<Json<Coupon>> {
    let mut tx = state.platform.db.begin().await?;
    let order = order::db::lock(&mut tx, &body.order_id).await?;
    let mut order = order
        .filter(|order| user.may_see(&order.user_id))
        .ok_or(Error::OrderNotFound)?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let coupon = db::find(&mut tx, id.as_str(), now).await?;
    // An admin may do it for a user, but with the user's own coupon.
    let coupon = coupon
        .filter(|coupon| coupon.user_id == order.user_id)
        .ok_or(Error::CouponNotFound)?;
    order.payable(now)?;
    // The provider asks for the amount it was told; what comes by it must still be what is due.
    if db::is_being_paid(&mut tx, &order.id).await? {
        return Err(Error::CouponUnusable("a payment of the order is under way"));
    }
    coupon.lower(&mut order, now)?;
    db::lower(&mut tx, &order).await.map_err(refuse_second)?;
    let paid = order.final_amount == Money::ZERO;
    if paid {
        pay_nothing(&mut tx, &order, now).await?;
    }
    let coupon = db::find(&mut tx, id.as_str(), now).await?;
    let coupon = coupon.ok_or(sqlx::Error::RowNotFound)?;
    tx.commit().await?;
    if paid {
        payment::count_paid();
    }
    Ok(Json(coupon))
}
