//! Lists and counts of devices.

use axum::extract::State;
use contracts::{DeviceId, UserId};
use garde::Validate;
use platform::http::{Dual, Json, Page, PageQuery, Path, Query};
use platform::{Admin, CurrentUser};
use serde::{Deserialize, Serialize};

use super::{DeviceView, ProviderType, ShownStatus, db};
use crate::{Devices, Error, error::Result};

/// Which devices are wanted.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct DeviceFilter {
    /// In this status.
    #[garde(skip)]
    #[param(inline)]
    pub status: Option<ShownStatus>,
    /// Of this user.
    #[garde(skip)]
    pub user_id: Option<UserId>,
    /// Of this tenant.
    #[garde(length(chars, max = 64))]
    pub tenant_id: Option<String>,
    /// In this group.
    #[garde(length(chars, max = 100))]
    pub group_name: Option<String>,
    /// Of this provider.
    #[garde(skip)]
    pub provider_type: Option<ProviderType>,
    /// With this text in name or description, or with this id.
    #[garde(length(chars, max = 100))]
    pub search: Option<String>,
}

/// By what a user's own devices are sorted.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum MySort {
    /// By name.
    Name,
    /// By status.
    Status,
    /// By the version of Android.
    AndroidVersion,
    /// By the time of creation.
    #[default]
    CreatedAt,
    /// By the time of the last start.
    LastStartedAt,
}

impl MySort {
    /// The name in the query.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Status => "status",
            Self::AndroidVersion => "androidVersion",
            Self::CreatedAt => "createdAt",
            Self::LastStartedAt => "lastStartedAt",
        }
    }
}

/// Which way a list is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SortOrder {
    /// Lowest first.
    Asc,
    /// Highest first.
    #[default]
    Desc,
}

/// Which of a user's own devices are wanted, and in which order.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct MyQuery {
    /// In this status.
    #[garde(skip)]
    #[param(inline)]
    pub status: Option<ShownStatus>,
    /// Default createdAt.
    #[garde(skip)]
    #[param(inline)]
    pub sort_by: Option<MySort>,
    /// Default desc.
    #[garde(skip)]
    #[param(inline)]
    pub sort_order: Option<SortOrder>,
}

/// Which devices are counted.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CountQuery {
    /// In this status.
    #[garde(skip)]
    #[param(inline)]
    pub status: Option<ShownStatus>,
}

/// A number of devices.
#[derive(Clone, Copy, Debug, Serialize, utoipa::ToSchema)]
pub struct Count {
    /// The number.
    pub count: i64,
}

/// Devices by status.
#[derive(Clone, Copy, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct Stats {
    /// All.
    pub total: i64,
    /// Running.
    pub running: i64,
    /// Stopped.
    pub stopped: i64,
    /// In error.
    pub error: i64,
    /// Always 0.
    pub idle: i64,
    /// Coming into being.
    pub creating: i64,
}

impl Stats {
    fn of(counts: Vec<(String, i64)>) -> Self {
        let mut stats = Self::default();
        for (status, count) in counts {
            stats.total += count;
            match status.as_str() {
                "running" => stats.running = count,
                "stopped" => stats.stopped = count,
                "error" => stats.error = count,
                "creating" => stats.creating = count,
                _ => {}
            }
        }
        stats
    }
}

/// Lists the caller's devices; admins see all.
#[utoipa::path(get, path = "/devices", tag = "devices", params(PageQuery, DeviceFilter),
    responses((status = 200, body = Vec<DeviceView>, description = "An array, or a page where `page` or `pageSize` is given")))]
pub async fn list_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Query(page): Query<PageQuery>,
    Query(mut filter): Query<DeviceFilter>,
) -> Result<Dual<DeviceView>> {
    if !(user.is_admin && filter.user_id.is_none()) {
        filter.user_id = Some(user.acting_for(filter.user_id.take())?);
    }
    let mut conn = state.platform.db.acquire().await?;
    let devices = db::list(&mut conn, &filter, page.dual_slice()).await?;
    let total = if page.wants_page() {
        db::count(&mut conn, &filter).await?
    } else {
        0
    };
    let devices = devices.into_iter().map(super::Device::view).collect();
    Ok(Dual::new(devices, total, page))
}

/// Lists the caller's own devices.
#[utoipa::path(get, path = "/devices/my", tag = "devices", params(PageQuery, MyQuery), responses((status = 200, body = Page<DeviceView>)))]
pub async fn list_my_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Query(page): Query<PageQuery>,
    Query(query): Query<MyQuery>,
) -> Result<Json<Page<DeviceView>>> {
    let mut conn = state.platform.db.acquire().await?;
    let order = (
        query.sort_by.unwrap_or_default(),
        query.sort_order.unwrap_or_default() == SortOrder::Asc,
    );
    let devices = db::list_sorted(&mut conn, &user.id, query.status, order, page.slice()).await?;
    let filter = DeviceFilter {
        status: query.status,
        user_id: Some(user.id),
        ..DeviceFilter::default()
    };
    let total = db::count(&mut conn, &filter).await?;
    let devices = devices.into_iter().map(super::Device::view).collect();
    Ok(Json(Page::new(devices, total, page)))
}

/// Shows a device.
#[utoipa::path(get, path = "/devices/{id}", tag = "devices", params(("id" = String, Path)), responses((status = 200, body = DeviceView), (status = 404)))]
pub async fn find_device(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<DeviceView>> {
    let mut conn = state.platform.db.acquire().await?;
    let device = db::find(&mut conn, &id).await?;
    let device = device.filter(|device| user.may_see(&device.user_id));
    device
        .map(|device| Json(device.view()))
        .ok_or(Error::NoSuchDevice { device: id })
}

/// Counts the caller's devices; admins count all.
#[utoipa::path(get, path = "/devices/count", tag = "devices", params(CountQuery), responses((status = 200, body = Count)))]
pub async fn count_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Query(query): Query<CountQuery>,
) -> Result<Json<Count>> {
    let filter = DeviceFilter {
        status: query.status,
        user_id: (!user.is_admin).then_some(user.id),
        ..DeviceFilter::default()
    };
    let mut conn = state.platform.db.acquire().await?;
    let count = db::count(&mut conn, &filter).await?;
    Ok(Json(Count { count }))
}

/// Counts the caller's own devices by status.
#[utoipa::path(get, path = "/devices/my/stats", tag = "devices", responses((status = 200, body = Stats)))]
pub async fn my_device_stats(
    State(state): State<Devices>,
    user: CurrentUser,
) -> Result<Json<Stats>> {
    let mut conn = state.platform.db.acquire().await?;
    let counts = db::count_by_status(&mut conn, Some(&user.id)).await?;
    Ok(Json(Stats::of(counts)))
}

/// Counts everybody's devices by status.
#[utoipa::path(get, path = "/devices/stats", tag = "devices", responses((status = 200, body = Stats), (status = 403)))]
pub async fn device_stats(State(state): State<Devices>, _: Admin) -> Result<Json<Stats>> {
    let mut conn = state.platform.db.acquire().await?;
    let counts = db::count_by_status(&mut conn, None).await?;
    Ok(Json(Stats::of(counts)))
}
