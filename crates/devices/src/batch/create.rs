//! The creation of many devices at once, each charged to the quota by itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::UserId;
use garde::Validate;
use http::StatusCode;
use platform::http::Json;
use platform::idempotency::{IdempotencyKey, Idempotent};
use platform::{CurrentUser, Problem};
use serde::Deserialize;

use super::{Done, Item, MOST, Report, each};
use crate::device::create::{self, CreateDevice};
use crate::device::{DeviceType, ProviderType};
use crate::{Devices, error::Result};

/// How many devices, and what they shall be.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateDevices {
    /// 1 to 500.
    #[garde(range(min = 1, max = MOST))]
    pub count: usize,
    /// Their names are this, a dash and a number from 1; default `device`.
    #[garde(length(chars, min = 1, max = 90))]
    pub name_prefix: Option<String>,
    /// Whose they shall be; the caller's where it is left out.
    #[garde(skip)]
    pub user_id: Option<UserId>,
    /// How many at a time, 1 to 50; default 10. A replica does at most 8.
    #[garde(range(min = 1, max = 50))]
    pub max_concurrency: Option<usize>,
    /// Default phone.
    #[serde(rename = "type")]
    #[garde(skip)]
    pub kind: Option<DeviceType>,
    /// Default redroid.
    #[garde(skip)]
    pub provider_type: Option<ProviderType>,
    /// Default 2.
    #[garde(range(min = 1, max = 16))]
    pub cpu_cores: Option<i32>,
    /// Default 4096; `memoryMB` on the wire and in refusals.
    #[garde(range(min = 512, max = 32_768))]
    pub memory_m_b: Option<i32>,
    /// Default 10240; `storageMB` on the wire and in refusals.
    #[garde(range(min = 1_024, max = 1_048_576))]
    pub storage_m_b: Option<i32>,
    /// Default 1080x1920.
    #[garde(inner(custom(create::check_resolution)))]
    pub resolution: Option<String>,
    /// Default 320.
    #[garde(range(min = 120, max = 640))]
    pub dpi: Option<i32>,
    /// Default 11.
    #[garde(inner(custom(create::check_android_version)))]
    pub android_version: Option<String>,
    /// At most 10.
    #[garde(length(max = 10), inner(inner(length(chars, min = 1, max = 50))))]
    pub tags: Option<Vec<String>>,
    /// The group they are in.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: Option<String>,
    /// Default true.
    #[garde(skip)]
    pub auto_start: Option<bool>,
}

/// Creates devices, as far as the quota allows: the reply tells what became of each. A repeated request creates those that
/// did not come into being before, and tells the others as they are.
#[utoipa::path(post, path = "/devices/batch/create", tag = "batch", params(("Idempotency-Key" = Option<String>, Header)), request_body = CreateDevices, responses((status = 201, body = Report), (status = 400)))]
pub async fn create_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Idempotent { body, key }: Idempotent<CreateDevices>,
) -> Result<Response> {
    let owner = user.acting_for(body.user_id.clone())?;
    let prefix = body.name_prefix.as_deref().unwrap_or("device");
    let at_once = body.max_concurrency.unwrap_or(10);
    let like = CreateDevice {
        kind: body.kind,
        provider_type: body.provider_type,
        cpu_cores: body.cpu_cores,
        memory_m_b: body.memory_m_b,
        storage_m_b: body.storage_m_b,
        resolution: body.resolution,
        dpi: body.dpi,
        android_version: body.android_version,
        tags: body.tags,
        group_name: body.group_name,
        auto_start: body.auto_start,
        ..CreateDevice::default()
    };
    let named = (prefix, body.count);
    let (report, _) = many(&state, (&user, &key), &owner, named, at_once, &like).await;
    Ok((StatusCode::CREATED, Json(report)).into_response())
}

/// Creates `count` devices like this one, named after the prefix; each once for a key. What became of each, and how many this
/// request has made.
pub async fn many(
    state: &Devices,
    (user, key): (&CurrentUser, &IdempotencyKey),
    owner: &UserId,
    (prefix, count): (&str, usize),
    at_once: usize,
    like: &CreateDevice,
) -> (Report, usize) {
    let new = AtomicUsize::new(0);
    let items = (1..=count).map(|number| Item::New(format!("{prefix}-{number}")));
    let made_now = &new;
    let work = |item| async move {
        let name = match item {
            Item::New(name) => name,
            Item::Device(_) => return Err(Problem::internal().into()),
        };
        let key = key.part(&name);
        let body = CreateDevice {
            name,
            ..like.clone()
        };
        let made = create::one(state, owner.clone(), body, key, user.id.as_str());
        let made = made.await?;
        made_now.fetch_add(made.is_new.into(), Ordering::Relaxed);
        Ok(Done::accepted(made.device, Some(made.saga_id)))
    };
    let pace = (&state.batch_items, at_once);
    let report = each(state, (&user.id, "create"), items.collect(), pace, work).await;
    (report, new.into_inner())
}
