//! Further ways through many devices: by cursor, in short, those that can be used, and those with given ids.

use std::str::FromStr;

use axum::extract::State;
use chrono::{DateTime, Utc};
use contracts::{DeviceId, UserId};
use garde::Validate;
use platform::http::{Json, Query, Slice};
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};

use super::list::DeviceFilter;
use super::{DeviceView, ShownStatus, db};
use crate::{Devices, error::Result};

/// How many ids one request may ask for.
const MOST_IDS: usize = 100;

/// Where in the list of devices a page begins: behind this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// When it was accepted, to the microsecond of the store.
    pub created_at: DateTime<Utc>,
    /// Its number among all.
    pub seq: i64,
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (micros, seq) = text.split_once('-').ok_or(())?;
        let micros = micros.parse().map_err(|_| ())?;
        Ok(Self {
            created_at: DateTime::from_timestamp_micros(micros).ok_or(())?,
            seq: seq.parse().map_err(|_| ())?,
        })
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.created_at.timestamp_micros(), self.seq)
    }
}

/// Which page of devices is wanted.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CursorQuery {
    /// The `nextCursor` of the page before; the first page where it is left out.
    #[garde(length(max = 64))]
    pub cursor: Option<String>,
    /// How many, 1 to 500; default 20.
    #[garde(range(min = 1))]
    pub limit: Option<i64>,
}

/// A page of devices, and where the next one begins.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CursorPage {
    data: Vec<DeviceView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    has_more: bool,
    /// How many there are on this page.
    count: usize,
}

/// Which devices are wanted in short.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct QuickQuery {
    /// With this text in name or description, or with this id.
    #[garde(length(chars, max = 100))]
    pub search: Option<String>,
    /// In this status.
    #[garde(skip)]
    #[param(inline)]
    pub status: Option<ShownStatus>,
    /// How many, 1 to 500; default 20.
    #[garde(range(min = 1))]
    pub limit: Option<i64>,
}

/// A device in short.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct QuickDevice {
    /// Its id.
    pub id: DeviceId,
    name: String,
    status: String,
}

/// Devices in short, and how many there are.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct QuickList {
    items: Vec<QuickDevice>,
    total: i64,
}

/// Devices, and how many there are.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct AvailableList {
    items: Vec<DeviceView>,
    total: i64,
}

/// Which devices are wanted by their ids.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct IdsQuery {
    /// 1 to 100 ids, separated by commas.
    #[garde(skip)]
    pub ids: Option<String>,
}

/// Lists the caller's devices from a cursor on, newest first; admins see all. What is created meanwhile moves no page.
#[utoipa::path(get, path = "/devices/cursor", tag = "devices", params(CursorQuery, DeviceFilter), responses((status = 200, body = CursorPage), (status = 400)))]
pub async fn list_devices_by_cursor(
    State(state): State<Devices>,
    user: CurrentUser,
    Query(query): Query<CursorQuery>,
    Query(mut filter): Query<DeviceFilter>,
) -> Result<Json<CursorPage>> {
    if !(user.is_admin && filter.user_id.is_none()) {
        filter.user_id = Some(user.acting_for(filter.user_id.take())?);
    }
    let cursor = query.cursor.as_deref().map(str::parse).transpose();
    let cursor = cursor
        .map_err(|()| Problem::invalid_field("cursor", "must be the nextCursor of another page"))?;
    let limit = query.limit.unwrap_or(20).clamp(1, 500);
    let mut conn = state.platform.db.acquire().await?;
    let mut found = db::list_after(&mut conn, &filter, cursor, limit + 1).await?;
    let size = usize::try_from(limit).unwrap_or_default();
    let has_more = found.len() > size;
    found.truncate(size);
    let next = found.last().filter(|_| has_more).map(|last| Cursor {
        created_at: last.device.created_at.utc(),
        seq: last.seq,
    });
    Ok(Json(CursorPage {
        next_cursor: next.map(|cursor| cursor.to_string()),
        has_more,
        count: found.len(),
        data: found.into_iter().map(|found| found.device.view()).collect(),
    }))
}

/// Lists the caller's devices in short; admins see all.
#[utoipa::path(get, path = "/devices/quick-list", tag = "devices", params(QuickQuery), responses((status = 200, body = QuickList)))]
pub async fn quick_list_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Query(query): Query<QuickQuery>,
) -> Result<Json<QuickList>> {
    let filter = DeviceFilter {
        status: query.status,
        user_id: theirs(user),
        search: query.search,
        ..DeviceFilter::default()
    };
    let limit = query.limit.unwrap_or(20).clamp(1, 500);
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(QuickList {
        items: db::list_quick(&mut conn, &filter, limit).await?,
        total: db::count(&mut conn, &filter).await?,
    }))
}

/// Lists the caller's devices that can be used: those that run.
#[utoipa::path(get, path = "/devices/available", tag = "devices", params(QuickQuery), responses((status = 200, body = AvailableList)))]
pub async fn list_available_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Query(query): Query<QuickQuery>,
) -> Result<Json<AvailableList>> {
    let filter = DeviceFilter {
        status: Some(ShownStatus::Running),
        user_id: theirs(user),
        search: query.search,
        ..DeviceFilter::default()
    };
    let slice = Slice {
        limit: query.limit.unwrap_or(100).clamp(1, 500),
        offset: 0,
    };
    let mut conn = state.platform.db.acquire().await?;
    let found = db::list(&mut conn, &filter, slice).await?;
    Ok(Json(AvailableList {
        items: found.into_iter().map(super::Device::view).collect(),
        total: db::count(&mut conn, &filter).await?,
    }))
}

/// Shows several devices; those that are not the caller's are left out.
#[utoipa::path(get, path = "/devices/batch", tag = "devices", params(IdsQuery), responses((status = 200, body = Vec<DeviceView>), (status = 400)))]
pub async fn find_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Query(query): Query<IdsQuery>,
) -> Result<Json<Vec<DeviceView>>> {
    let ids = query.ids.unwrap_or_default();
    let mut ids: Vec<&str> = ids
        .split(',')
        .map(str::trim)
        .filter(|id| !id.is_empty())
        .collect();
    if !(1..=MOST_IDS).contains(&ids.len()) {
        let text = "must be 1 to 100 ids, separated by commas";
        return Err(Problem::invalid_field("ids", text).into());
    }
    ids.retain(|id| contracts::id::is_valid(id));
    let mut conn = state.platform.db.acquire().await?;
    let found = db::list_by_id(&mut conn, &ids, theirs(user).as_ref()).await?;
    Ok(Json(found.into_iter().map(super::Device::view).collect()))
}

/// Whose devices a list shows; everybody's to admins.
fn theirs(user: CurrentUser) -> Option<UserId> {
    (!user.is_admin).then_some(user.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cursor_reads_back_and_any_text_is_one_or_none() {
        bolero::check!()
            .with_type::<(u32, u64)>()
            .with_iterations(1_000)
            .for_each(|(seconds, seq)| {
                let created_at = DateTime::from_timestamp(i64::from(*seconds), 0).unwrap();
                let cursor = Cursor {
                    created_at,
                    seq: i64::try_from(*seq).unwrap_or(i64::MAX),
                };
                assert_eq!(cursor.to_string().parse(), Ok(cursor));
            });
        bolero::check!()
            .with_iterations(1_000)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &["1", "-", "9", "0", "x"]);
                if let Ok(cursor) = text.parse::<Cursor>() {
                    assert_eq!(cursor.to_string().parse(), Ok(cursor));
                }
            });
    }
}
