//! Devices made of templates.

use axum::extract::State;
use axum::response::Response;
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Path};
use platform::idempotency::Idempotent;
use platform::{CurrentUser, Problem};
use serde::Deserialize;
use tracing::warn;

use super::{api::visible, db};
use crate::batch::create::many;
use crate::device::create::{CreateDevice, Created, reply};
use crate::device::{self, Device, DeviceView};
use crate::{Devices, error::Result};

/// What is different from the template.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateOfTemplate {
    /// What the device is called; the name of the template where it is left out.
    #[garde(length(chars, min = 1, max = 100))]
    pub device_name: Option<String>,
    /// The same as `deviceName`.
    #[garde(length(chars, min = 1, max = 100))]
    pub name: Option<String>,
    /// The group it is in.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: Option<String>,
    /// Processor cores.
    #[garde(range(min = 1, max = 16))]
    pub cpu_cores: Option<i32>,
    /// Memory; `memoryMB` on the wire and in refusals.
    #[garde(range(min = 512, max = 32_768))]
    pub memory_m_b: Option<i32>,
}

/// How many devices of the template.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateManyOfTemplate {
    /// 1 to 100.
    #[garde(range(min = 1, max = 100))]
    pub count: usize,
    /// Their names are this, a dash and a number from 1; the name of the template where it is left out.
    #[garde(length(chars, min = 1, max = 90))]
    pub name_prefix: Option<String>,
    /// The group they are in.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: Option<String>,
    /// How many at a time, 1 to 50; default 10. A replica does at most 8.
    #[garde(range(min = 1, max = 50))]
    pub max_concurrency: Option<usize>,
}

/// Creates a device of a template, as `POST /devices` does.
#[utoipa::path(post, path = "/templates/{id}/create-device", tag = "templates", params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    request_body = CreateOfTemplate,
    responses((status = 201, body = Created), (status = 400), (status = 403, description = "The quota does not allow it"), (status = 404), (status = 503, description = "No port is free, or none can be leased")))]
pub async fn create_device_of_template(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<String>,
    Idempotent { body, key }: Idempotent<CreateOfTemplate>,
) -> Result<Response> {
    let template = {
        let mut conn = state.platform.db.acquire().await?;
        visible(&mut conn, &user, &id).await?
    };
    let like = template.device();
    let device = CreateDevice {
        name: body.device_name.or(body.name).unwrap_or(template.name),
        group_name: body.group_name,
        cpu_cores: body.cpu_cores.or(like.cpu_cores),
        memory_m_b: body.memory_m_b.or(like.memory_m_b),
        ..like
    };
    let (answer, is_new) = reply(&state, user.id.clone(), device, key, user.id.as_str()).await?;
    if is_new {
        count(&state, &id, 1).await;
    }
    Ok(answer)
}

/// Creates devices of a template, as far as the quota allows: those that came into being.
#[utoipa::path(post, path = "/templates/{id}/batch-create", tag = "templates", params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)), request_body = CreateManyOfTemplate,
    responses((status = 201, body = Vec<DeviceView>), (status = 400), (status = 403, description = "The quota allows none of them"), (status = 404)))]
pub async fn create_devices_of_template(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<String>,
    Idempotent { body, key }: Idempotent<CreateManyOfTemplate>,
) -> Result<(StatusCode, Json<Vec<DeviceView>>)> {
    let template = {
        let mut conn = state.platform.db.acquire().await?;
        visible(&mut conn, &user, &id).await?
    };
    let like = CreateDevice {
        group_name: body.group_name,
        ..template.device()
    };
    let prefix: String = match body.name_prefix {
        Some(prefix) => prefix,
        None => template.name.chars().take(90).collect(),
    };
    let at_once = body.max_concurrency.unwrap_or(10);
    let (report, new) = many(
        &state,
        (&user, &key),
        &user.id,
        (&prefix, body.count),
        at_once,
        &like,
    )
    .await;
    let made = report.devices();
    if made.is_empty() {
        let late = || Problem::not_ready("no device could be created in time; try again");
        return Err(report.first_problem().unwrap_or_else(late).into());
    }
    count(&state, &id, new).await;
    let mut conn = state.platform.db.acquire().await?;
    let devices = device::db::list_by_id(&mut conn, &made, Some(&user.id)).await?;
    Ok((
        StatusCode::CREATED,
        Json(devices.into_iter().map(Device::view).collect()),
    ))
}

/// Counts devices that were made of a template. They are there: that they could not be counted is no reason to say otherwise.
async fn count(state: &Devices, id: &str, new: usize) {
    let counted = async {
        let mut conn = state.platform.db.acquire().await?;
        db::used(&mut conn, id, i64::try_from(new).unwrap_or_default()).await
    };
    if new > 0
        && let Err(error) = counted.await
    {
        warn!("{new} devices of template {id} were made and not counted: {error}");
    }
}
