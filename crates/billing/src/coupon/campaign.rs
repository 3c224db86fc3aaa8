//! Campaigns: codes by which a limited number of coupons can be had. A claim takes one of them for good, whether its
//! coupon is used or not.

use contracts::{Money, Timestamp, TransactionId, UserId};
use serde::Serialize;
use sqlx::PgConnection;

use super::Kind;
use super::db::{self as coupons, NewCoupon};
use crate::{Error, Result};

/// A code and what is left of it.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Campaign {
    pub id: String,
    pub code: String,
    pub name: String,
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub kind: Kind,
    /// Percent of a discount, yuan of an amount, days of a trial.
    pub value: Money,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_amount: Option<Money>,
    /// How many coupons it gives.
    pub max_uses: i32,
    /// How many of them one user can have.
    pub per_user: i32,
    /// How many are given.
    pub claimed: i32,
    pub start_time: Timestamp,
    /// When its coupons expire.
    pub end_time: Timestamp,
    pub created_at: Timestamp,
}

macro_rules! columns {
    () => {
        "id, code, name, type, value, min_amount, max_uses, per_user, claimed, start_time, end_time, created_at"
    };
}

/// Writes a campaign; `None` where its code is taken.
pub async fn insert(
    conn: &mut PgConnection,
    campaign: &Campaign,
    operator: &UserId,
) -> sqlx::Result<Option<Campaign>> {
    sqlx::query_as(concat!(
        "-- campaign::insert
        insert into billing.campaigns
            (id, code, name, type, value, min_amount, max_uses, per_user, start_time, end_time, operator_id, created_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $9)
        on conflict (code) do nothing returning ",
        columns!()
    ))
    .bind(&campaign.id)
    .bind(&campaign.code)
    .bind(&campaign.name)
    .bind(campaign.kind)
    .bind(campaign.value)
    .bind(campaign.min_amount)
    .bind(campaign.max_uses)
    .bind(campaign.per_user)
    .bind(campaign.start_time)
    .bind(campaign.end_time)
    .bind(operator)
    .fetch_optional(conn)
    .await
}

/// Gives a user one of a campaign's coupons, in the caller's transaction: its id.
///
/// # Errors
/// 404 where there is no such code, 409 where all are given, the user has enough of them, or its time is over: roll back.
pub async fn claim(
    conn: &mut PgConnection,
    code: &str,
    user: &UserId,
    now: Timestamp,
) -> Result<String> {
    let Some(campaign) = count_claim(conn, code, now).await? else {
        return Err(match exists(conn, code).await? {
            true => Error::CouponUnusable("the code is used up or not valid now"),
            false => Error::CouponNotFound,
        });
    };
    // The campaign's row is ours since it was counted on: no other claim of it comes in between.
    if held(conn, &campaign.id, user).await? >= i64::from(campaign.per_user) {
        return Err(Error::CouponUnusable("you have had this code's coupons"));
    }
    let id = TransactionId::new().to_string();
    let coupon = NewCoupon {
        id: &id,
        campaign_id: Some(&campaign.id),
        user_id: user,
        name: &campaign.name,
        kind: campaign.kind,
        value: campaign.value,
        min_amount: campaign.min_amount,
        start_time: campaign.start_time,
        end_time: campaign.end_time,
        operator_id: None,
        created_at: now,
    };
    coupons::insert(conn, &coupon).await?;
    Ok(id)
}

async fn count_claim(
    conn: &mut PgConnection,
    code: &str,
    now: Timestamp,
) -> sqlx::Result<Option<Campaign>> {
    sqlx::query_as(concat!(
        "-- campaign::count_claim
        update billing.campaigns set claimed = claimed + 1
        where code = $1 and claimed < max_uses and start_time <= $2 and end_time > $2
        returning ",
        columns!()
    ))
    .bind(code)
    .bind(now)
    .fetch_optional(conn)
    .await
}

async fn exists(conn: &mut PgConnection, code: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("select exists (select 1 from billing.campaigns where code = $1)")
        .bind(code)
        .fetch_one(conn)
        .await
}

async fn held(conn: &mut PgConnection, campaign: &str, user: &UserId) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from billing.coupons where campaign_id = $1 and user_id = $2",
    )
    .bind(campaign)
    .bind(user)
    .fetch_one(conn)
    .await
}
